// Making a context, and what every call of it checks.

#include "context.h"

#include "fail.h"
#include "log.h"
#include "saved_state.h"

#include "bridge/memory.h"

#include <algorithm>
#include <limits>
#include <thread>

namespace otter {

namespace {

// One token of each sequence must fit into a batch: llama.cpp asserts it.
uint32_t effective_batch(const context_options & options) {
    return std::max(options.n_batch, options.n_seq_max);
}

// llama.cpp reserves logits for this many tokens, half a megabyte each at a vocabulary of 128k.
uint32_t effective_outputs_max(const context_options & options) {
    constexpr uint32_t few = 64;
    return std::min(
        effective_batch(options), options.n_outputs_max > 0 ? options.n_outputs_max : std::max(few, options.n_seq_max));
}

llama_context_params to_llama_params(const context_options & options) {
    const int32_t n_cores = std::max(1, int32_t(std::thread::hardware_concurrency()));

    llama_context_params params = llama_context_default_params();
    params.n_ctx                = options.n_ctx;
    params.n_batch              = effective_batch(options);
    params.n_ubatch             = options.n_ubatch;
    params.n_seq_max            = options.n_seq_max;
    params.n_outputs_max        = effective_outputs_max(options);
    params.n_threads            = options.n_threads > 0 ? options.n_threads : n_cores;
    params.n_threads_batch      = options.n_threads_batch > 0 ? options.n_threads_batch : params.n_threads;
    params.type_k               = options.type_k;
    params.type_v               = options.type_v;
    params.flash_attn_type      = options.flash_attn;
    params.offload_kqv          = options.offload_kqv;
    params.kv_unified           = true; // candidates are siblings on a shared prefix
    params.no_perf              = true;
    return params;
}

// What llama.cpp would assert, or try at any cost: sizes become int32_t there, and a thread that cannot start aborts.
const context_options & checked(const context_options & options) {
    const auto expect = [](const char * name, int64_t value, int64_t least, int64_t most) {
        if (value < least || value > most) {
            throw config_error(std::string(name) + " is " + std::to_string(value) + ", expected " + std::to_string(least) +
                " to " + std::to_string(most));
        }
    };
    constexpr int64_t most_cells = 1 << 24; // longer than any model's context; each takes some 50 bytes besides its keys
    const std::pair<const char *, uint32_t> sizes[] = {
        { "n_batch", options.n_batch },
        { "n_ubatch", options.n_ubatch },
        { "n_outputs_max", options.n_outputs_max },
    };
    expect("n_ctx", options.n_ctx, 0, most_cells);
    for (const auto & [name, value] : sizes) {
        expect(name, value, 0, std::numeric_limits<int32_t>::max());
    }
    expect("n_seq_max", options.n_seq_max, 1, int64_t(llama_max_parallel_sequences()));
    expect("n_threads", std::max(options.n_threads, 0), 0, GGML_MAX_N_THREADS);
    expect("n_threads_batch", std::max(options.n_threads_batch, 0), 0, GGML_MAX_N_THREADS);
    return options;
}

llama_context * create(const model & owner, const context_options & options) {
    check_cache_types(owner.get(), options.type_k, options.type_v);
    const log_errors errors;
    std::string      reason;
    try {
        if (llama_context * ctx = llama_init_from_model(owner.get(), to_llama_params(options))) {
            return ctx;
        }
    } catch (const std::exception & error) {
        reason = error.what();
    }
    throw engine_error(
        "llama.cpp cannot create a context of " + std::to_string(options.n_ctx) + " tokens: " + errors.text(reason));
}

} // namespace

context::context(std::shared_ptr<const model> model_owner, const context_options & options) :
    owner(std::move(model_owner)),
    with_rewards(options.rewards && owner->inserted.has_value()),
    n_outputs_max(int32_t(effective_outputs_max(options))),
    geometry(saved_geometry(*owner, options.type_k, options.type_v)),
    sharing(checked(options).n_seq_max),
    interrupted(options.interrupted),
    handle(create(*owner, options), llama_free),
    shiftable(otter::can_shift(get(), options.type_k)) {
    set_reward_mode(get(), with_rewards ? reward_mode::marked : reward_mode::off);
    llama_set_abort_callback(get(), poll_abort, this);
}

// llama.cpp asks after every node of the graph, some hundred times a token: ask further only every 50 ms.
bool context::poll_abort(void * self_pointer) {
    constexpr unsigned polls_a_clock_read = 64;
    constexpr int64_t  interval_us        = 50000;

    auto & self = *static_cast<context *>(self_pointer);
    if (!self.interrupted || ++self.n_abort_polls % polls_a_clock_read != 0) {
        return false;
    }
    const int64_t now = ggml_time_us();
    if (now - self.t_abort_poll_us < interval_us) {
        return false;
    }
    self.t_abort_poll_us = now;
    self.was_interrupted = self.interrupted();
    return self.was_interrupted;
}

void context::check_sequence(int32_t sequence) const {
    const int32_t n = int32_t(llama_n_seq_max(get()));
    if (sequence < 0 || sequence >= n) {
        throw config_error("sequence " + std::to_string(sequence) + " is outside 0.." + std::to_string(n - 1) + " (n_seq_max " +
            std::to_string(n) + ")");
    }
}

void context::check_position(int64_t position) const {
    if (position < 0 || position >= int64_t(llama_n_ctx(get()))) {
        throw context_full_error("position " + std::to_string(position) + " is outside the context of " +
            std::to_string(llama_n_ctx(get())) + " tokens");
    }
    const int32_t n_learned = n_learned_positions(llama_get_model(get()));
    if (position >= n_learned) {
        throw context_full_error("position " + std::to_string(position) + " is outside the " + std::to_string(n_learned) +
            " positions that the model has learned");
    }
}

} // namespace otter
