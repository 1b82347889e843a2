// Batches in.

#include "context.h"

#include "amx.h"
#include "fail.h"
#include "log.h"

#include "bridge/outputs.h"

#include <algorithm>
#include <map>

namespace otter {

// llama_decode found the batch itself wrong and has not touched the cache.
constexpr int32_t status_refused = -1;

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

// Take the tokens of a batch that failed half-way out of the cache again.
static void roll_back(llama_memory_t memory, const token_batch & batch) {
    std::map<int32_t, int32_t> first;
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
        const auto it = first.emplace(batch.sequences[i], batch.positions[i]).first;
        it->second    = std::min(it->second, batch.positions[i]);
    }
    for (const auto & [sequence, position] : first) {
        llama_memory_seq_rm(memory, sequence, position, -1);
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
    const log_errors errors;
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
        roll_back(llama_get_memory(get()), batch);
    }
    if (was_interrupted) {
        throw interrupt();
    }
    throw engine_error("llama.cpp failed to decode (status " + std::to_string(status) + "): " + errors.text());
}

void context::decode(const token_batch & batch, bool rewards) {
    const exclusive claimed = claim();
    check_batch(batch);
    run(batch, with_rewards && rewards ? reward_mode::marked : reward_mode::off);
}

void context::check_gives_rewards() const {
    if (!with_rewards) {
        throw config_error("this context gives no rewards: open the model with a sidecar and rewards on");
    }
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

} // namespace otter
