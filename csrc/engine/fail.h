// Short forms of the errors that the engine throws.

#pragma once

#include "gguf/error.h"

namespace otter {

inline otter_error config_error(const std::string & message) {
    return { error_kind::config, message };
}

inline otter_error engine_error(const std::string & message) {
    return { error_kind::engine, message };
}

inline otter_error context_full_error(const std::string & message) {
    return { error_kind::context_full, message };
}

} // namespace otter
