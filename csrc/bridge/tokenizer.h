// How llama.cpp cuts a text into words before it looks for tokens.

#pragma once

#include "llama.h"

#include <cstddef>
#include <string>

namespace otter {

// The stack that cutting this text takes at most, 0 where no code calls itself. std::regex, through which llama.cpp cuts
// for 34 of its pre-tokenizers, does so for each character of a word, and of what stands between two.
// ConfigError on a text that would take too much of it, or the square of its length in time.
size_t stack_to_cut(const llama_vocab * vocab, const std::string & text);

} // namespace otter
