// The errors that data, files and arguments can cause. Each kind is a class of otter_gguf.errors, of the same name;
// bindings/bind_errors.cpp raises them, tests/test_errors.py compares both lists.

#pragma once

#include <array>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace otter {

enum class error_kind { file, mismatch, config, unsupported, engine, context_full };

// Indexed by error_kind.
inline constexpr std::array<const char *, 6> error_class_names = {
    "FileError",
    "MismatchError",
    "ConfigError",
    "UnsupportedError",
    "EngineError",
    "ContextFullError",
};

// One line: what is wrong, where (file, key, tensor), what was expected and found, what to do.
struct otter_error : std::runtime_error {
    error_kind kind;

    otter_error(error_kind which, const std::string & message) : std::runtime_error(message), kind(which) {}
};

// A message from its parts: cat("key ", quoted(key), ": found ", n).
template <typename... Parts>
std::string cat(const Parts &... parts) {
    std::ostringstream out;
    (out << ... << parts);
    return out.str();
}

// 'text' on one line, safe for a terminal: everything but printable ASCII as \xNN, shortened behind 96 bytes.
std::string quoted(std::string_view text);

} // namespace otter
