// How many native objects are alive: a test of leaks reads it, nothing else depends on it.

#pragma once

#include <atomic>
#include <cstdint>

namespace otter {

// A member of a class that is counted.
template <class owner>
class live_count {
public:
    live_count() { ++alive; }
    ~live_count() { --alive; }

    live_count(const live_count &)             = delete;
    live_count & operator=(const live_count &) = delete;

    static int64_t count() { return alive; }

private:
    inline static std::atomic<int64_t> alive { 0 };
};

} // namespace otter
