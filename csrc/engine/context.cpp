#include "context.h"

#include "fail.h"
#include "log.h"

#include <algorithm>
#include <map>
#include <thread>

namespace otter {

namespace {

// The claim of one thread on a context for the length of a call.
class exclusive {
public:
    explicit exclusive(std::atomic<bool> & flag) : busy(flag) {
        if (busy.exchange(true)) {
            throw engine_error("this context is in use by another thread: give each thread a context of its own");
        }
    }
    ~exclusive() { busy = false; }

    exclusive(const exclusive &)             = delete;
    exclusive & operator=(const exclusive &) = delete;

private:
    std::atomic<bool> & busy;
};

// llama_decode found the batch itself wrong and has not touched the cache.
constexpr int32_t status_refused = -1;

// llama.cpp reserves logits for this many tokens, half a megabyte each at a vocabulary of 128k.
uint32_t effective_outputs_max(const context_options & options) {
    constexpr uint32_t few = 64;
    return std::min(options.n_batch, options.n_outputs_max > 0 ? options.n_outputs_max : std::max(few, options.n_seq_max));
}

llama_context_params to_llama_params(const context_options & options) {
    const int32_t n_cores = std::max(1, int32_t(std::thread::hardware_concurrency()));

    llama_context_params params = llama_context_default_params();
    params.n_ctx           = options.n_ctx;
    params.n_batch         = options.n_batch;
    params.n_ubatch        = options.n_ubatch;
    params.n_seq_max       = options.n_seq_max;
    params.n_outputs_max   = effective_outputs_max(options);
    params.n_threads       = options.n_threads       > 0 ? options.n_threads       : n_cores;
    params.n_threads_batch = options.n_threads_batch > 0 ? options.n_threads_batch : params.n_threads;
    params.type_k          = options.type_k;
    params.type_v          = options.type_v;
    params.flash_attn_type = options.flash_attn;
    params.offload_kqv     = options.offload_kqv;
    params.kv_unified      = true; // candidates are siblings on a shared prefix
    params.no_perf         = true;
    return params;
}

llama_context * create(const model & owner, const context_options & options) {
    take_log_errors();
    std::string reason;
    try {
        if (llama_context * ctx = llama_init_from_model(owner.get(), to_llama_params(options))) {
            return ctx;
        }
    } catch (const std::exception & error) {
        reason = error.what();
    }
    const std::string log = take_log_errors();
    throw engine_error("llama.cpp cannot create a context of " + std::to_string(options.n_ctx) + " tokens: " +
            (!log.empty() ? log : !reason.empty() ? reason : "no reason given"));
}

} // namespace

context::context(std::shared_ptr<const model> model_owner, const context_options & options) :
    owner(std::move(model_owner)),
    with_rewards(options.rewards && owner->inserted.has_value()),
    n_outputs_max(int32_t(effective_outputs_max(options))),
    interrupted(options.interrupted),
    handle(create(*owner, options), llama_free) {
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
        throw config_error("sequence " + std::to_string(sequence) + " is outside 0.." + std::to_string(n - 1) +
                " (n_seq_max " + std::to_string(n) + ")");
    }
}

void context::check_batch(const token_batch & batch) const {
    const int32_t n_batch = int32_t(llama_n_batch(get()));
    if (batch.n_tokens < 1 || batch.n_tokens > n_batch) {
        throw config_error("a batch of " + std::to_string(batch.n_tokens) + " tokens, expected 1 to n_batch = " +
                std::to_string(n_batch));
    }
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        owner->check_token(batch.tokens[i]);
        check_sequence(batch.sequences[i]);
        if (batch.positions[i] < 0 || batch.positions[i] >= int32_t(llama_n_ctx(get()))) {
            throw context_full_error("position " + std::to_string(batch.positions[i]) + " is outside the context of " +
                    std::to_string(llama_n_ctx(get())) + " tokens");
        }
    }
}

void context::check_text(const int32_t * tokens, int32_t n_tokens, int32_t sequence, int32_t position) const {
    check_sequence(sequence);
    const int32_t next = llama_memory_seq_pos_max(llama_get_memory(get()), sequence) + 1;
    if (position < 0 || (next > 0 && position != next)) {
        throw config_error("position " + std::to_string(position) + " in sequence " + std::to_string(sequence) +
                ", expected " + (next > 0 ? "the next one, " : "0 or more; usually ") + std::to_string(next));
    }
    if (int64_t(position) + n_tokens > int64_t(llama_n_ctx(get()))) {
        throw context_full_error("position " + std::to_string(int64_t(position) + n_tokens - 1) +
                " is outside the context of " + std::to_string(llama_n_ctx(get())) + " tokens");
    }
    for (int32_t i = 0; i < n_tokens; ++i) {
        owner->check_token(tokens[i]);
    }
}

// Take the tokens of a batch that failed half-way out of the cache again.
void context::roll_back(const token_batch & batch) {
    std::map<int32_t, int32_t> first;
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const auto it = first.emplace(batch.sequences[i], batch.positions[i]).first;
        it->second = std::min(it->second, batch.positions[i]);
    }
    for (const auto & [sequence, position] : first) {
        llama_memory_seq_rm(llama_get_memory(get()), sequence, position, -1);
    }
}

void context::run(const token_batch & batch, reward_mode mode) {
    std::vector<int32_t>        n_seq_id(size_t(batch.n_tokens), 1);
    std::vector<int32_t>        sequences(batch.sequences, batch.sequences + batch.n_tokens);
    std::vector<llama_seq_id *> seq_id(size_t(batch.n_tokens));
    std::vector<int8_t>         outputs(size_t(batch.n_tokens), 0);

    n_last_outputs = 0;
    last_rows      = nullptr;
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        seq_id[size_t(i)]  = &sequences[size_t(i)];
        outputs[size_t(i)] = batch.outputs != nullptr && batch.outputs[i];
        n_last_outputs    += outputs[size_t(i)];
    }

    const llama_batch native = {
        batch.n_tokens, const_cast<llama_token *>(batch.tokens), nullptr, const_cast<llama_pos *>(batch.positions),
        n_seq_id.data(), seq_id.data(), outputs.data(),
    };

    if (n_last_outputs > n_outputs_max) {
        const int32_t n = n_last_outputs;
        n_last_outputs = 0;
        throw config_error(std::to_string(n) + " tokens marked as outputs, this context was made for at most " +
                std::to_string(n_outputs_max) + ": raise n_outputs_max");
    }
    if (owner->inserted) {
        set_reward_mode(get(), mode);
    }
    take_log_errors();
    was_interrupted = false;

    const int64_t t_start = ggml_time_us();
    const int32_t status  = llama_decode(get(), native);
    llama_synchronize(get());
    seconds += double(ggml_time_us() - t_start)*1e-6;
    n_calls += 1;

    if (status == 0) {
        last_rows = mode == reward_mode::off ? nullptr : reward_rows(get());
        return;
    }
    n_last_outputs = 0;
    if (status == 1) {
        throw context_full_error("the KV cache of " + std::to_string(llama_n_ctx(get())) + " tokens has no room for " +
                std::to_string(batch.n_tokens) + " more");
    }
    if (status != status_refused) {
        roll_back(batch);
    }
    if (was_interrupted) {
        throw interrupt();
    }
    throw engine_error("llama.cpp failed to decode (status " + std::to_string(status) + "): " + take_log_errors());
}

void context::decode(const token_batch & batch, bool rewards) {
    const exclusive claim(busy);
    check_batch(batch);
    run(batch, with_rewards && rewards ? reward_mode::marked : reward_mode::off);
}

std::vector<float> context::score(const int32_t * tokens, int32_t n_tokens, int32_t sequence, int32_t position) {
    const exclusive claim(busy);
    if (!with_rewards) {
        throw config_error("this context gives no rewards: open the model with a sidecar and rewards on");
    }
    check_text(tokens, n_tokens, sequence, position);

    const int32_t n_batch   = int32_t(llama_n_ubatch(get()));
    const int32_t n_rewards = owner->n_rewards();

    std::vector<int32_t> positions(static_cast<size_t>(n_batch));
    std::vector<int32_t> sequences(size_t(n_batch), sequence);
    std::vector<float>   result(size_t(n_tokens)*size_t(n_rewards));

    try {
        for (int32_t i = 0; i < n_tokens; i += n_batch) {
            const int32_t n = std::min(n_batch, n_tokens - i);
            for (int32_t j = 0; j < n; ++j) {
                positions[size_t(j)] = position + i + j;
            }
            const token_batch batch = { tokens + i, positions.data(), sequences.data(), nullptr, n };
            run(batch, reward_mode::all);
            for (int32_t j = 0; j < n; ++j) {
                owner->inserted->rewards(last_rows + size_t(j)*size_t(owner->row_size()),
                        result.data() + size_t(i + j)*size_t(n_rewards));
            }
        }
    } catch (...) { // a text is scored whole or leaves no trace
        llama_memory_seq_rm(llama_get_memory(get()), sequence, position, -1);
        throw;
    }
    last_rows = nullptr;
    return result;
}

void context::check_output_row(int32_t row) const {
    if (row < 0 || row >= n_last_outputs) {
        throw config_error("output row " + std::to_string(row) + ", the last decode gave " +
                std::to_string(n_last_outputs));
    }
}

void context::check_rows() const {
    if (n_last_outputs > 0 && last_rows == nullptr) {
        throw config_error("the last decode gave no rewards");
    }
}

const float * context::logits() const {
    return n_last_outputs > 0 ? llama_get_logits(get()) : nullptr;
}

const float * context::logits_row(int32_t row) const {
    check_output_row(row);
    return logits() + size_t(row)*size_t(llama_vocab_n_tokens(owner->vocab()));
}

std::vector<float> context::rewards() const {
    check_rows();
    const size_t n_rewards = size_t(owner->n_rewards());

    std::vector<float> result(size_t(n_last_outputs)*n_rewards);
    for (size_t i = 0; i < size_t(n_last_outputs); ++i) {
        owner->inserted->rewards(last_rows + i*size_t(owner->row_size()), result.data() + i*n_rewards);
    }
    return result;
}

std::vector<float> context::queries(int32_t head) const {
    const auto & vocabulary = owner->vocabulary(head);
    check_rows();

    std::vector<float> result;
    for (int32_t i = 0; i < n_last_outputs; ++i) {
        const float * query = last_rows + size_t(i)*size_t(owner->row_size()) + vocabulary.first;
        result.insert(result.end(), query, query + vocabulary.rank() + 1);
    }
    return result;
}

std::vector<float> context::vocabulary_scores(int32_t head, int32_t row, const int32_t * candidates, int32_t n) {
    const exclusive claim(busy);

    const auto & vocabulary = owner->vocabulary(head);
    check_output_row(row);
    check_rows();
    if (candidates == nullptr) {
        n = llama_vocab_n_tokens(owner->vocab());
    } else {
        std::for_each(candidates, candidates + n, [&](int32_t token) { owner->check_token(token); });
    }

    std::vector<float> result(static_cast<size_t>(n));
    vocabulary.scores(last_rows + size_t(row)*size_t(owner->row_size()), candidates, n, llama_n_threads(get()), result.data());
    return result;
}

void context::sequence_copy(int32_t source, int32_t target, int32_t begin, int32_t end) {
    const exclusive claim(busy);
    check_sequence(source);
    check_sequence(target);
    llama_memory_seq_cp(llama_get_memory(get()), source, target, begin, end);
}

bool context::sequence_remove(int32_t sequence, int32_t begin, int32_t end) {
    const exclusive claim(busy);
    check_sequence(sequence);
    return llama_memory_seq_rm(llama_get_memory(get()), sequence, begin, end);
}

void context::sequence_keep(int32_t sequence) {
    const exclusive claim(busy);
    check_sequence(sequence);
    llama_memory_seq_keep(llama_get_memory(get()), sequence);
}

int32_t context::sequence_max_position(int32_t sequence) const {
    check_sequence(sequence);
    return llama_memory_seq_pos_max(llama_get_memory(get()), sequence);
}

void context::clear() {
    const exclusive claim(busy);
    llama_memory_clear(llama_get_memory(get()), false); // forgetting the cells is enough: what they held is masked
}

std::vector<std::pair<llama_token, float>> context::top_k(int32_t row, int32_t k) const {
    using candidate = std::pair<llama_token, float>;

    const float * logits  = logits_row(row);
    const int32_t n_vocab = llama_vocab_n_tokens(owner->vocab());
    if (k < 1 || k > n_vocab) {
        throw config_error("top_k of " + std::to_string(k) + ", expected 1 to " + std::to_string(n_vocab));
    }
    const auto better = [](const candidate & a, const candidate & b) {
        return a.second > b.second || (a.second == b.second && a.first < b.first);
    };

    // the k best so far as a heap with the worst on top: most logits fail one comparison
    std::vector<candidate> best;
    best.reserve(size_t(k));
    for (llama_token token = 0; token < n_vocab; ++token) {
        if (best.size() < size_t(k)) {
            best.emplace_back(token, logits[token]);
            std::push_heap(best.begin(), best.end(), better);
        } else if (logits[token] > best.front().second) {
            std::pop_heap(best.begin(), best.end(), better);
            best.back() = { token, logits[token] };
            std::push_heap(best.begin(), best.end(), better);
        }
    }
    std::sort_heap(best.begin(), best.end(), better);
    return best;
}

} // namespace otter
