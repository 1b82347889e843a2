// Python's lock (GIL), given up for the length of a native call and taken back, also while the interpreter ends.
//
// Daemon threads may still compute then. CPython before 3.14 answers one that asks for its lock with pthread_exit, whose
// unwinding cannot pass a destructor: std::terminate in the place of the program's exit status. And the process's static
// objects die under a thread that goes on. So every other thread is parked, at the latest at its next callback, and the
// interpreter's end waits for that.

#pragma once

#include <pybind11/pybind11.h>

namespace otter {

class gil_release {
public:
    gil_release();
    ~gil_release();

    gil_release(const gil_release &)             = delete;
    gil_release & operator=(const gil_release &) = delete;

private:
    PyThreadState * const state;
};

// For callbacks, from any thread.
class gil_acquire {
public:
    gil_acquire();
    ~gil_acquire() { PyGILState_Release(state); }

    gil_acquire(const gil_acquire &)             = delete;
    gil_acquire & operator=(const gil_acquire &) = delete;

private:
    PyGILState_STATE state;
};

// The interpreter ends, in this thread, which holds the lock: park all others, and wait for them, five seconds at most.
void park_other_threads();

// In the child of a fork there are no other threads.
void forget_other_threads();

} // namespace otter
