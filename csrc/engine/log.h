// llama.cpp's log: errors collected for messages, all lines passed on to a listener where one is set.

#pragma once

#include <functional>
#include <string>
#include <vector>

namespace otter {

using log_listener = std::function<void(const char * level, const std::string & line)>;

// Take over llama.cpp's and ggml's log for this process. Quiet until a listener is set.
void install_log();

// It is copied under the log's lock, in whatever thread logs: a copy must wait for nothing.
void set_log_listener(log_listener listener);

// The last errors that llama.cpp logs in this thread while the object lives: the reason, where a call fails. Of several
// that live the innermost alone collects, so that a listener that calls llama.cpp itself takes nothing from the call in
// whose middle it is. llama.cpp logs why a call fails in the thread that called. What other threads log (ggml's workers,
// those of the loader and the quantizer, another caller) reaches the listener and explains nothing here.
class log_errors {
public:
    log_errors();
    ~log_errors();

    log_errors(const log_errors &)             = delete;
    log_errors & operator=(const log_errors &) = delete;

    void add(const std::string & line);

    bool empty() const { return lines.empty(); }

    // Joined by "; "; where there are none, `none`, or that no reason is given.
    std::string text(const std::string & none = "") const;

private:
    std::vector<std::string> lines;
    log_errors * const       outer;
};

} // namespace otter
