// What the last decode gave.

#include "context.h"

#include "fail.h"

#include <algorithm>

namespace otter {

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

const float * context::logits_row(int32_t row) const {
    check_output_row(row);
    return logits() + size_t(row) * size_t(llama_vocab_n_tokens(owner->vocab()));
}

std::shared_ptr<const void> context::view() {
    auto memory = viewed.lock();
    if (memory == nullptr) {
        memory = std::make_shared<viewed_memory>(viewed_memory { shared_from_this(), {} });
        viewed = memory;
    }
    return memory;
}

std::vector<candidate> context::top_k(int32_t row, int32_t k) const {
    const exclusive claimed = claim();

    const float * logits  = logits_row(row);
    const int32_t n_vocab = llama_vocab_n_tokens(owner->vocab());
    check_k(k, n_vocab);
    return best_tokens(logits, nullptr, n_vocab, k);
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

} // namespace otter
