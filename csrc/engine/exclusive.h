// The claim of one thread on an object for the length of a call.

#pragma once

#include "fail.h"

#include <atomic>

namespace otter {

class exclusive {
public:
    exclusive(std::atomic<bool> & flag, const char * what) : busy(flag) {
        if (busy.exchange(true)) {
            throw engine_error(
                std::string("this ") + what + " is in use by another thread: give each thread a " + what + " of its own");
        }
    }
    ~exclusive() { busy = false; }

    exclusive(const exclusive &)             = delete;
    exclusive & operator=(const exclusive &) = delete;

private:
    std::atomic<bool> & busy;
};

} // namespace otter
