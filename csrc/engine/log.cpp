#include "log.h"

#include "llama.h"

#include <mutex>
#include <utility>

namespace otter {

namespace {

constexpr size_t max_kept_lines = 8; // the last words before a failure; more would not fit one message

// Of each thread: the text of a line that has not ended yet.
struct open_line {
    std::string    text;
    ggml_log_level level = GGML_LOG_LEVEL_INFO;
};

thread_local open_line    own_line;
thread_local log_errors * own_errors = nullptr; // the innermost

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

void on_log(ggml_log_level level, const char * text, void *) {
    open_line & own = own_line;
    if (level != GGML_LOG_LEVEL_CONT) {
        own.level = level;
    }
    own.text += text;
    if (own.text.empty() || own.text.back() != '\n') {
        return;
    }
    std::string line;
    line.swap(own.text);
    line.pop_back();
    if (own.level == GGML_LOG_LEVEL_ERROR && own_errors != nullptr) {
        own_errors->add(line);
    }

    log_listener listener;
    {
        const std::lock_guard<std::mutex> lock(shared().mutex);
        listener = shared().listener;
    }
    if (listener) { // outside the lock: the listener may wait for Python's
        listener(level_name(own.level), line);
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

log_errors::log_errors() : outer(own_errors) {
    own_errors = this;
}

log_errors::~log_errors() {
    own_errors = outer;
}

void log_errors::add(const std::string & line) {
    lines.push_back(line);
    if (lines.size() > max_kept_lines) {
        lines.erase(lines.begin());
    }
}

std::string log_errors::text(const std::string & none) const {
    std::string joined;
    for (const auto & line : lines) {
        joined += (joined.empty() ? "" : "; ") + line;
    }
    return !joined.empty() ? joined : !none.empty() ? none : "no reason given";
}

} // namespace otter
