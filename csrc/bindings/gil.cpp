#include "gil.h"

#include <atomic>
#include <chrono>
#include <thread>

namespace otter {

namespace {

using clock = std::chrono::steady_clock;

std::atomic<int>  n_running { 0 }; // native calls that do without the lock, of all threads
thread_local int  n_own = 0;       // of this thread: a callback may call again
std::atomic<bool> ending { false };
std::thread::id   ending_thread;   // set before `ending`

// Until the process is gone.
[[noreturn]] void park() {
    n_running -= n_own;
    for (;;) {
        std::this_thread::sleep_for(std::chrono::hours(1));
    }
}

void park_at_the_end() {
    if (ending && std::this_thread::get_id() != ending_thread) {
        park();
    }
}

// What takes the lock throws nothing but pthread_exit's unwinding, which must be caught here and never left.
template <class function>
auto take(const function & lock) {
    park_at_the_end();
    try {
        return lock();
    } catch (...) {
        park();
    }
}

} // namespace

gil_release::gil_release() : state(PyEval_SaveThread()) {
    ++n_own;
    ++n_running;
    park_at_the_end();
}

gil_release::~gil_release() {
    take([this] { PyEval_RestoreThread(state); });
    --n_own;
    --n_running;
}

gil_acquire::gil_acquire() : state(take([] { return PyGILState_Ensure(); })) {}

void park_other_threads() {
    ending_thread = std::this_thread::get_id();
    ending        = true;

    PyThreadState * const state    = PyEval_SaveThread();
    const auto            deadline = clock::now() + std::chrono::seconds(5);
    while (n_running > n_own && clock::now() < deadline) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    PyEval_RestoreThread(state);
}

void forget_other_threads() {
    n_running = n_own;
}

} // namespace otter
