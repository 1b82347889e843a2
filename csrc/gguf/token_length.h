// How long a token may be.

#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace otter {

// llama.cpp's grammar calls itself for each character of a token, with some 450 bytes of stack: these fit half of a
// thread's 512 kB. The longest tokens known are Jais 2's, 512 spaces; most vocabularies end at 128.
constexpr size_t max_token_characters = 512;

// Characters of a text in UTF-8; of other bytes no fewer than any decoder makes of them.
inline size_t n_characters(std::string_view text) {
    const auto begins = [](char c) { return (uint8_t(c) & 0xc0) != 0x80; };
    return std::max(size_t(std::count_if(text.begin(), text.end(), begins)), (text.size() + 3) / 4);
}

} // namespace otter
