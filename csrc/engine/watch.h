// Work inside llama.cpp that has no way out of its own (tokenizer, grammar, JSON schema): a stack that its recursion fits,
// and a way for Ctrl-C and a limit of time to reach it, through its allocations.

#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>

namespace otter {

// Asked now and then; true = stop.
using stop_function = std::function<bool()>;

// Thrown where a stop_function answered true.
struct interrupt {};

// Thrown where work took more processor time than it may.
struct out_of_time {};

// While one lives, every allocation of this module in this thread may throw `interrupt` or `out_of_time`, as it may throw
// std::bad_alloc at any time. The innermost counts. Not for code whose destructors allocate, as nlohmann::json's do.
class allocation_watch {
public:
    allocation_watch(const stop_function & stop, double max_seconds);
    ~allocation_watch();

    allocation_watch(const allocation_watch &)             = delete;
    allocation_watch & operator=(const allocation_watch &) = delete;

    void on_allocation();

    // Processor time so far; 0 for short work.
    double seconds() const;

private:
    const stop_function & stop;
    const double          max_seconds;
    allocation_watch *    outer;

    unsigned n_allocations = 0;
    int64_t  t_looked_us   = 0;   // 0 before the first look, from which on time counts: short work pays for no clock
    double   cpu_deadline  = 0.0; // of this thread's processor time

    void look();
    void ask();
};

// Runs work in a thread of its own with a stack of that size. What it throws is thrown here; `interrupt`, when it has
// ended, if `stop` has answered true meanwhile, of which the work learns through its argument. EngineError where the
// system has no room for the stack.
void run_on_stack(size_t n_bytes, const std::function<void(const stop_function &)> & work, const stop_function & stop);

} // namespace otter
