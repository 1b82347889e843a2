// llama.cpp's log: kept for error messages, passed on to a listener where one is set.

#pragma once

#include <functional>
#include <string>

namespace otter {

using log_listener = std::function<void(const char * level, const std::string & line)>;

// Take over llama.cpp's and ggml's log for this process. Quiet until a listener is set.
void install_log();

// It is copied under the log's lock, in whatever thread logs: a copy must wait for nothing.
void set_log_listener(log_listener listener);

// Errors that this thread has met since its last call, joined by "; ".
std::string take_log_errors();

} // namespace otter
