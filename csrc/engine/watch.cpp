#include "watch.h"

#include "fail.h"

#include "ggml.h"

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdlib>
#include <ctime>
#include <exception>
#include <mutex>
#include <new>

#ifdef _WIN32
#    include <process.h>
#    include <windows.h>
#else
#    include <pthread.h>
#endif

namespace otter {

namespace {

constexpr unsigned allocations_a_clock = 64;
constexpr int64_t  interval_us         = 50000; // a stop_function may wait for Python's lock

std::atomic<int>                n_watches { 0 }; // of all threads: without any, an allocation costs one comparison more
thread_local allocation_watch * innermost = nullptr;

double cpu_seconds() {
#ifdef _WIN32
    FILETIME created, ended, kernel, user;
    GetThreadTimes(GetCurrentThread(), &created, &ended, &kernel, &user);
    const auto ticks = [](const FILETIME & time) { return double((uint64_t(time.dwHighDateTime) << 32) | time.dwLowDateTime); };
    return (ticks(kernel) + ticks(user)) * 1e-7;
#else
    timespec time;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
    return double(time.tv_sec) + double(time.tv_nsec) * 1e-9;
#endif
}

} // namespace

allocation_watch::allocation_watch(const stop_function & asked, double seconds) :
    stop(asked),
    max_seconds(seconds),
    outer(innermost) {
    innermost = this;
    ++n_watches;
}

allocation_watch::~allocation_watch() {
    --n_watches;
    innermost = outer;
}

void allocation_watch::on_allocation() {
    if (++n_allocations % allocations_a_clock == 0) {
        look();
    }
}

double allocation_watch::seconds() const {
    return t_looked_us == 0 ? 0.0 : cpu_seconds() - (cpu_deadline - max_seconds);
}

void allocation_watch::look() {
    const int64_t now = ggml_time_us();
    if (now - t_looked_us < interval_us) {
        return;
    }
    const bool is_first = t_looked_us == 0;
    t_looked_us         = now;
    if (is_first) {
        cpu_deadline = cpu_seconds() + max_seconds;
        return;
    }
    if (cpu_seconds() > cpu_deadline) {
        throw out_of_time();
    }
    if (stop) {
        ask();
    }
}

void allocation_watch::ask() {
    innermost = nullptr; // whom it asks may allocate as he likes
    bool stopped;
    try {
        stopped = stop();
    } catch (...) {
        innermost = this;
        throw;
    }
    innermost = this;
    if (stopped) {
        throw interrupt();
    }
}

namespace {

struct job {
    explicit job(const std::function<void(const stop_function &)> & given) : work(given) {}

    const std::function<void(const stop_function &)> & work;

    std::mutex              mutex;
    std::condition_variable ended;
    bool                    has_ended = false;
    std::atomic<bool>       stopped { false };
    std::exception_ptr      error;

    void run() noexcept {
        try {
            work([this] { return stopped.load(); });
        } catch (...) {
            error = std::current_exception();
        }
        const std::lock_guard<std::mutex> lock(mutex);
        has_ended = true;
        ended.notify_all();
    }

    void wait(const stop_function & stop) {
        std::unique_lock<std::mutex> lock(mutex);
        while (!ended.wait_for(lock, std::chrono::microseconds(interval_us), [this] { return has_ended; })) {
            lock.unlock(); // stop may wait for Python's lock
            stopped = stopped || (stop && stop());
            lock.lock();
        }
    }
};

otter_error no_thread(size_t n_bytes) {
    return engine_error("no room for a thread with a stack of " + std::to_string(n_bytes >> 20) + " MiB");
}

#ifdef _WIN32
class stack_thread {
public:
    stack_thread(size_t n_bytes, job & given) {
        const auto run = [](void * data) -> unsigned {
            static_cast<job *>(data)->run();
            return 0;
        };
        handle = _beginthreadex(nullptr, unsigned(n_bytes), run, &given, STACK_SIZE_PARAM_IS_A_RESERVATION, nullptr);
        if (handle == 0) {
            throw no_thread(n_bytes);
        }
    }
    ~stack_thread() {
        WaitForSingleObject(HANDLE(handle), INFINITE);
        CloseHandle(HANDLE(handle));
    }

private:
    uintptr_t handle;
};
#else
class stack_thread {
public:
    stack_thread(size_t n_bytes, job & given) {
        const auto run = [](void * data) -> void * {
            static_cast<job *>(data)->run();
            return nullptr;
        };
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        const bool refused =
            pthread_attr_setstacksize(&attributes, n_bytes) != 0 || pthread_create(&thread, &attributes, run, &given) != 0;
        pthread_attr_destroy(&attributes);
        if (refused) {
            throw no_thread(n_bytes);
        }
    }
    ~stack_thread() { pthread_join(thread, nullptr); }

private:
    pthread_t thread;
};
#endif

} // namespace

void run_on_stack(size_t n_bytes, const std::function<void(const stop_function &)> & work, const stop_function & stop) {
    constexpr size_t page = size_t(1) << 16; // of any system
    job              given(work);
    {
        const stack_thread thread((n_bytes + page - 1) / page * page, given);
        given.wait(stop);
    }
    if (given.stopped) {
        throw interrupt();
    }
    if (given.error) {
        std::rethrow_exception(given.error);
    }
}

// Out of line, and with the fast path first: this stands in every allocation of the module.
static void watch_allocation() {
    if (n_watches.load(std::memory_order_relaxed) != 0 && innermost != nullptr) {
        innermost->on_allocation();
    }
}

} // namespace otter

// The module's own, which the linker binds inside it and shows nobody else: llama.cpp's allocations come by here. Memory
// is malloc's and free's, as that of the standard library's own pair on every system.
void * operator new(std::size_t n_bytes) {
    otter::watch_allocation();
    for (;;) {
        if (void * memory = std::malloc(n_bytes > 0 ? n_bytes : 1)) {
            return memory;
        }
        const std::new_handler handler = std::get_new_handler();
        if (handler == nullptr) {
            throw std::bad_alloc();
        }
        handler();
    }
}

void operator delete(void * memory) noexcept {
    std::free(memory);
}

void operator delete(void * memory, std::size_t) noexcept {
    std::free(memory);
}
