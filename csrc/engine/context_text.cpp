// Texts of any length: their rewards, and their probabilities under the base.

#include "context.h"

#include "fail.h"

#include <algorithm>
#include <numeric>

namespace otter {

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

} // namespace otter
