#include "gguf/error.h"

namespace otter {

std::string quoted(std::string_view text) {
    static const char   hex[]     = "0123456789abcdef";
    static const size_t max_bytes = 96;

    std::string out = "'";
    for (const char c : text.substr(0, max_bytes)) {
        const auto byte = static_cast<unsigned char>(c);
        if (byte >= 0x20 && byte < 0x7f) {
            out += c;
        } else {
            out += { '\\', 'x', hex[byte >> 4], hex[byte & 15] };
        }
    }
    out += text.size() > max_bytes ? "...'" : "'";
    return out;
}

} // namespace otter
