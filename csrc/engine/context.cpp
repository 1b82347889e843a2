#include "context.h"

#include "amx.h"
#include "fail.h"
#include "log.h"
#include "saved_state.h"

#include "bridge/memory.h"
#include "bridge/outputs.h"

#include <algorithm>
#include <limits>
#include <map>
#include <numeric>
#include <thread>

namespace otter {

namespace {

// llama_decode found the batch itself wrong and has not touched the cache.
constexpr int32_t status_refused = -1;

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
        (!log.empty()             ? log
                : !reason.empty() ? reason
                                  : "no reason given"));
}

// What a saved sequence must find as it left it.
std::string describe_geometry(const model & owner, const context_options & options) {
    const llama_model * handle = owner.get();

    std::string text = OTTER_LLAMA_CPP_COMMIT + std::string(" ") + owner.description();
    const auto  add  = [&text](uint64_t number) { text += " " + std::to_string(number); };
    add(llama_model_n_params(handle));
    add(llama_model_size(handle));
    add(uint64_t(llama_vocab_n_tokens(owner.vocab())));
    add(uint64_t(options.type_k));
    add(uint64_t(options.type_v));
    if (owner.inserted) {
        const auto & spec = owner.inserted->spec;
        add(uint64_t(spec.width));
        add(uint64_t(spec.state_table));
        add(uint64_t(spec.state_offset));
        std::for_each(spec.n_head_kv.begin(), spec.n_head_kv.end(), add);
        std::for_each(spec.n_ff.begin(), spec.n_ff.end(), add);
    }
    return text;
}

} // namespace

context::context(std::shared_ptr<const model> model_owner, const context_options & options) :
    owner(std::move(model_owner)),
    with_rewards(options.rewards && owner->inserted.has_value()),
    n_outputs_max(int32_t(effective_outputs_max(options))),
    geometry(describe_geometry(*owner, options)),
    family(checked(options).n_seq_max),
    n_families(int32_t(options.n_seq_max)),
    interrupted(options.interrupted),
    handle(create(*owner, options), llama_free),
    shiftable(otter::can_shift(get(), options.type_k)) {
    set_reward_mode(get(), with_rewards ? reward_mode::marked : reward_mode::off);
    llama_set_abort_callback(get(), poll_abort, this);
    std::iota(family.begin(), family.end(), 0);
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

void context::check_batch(const token_batch & batch) const {
    const int32_t n_batch = int32_t(llama_n_batch(get()));
    if (batch.n_tokens < 1 || batch.n_tokens > n_batch) {
        throw config_error(
            "a batch of " + std::to_string(batch.n_tokens) + " tokens, expected 1 to n_batch = " + std::to_string(n_batch));
    }
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        owner->check_token(batch.tokens[i]);
        check_sequence(batch.sequences[i]);
        check_position(batch.positions[i]);
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

void context::check_text(const int32_t * tokens, int32_t n_tokens, int32_t sequence, int32_t position) const {
    check_sequence(sequence);
    const int32_t next = llama_memory_seq_pos_max(llama_get_memory(get()), sequence) + 1;
    if (position < 0 || (next > 0 && position != next)) {
        throw config_error("position " + std::to_string(position) + " in sequence " + std::to_string(sequence) + ", expected " +
            (next > 0 ? "the next one, " : "0 or more; usually ") + std::to_string(next));
    }
    if (n_tokens > 0) {
        check_position(int64_t(position) + n_tokens - 1);
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
        it->second    = std::min(it->second, batch.positions[i]);
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
        n_last_outputs += outputs[size_t(i)];
    }

    const llama_batch native = {
        batch.n_tokens,
        const_cast<llama_token *>(batch.tokens),
        nullptr,
        const_cast<llama_pos *>(batch.positions),
        n_seq_id.data(),
        seq_id.data(),
        outputs.data(),
    };

    if (n_last_outputs > n_outputs_max) {
        const int32_t n = n_last_outputs;
        n_last_outputs  = 0;
        throw config_error(std::to_string(n) + " tokens marked as outputs, this context was made for at most " +
            std::to_string(n_outputs_max) + ": raise n_outputs_max");
    }
    if (owner->inserted) {
        set_reward_mode(get(), mode);
    }
    if (const auto views = viewed.lock()) {
        if (auto memory = take_outputs(get(), n_last_outputs, mode)) {
            views->outlived.push_back(std::move(memory));
        }
    }
    take_log_errors();
    was_interrupted = false;

    const int64_t t_start = ggml_time_us();
    const int32_t status  = [&] {
        const amx_tiles tiles;
        const int32_t   result = llama_decode(get(), native);
        llama_synchronize(get());
        return result;
    }();
    seconds += double(ggml_time_us() - t_start) * 1e-6;
    n_calls += 1;
    n_fed += batch.n_tokens;

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
    const exclusive claimed = claim();
    check_batch(batch);
    run(batch, with_rewards && rewards ? reward_mode::marked : reward_mode::off);
}

// Feed a text in chunks of one batch each. read_rows(i, n) finds the outputs of the text's tokens [i, i + n): a row for
// each token in mode `all`, else logits for each but the text's last one.
template <class row_reader>
void context::feed_text(const int32_t * tokens, int32_t n_tokens, int32_t sequence, int32_t position, int32_t n_chunk,
    reward_mode mode, const row_reader & read_rows) {
    const auto n_max = size_t(n_chunk);

    std::vector<int32_t> positions(n_max);
    std::vector<int32_t> sequences(n_max, sequence);
    std::vector<char>    outputs(n_max, true);
    static_assert(sizeof(bool) == sizeof(char), "a vector of bool has no array");

    try {
        for (int32_t i = 0; i < n_tokens; i += n_chunk) {
            const int32_t n = std::min(n_chunk, n_tokens - i);
            std::iota(positions.begin(), positions.end(), position + i);
            outputs[size_t(n) - 1] = i + n < n_tokens;
            const bool * marks     = mode == reward_mode::all ? nullptr : reinterpret_cast<const bool *>(outputs.data());
            run({ tokens + i, positions.data(), sequences.data(), marks, n }, mode);
            read_rows(i, n);
        }
    } catch (...) { // a text is fed whole or leaves no trace
        llama_memory_seq_rm(llama_get_memory(get()), sequence, position, -1);
        throw;
    }
    n_last_outputs = 0;
    last_rows      = nullptr;
}

std::vector<float> context::decode_rewards(const token_batch & batch) {
    const exclusive claimed = claim();
    check_gives_rewards();
    check_batch(batch);
    const int32_t most = int32_t(llama_n_ubatch(get()));
    if (batch.n_tokens > most) {
        throw config_error("a batch of " + std::to_string(batch.n_tokens) +
            " tokens for rewards alone, expected at most n_ubatch = " + std::to_string(most));
    }
    run({ batch.tokens, batch.positions, batch.sequences, nullptr, batch.n_tokens }, reward_mode::all);

    const size_t       n_rewards = size_t(owner->n_rewards());
    std::vector<float> result(size_t(batch.n_tokens) * n_rewards);
    for (size_t i = 0; i < size_t(batch.n_tokens); ++i) {
        owner->inserted->rewards(last_rows + i * size_t(owner->row_size()), result.data() + i * n_rewards);
    }
    last_rows = nullptr;
    return result;
}

std::vector<float> context::score(const int32_t * tokens, int32_t n_tokens, int32_t sequence, int32_t position) {
    const exclusive claimed = claim();
    check_gives_rewards();
    check_text(tokens, n_tokens, sequence, position);

    const int32_t      n_rewards = owner->n_rewards();
    std::vector<float> result(size_t(n_tokens) * size_t(n_rewards));
    feed_text(
        tokens, n_tokens, sequence, position, int32_t(llama_n_ubatch(get())), reward_mode::all, [&](int32_t i, int32_t n) {
            for (int32_t j = 0; j < n; ++j) {
                owner->inserted->rewards(
                    last_rows + size_t(j) * size_t(owner->row_size()), result.data() + size_t(i + j) * size_t(n_rewards));
            }
        });
    return result;
}

std::vector<float> context::log_probabilities(const int32_t * tokens, int32_t n_tokens, int32_t sequence, int32_t position) {
    const exclusive claimed = claim();
    check_text(tokens, n_tokens, sequence, position);

    const int32_t      n_vocab = llama_vocab_n_tokens(owner->vocab());
    const int32_t      n_chunk = std::min(int32_t(llama_n_ubatch(get())), n_outputs_max);
    std::vector<float> result(size_t(std::max(0, n_tokens - 1)));
    feed_text(tokens, n_tokens, sequence, position, n_chunk, reward_mode::off, [&](int32_t i, int32_t n) {
        for (int32_t j = i; j < std::min(i + n, n_tokens - 1); ++j) {
            const float * row = logits_row(j - i);
            result[size_t(j)] = float(double(row[tokens[j + 1]]) - log_sum_exp(row, n_vocab));
        }
    });
    return result;
}

void context::check_gives_rewards() const {
    if (!with_rewards) {
        throw config_error("this context gives no rewards: open the model with a sidecar and rewards on");
    }
}

void context::check_output_row(int32_t row) const {
    if (row < 0 || row >= n_last_outputs) {
        throw config_error("output row " + std::to_string(row) + ", the last decode gave " + std::to_string(n_last_outputs));
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

std::shared_ptr<const void> context::view() {
    auto memory = viewed.lock();
    if (memory == nullptr) {
        memory = std::make_shared<viewed_memory>(viewed_memory { shared_from_this(), {} });
        viewed = memory;
    }
    return memory;
}

const float * context::logits_row(int32_t row) const {
    check_output_row(row);
    return logits() + size_t(row) * size_t(llama_vocab_n_tokens(owner->vocab()));
}

std::vector<float> context::rewards() const {
    const exclusive claimed = claim();
    check_rows();
    const size_t n_rewards = size_t(owner->n_rewards());

    std::vector<float> result(size_t(n_last_outputs) * n_rewards);
    for (size_t i = 0; i < size_t(n_last_outputs); ++i) {
        owner->inserted->rewards(last_rows + i * size_t(owner->row_size()), result.data() + i * n_rewards);
    }
    return result;
}

std::vector<float> context::queries(int32_t head) const {
    const exclusive claimed    = claim();
    const auto &    vocabulary = owner->vocabulary(head);
    check_rows();

    std::vector<float> result;
    for (int32_t i = 0; i < n_last_outputs; ++i) {
        const float * query = last_rows + size_t(i) * size_t(owner->row_size()) + vocabulary.first;
        result.insert(result.end(), query, query + vocabulary.rank() + 1);
    }
    return result;
}

std::vector<float> context::vocabulary_scores(int32_t head, int32_t row, const int32_t * candidates, int32_t n) {
    const exclusive claimed = claim();

    const auto & vocabulary = owner->vocabulary(head);
    check_output_row(row);
    check_rows();
    if (candidates == nullptr) {
        n = llama_vocab_n_tokens(owner->vocab());
    } else {
        std::for_each(candidates, candidates + n, [&](int32_t token) { owner->check_token(token); });
    }

    std::vector<float> result(static_cast<size_t>(n));
    vocabulary.scores(
        last_rows + size_t(row) * size_t(owner->row_size()), candidates, n, llama_n_threads(get()), result.data());
    return result;
}

// A sequence that holds nothing shares nothing.
void context::leave_family(int32_t sequence) {
    if (llama_memory_seq_pos_max(llama_get_memory(get()), sequence) < 0) {
        family[size_t(sequence)] = n_families++;
    }
}

void context::sequence_copy(int32_t source, int32_t target, int32_t begin, int32_t end) {
    const exclusive claimed = claim();
    check_sequence(source);
    check_sequence(target);
    llama_memory_seq_cp(llama_get_memory(get()), source, target, begin, end);
    std::replace(family.begin(), family.end(), int32_t(family[size_t(target)]), int32_t(family[size_t(source)]));
}

bool context::sequence_remove(int32_t sequence, int32_t begin, int32_t end) {
    const exclusive claimed = claim();
    check_sequence(sequence);
    const bool to_the_end = end < 0 || end > llama_memory_seq_pos_max(llama_get_memory(get()), sequence);
    if (begin > 0 && to_the_end && window_lost(get(), sequence, begin)) {
        return false;
    }
    const bool removed = llama_memory_seq_rm(llama_get_memory(get()), sequence, begin, end);
    leave_family(sequence);
    return removed;
}

void context::sequence_keep(int32_t sequence) {
    const exclusive claimed = claim();
    check_sequence(sequence);
    llama_memory_seq_keep(llama_get_memory(get()), sequence);
    std::iota(family.begin(), family.end(), 0);
}

int32_t context::sequence_max_position(int32_t sequence) const {
    const exclusive claimed = claim();
    check_sequence(sequence);
    return llama_memory_seq_pos_max(llama_get_memory(get()), sequence);
}

void context::clear() {
    const exclusive claimed = claim();
    llama_memory_clear(llama_get_memory(get()), false); // forgetting the cells is enough: what they held is masked
    std::iota(family.begin(), family.end(), 0);
}

// Positions first .. last are to be moved.
void context::check_shift(int32_t sequence, int32_t first, int32_t last, int32_t delta) const {
    if (!shiftable) {
        throw config_error("llama.cpp cannot move positions in the KV cache of this model and cache type (type_k)");
    }
    if (first + int64_t(delta) < 0 || last + int64_t(delta) >= int64_t(llama_n_ctx(get()))) {
        throw config_error("a shift by " + std::to_string(delta) + " takes positions " + std::to_string(first) + " to " +
            std::to_string(last) + " out of the context of " + std::to_string(llama_n_ctx(get())) + " tokens");
    }
    for (int32_t other = 0; other < int32_t(family.size()); ++other) {
        if (other != sequence && family[size_t(other)] == family[size_t(sequence)] &&
            llama_memory_seq_pos_max(llama_get_memory(get()), other) >= 0) {
            throw config_error("sequence " + std::to_string(sequence) + " shares its tokens with sequence " +
                std::to_string(other) + ", which a shift would move too: remove one first");
        }
    }
}

void context::sequence_shift(int32_t sequence, int32_t begin, int32_t end, int32_t delta) {
    const exclusive claimed = claim();
    check_sequence(sequence);
    const auto    memory = llama_get_memory(get());
    const int32_t first  = std::max(begin, llama_memory_seq_pos_min(memory, sequence));
    const int32_t last =
        std::min(end < 0 ? std::numeric_limits<int32_t>::max() : end - 1, llama_memory_seq_pos_max(memory, sequence));
    if (first < 0 || first > last || delta == 0) {
        return;
    }
    check_shift(sequence, first, last, delta);

    n_last_outputs = 0;
    last_rows      = nullptr;
    take_log_errors();
    llama_memory_seq_add(memory, sequence, first, last + 1, delta);
    llama_set_abort_callback(get(), nullptr, nullptr); // keys half rotated are of no use to anybody
    apply_shift(get());
    llama_set_abort_callback(get(), poll_abort, this);
    const std::string log = take_log_errors();
    if (!log.empty()) {
        llama_memory_clear(memory, false);
        throw engine_error("llama.cpp failed to shift, the context is empty: " + log);
    }
}

std::vector<uint8_t> context::save_sequence(int32_t sequence) {
    const exclusive claimed = claim();
    check_sequence(sequence);
    take_log_errors();
    std::vector<uint8_t> data(state_header_size + llama_state_seq_get_size(get(), sequence));
    const size_t         size = data.size() - state_header_size;
    if (size == 0 || llama_state_seq_get_data(get(), data.data() + state_header_size, size, sequence) != size) {
        throw engine_error("llama.cpp cannot save sequence " + std::to_string(sequence) + ": " + take_log_errors());
    }
    write_state_header(data, geometry);
    return data;
}

void context::load_sequence(const uint8_t * data, size_t size, int32_t sequence) {
    const exclusive claimed = claim();
    check_sequence(sequence);
    const auto memory = llama_get_memory(get());
    llama_memory_seq_rm(memory, sequence, -1, -1);
    leave_family(sequence);
    check_state_header(data, size, geometry);

    take_log_errors();
    size -= state_header_size;
    const size_t n_read = llama_state_seq_set_data(get(), data + state_header_size, size, sequence);
    if (n_read == size && llama_memory_seq_pos_max(memory, sequence) < int32_t(llama_n_ctx(get()))) {
        return;
    }
    llama_memory_seq_rm(memory, sequence, -1, -1);
    const std::string log = take_log_errors();
    if (n_read == size || log.find("cells in kv cache") != std::string::npos) {
        throw context_full_error("the context of " + std::to_string(llama_n_ctx(get())) +
            " tokens has no room for the saved sequence: raise n_ctx (-c)");
    }
    throw config_error("llama.cpp cannot load the saved state: " + log);
}

std::vector<candidate> context::top_k(int32_t row, int32_t k) const {
    const exclusive claimed = claim();

    const float * logits  = logits_row(row);
    const int32_t n_vocab = llama_vocab_n_tokens(owner->vocab());
    check_k(k, n_vocab);
    return best_tokens(logits, nullptr, n_vocab, k);
}

} // namespace otter
