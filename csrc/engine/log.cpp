#include "log.h"

#include "llama.h"

#include <deque>
#include <mutex>

namespace otter {

namespace {

constexpr size_t max_kept_lines = 8; // the last words before a failure; more would not fit one message

// Of each thread: what another one logs neither ends its lines nor explains its failures.
struct thread_log {
    std::string             line; // text of a line that has not ended yet
    ggml_log_level          level = GGML_LOG_LEVEL_INFO;
    std::deque<std::string> errors;
};

thread_log & own_log() {
    thread_local thread_log instance;
    return instance;
}

struct shared_listener {
    std::mutex   mutex;
    log_listener listener;
};

shared_listener & shared() {
    static shared_listener instance;
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
void remember(thread_log & log, const std::string & line) {
    if (log.level == GGML_LOG_LEVEL_ERROR) {
        log.errors.push_back(line);
        if (log.errors.size() > max_kept_lines) {
            log.errors.pop_front();
        }
    }
}

void on_log(ggml_log_level level, const char * text, void *) {
    thread_log & log = own_log();
    if (level != GGML_LOG_LEVEL_CONT) {
        log.level = level;
    }
    log.line += text;
    if (log.line.empty() || log.line.back() != '\n') {
        return;
    }
    std::string line;
    line.swap(log.line);
    line.pop_back();
    remember(log, line);

    log_listener listener;
    {
        const std::lock_guard<std::mutex> lock(shared().mutex);
        listener = shared().listener;
    }
    if (listener) { // outside the lock: the listener may wait for Python's
        listener(level_name(log.level), line);
    }
}

} // namespace

void install_log() {
    llama_log_set(on_log, nullptr);
}

// The former listener dies behind the lock: that may wait for Python's.
void set_log_listener(log_listener listener) {
    const std::lock_guard<std::mutex> lock(shared().mutex);
    std::swap(shared().listener, listener);
}

std::string take_log_errors() {
    auto &      errors = own_log().errors;
    std::string joined;
    for (const auto & error : errors) {
        joined += (joined.empty() ? "" : "; ") + error;
    }
    errors.clear();
    return joined;
}

} // namespace otter
