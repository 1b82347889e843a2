#include "log.h"

#include "llama.h"

#include <deque>
#include <mutex>

namespace otter {

namespace {

constexpr size_t max_kept_lines = 8; // the last words before a failure; more would not fit one message

struct log_state {
    std::mutex              mutex;
    std::string             line;   // text of a line that has not ended yet
    ggml_log_level          level = GGML_LOG_LEVEL_INFO;
    std::deque<std::string> errors;
    log_listener            listener;
};

log_state & state() {
    static log_state instance;
    return instance;
}

const char * level_name(ggml_log_level level) {
    switch (level) {
        case GGML_LOG_LEVEL_DEBUG: return "debug";
        case GGML_LOG_LEVEL_WARN:  return "warning";
        case GGML_LOG_LEVEL_ERROR: return "error";
        default:                   return "info";
    }
}

// A finished line: remember it where it may explain a failure.
void end_line(log_state & log) {
    if (log.level == GGML_LOG_LEVEL_ERROR) {
        log.errors.push_back(log.line);
        if (log.errors.size() > max_kept_lines) {
            log.errors.pop_front();
        }
    }
}

void on_log(ggml_log_level level, const char * text, void *) {
    log_state & log = state();

    std::string    line;
    ggml_log_level line_level;
    log_listener   listener;
    {
        const std::lock_guard<std::mutex> lock(log.mutex);
        if (level != GGML_LOG_LEVEL_CONT) {
            log.level = level;
        }
        log.line += text;
        if (log.line.empty() || log.line.back() != '\n') {
            return;
        }
        log.line.pop_back();
        end_line(log);
        line.swap(log.line);
        line_level = log.level;
        listener   = log.listener;
    }
    if (listener) { // outside the lock: the listener may wait for Python's
        listener(level_name(line_level), line);
    }
}

} // namespace

void install_log() {
    llama_log_set(on_log, nullptr);
}

// The former listener dies behind the lock: that may wait for Python's.
void set_log_listener(log_listener listener) {
    const std::lock_guard<std::mutex> lock(state().mutex);
    std::swap(state().listener, listener);
}

std::string take_log_errors() {
    log_state &                       log = state();
    const std::lock_guard<std::mutex> lock(log.mutex);

    std::string joined;
    for (const auto & error : log.errors) {
        joined += (joined.empty() ? "" : "; ") + error;
    }
    log.errors.clear();
    return joined;
}

} // namespace otter
