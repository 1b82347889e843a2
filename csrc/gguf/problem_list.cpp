#include "gguf/problem_list.h"

#include <algorithm>

namespace otter {

namespace {

constexpr size_t max_shown = 24; // of a hostile file whose every tensor is wrong

} // namespace

void problem_list::add(const otter_error & error) {
    const std::string prefix  = cat(file.path(), ": "); // said once; that of another part of the base stays
    std::string       message = error.what();
    if (message.compare(0, prefix.size(), prefix) == 0) {
        message.erase(0, prefix.size());
    }
    damaged = damaged || error.kind != error_kind::unsupported;
    if (std::find(shown.begin(), shown.end(), message) != shown.end()) {
        return;
    }
    if (shown.size() < max_shown) {
        shown.push_back(message);
    } else {
        ++n_more;
    }
}

void problem_list::throw_any() const {
    if (shown.empty()) {
        return;
    }
    std::string text = file.path() + ": " + shown.front();
    for (size_t i = 1; i < shown.size(); ++i) {
        text += "; " + shown[i];
    }
    if (n_more > 0) {
        text += cat("; and ", n_more, " more");
    }
    throw otter_error(damaged ? error_kind::file : error_kind::unsupported, text);
}

} // namespace otter
