// One KV cache with its compute buffers: batches in, logits and rewards out.

#pragma once

#include "cell_sharing.h"
#include "exclusive.h"
#include "logits.h"
#include "model.h"
#include "watch.h"

#include <atomic>
#include <memory>
#include <string>
#include <vector>

namespace otter {

struct context_options {
    uint32_t  n_ctx           = 512;
    uint32_t  n_batch         = 2048;
    uint32_t  n_ubatch        = 512;
    uint32_t  n_seq_max       = 1;
    uint32_t  n_outputs_max   = 0; // tokens of a batch that may be marked as outputs; 0 = 64, or n_seq_max if more
    int32_t   n_threads       = 0; // 0 = all cores
    int32_t   n_threads_batch = 0;
    ggml_type type_k          = GGML_TYPE_F16;
    ggml_type type_v          = GGML_TYPE_F16;
    bool      offload_kqv     = true;
    bool      rewards         = true;

    llama_flash_attn_type flash_attn = LLAMA_FLASH_ATTN_TYPE_AUTO;

    // Asked now and then during a computation, from the thread that called decode.
    stop_function interrupted;
};

// One token a row: token, position, sequence, output wanted?
struct token_batch {
    const int32_t * tokens;
    const int32_t * positions;
    const int32_t * sequences;
    const bool *    outputs;
    int32_t         n_tokens;
};

class context : public std::enable_shared_from_this<context> {
public:
    context(std::shared_ptr<const model> owner, const context_options & options);

    context(const context &)             = delete;
    context & operator=(const context &) = delete;

    // What reads logits() or rows() holds this meanwhile: a decode in another thread would move them. Every other call
    // takes it by itself.
    exclusive claim() const { return { busy, "context" }; }

    // Logits and rewards of the tokens marked as outputs are kept until the next call. A decode that is interrupted
    // leaves the cache as it was.
    void decode(const token_batch & batch, bool rewards);

    // Rewards of a batch of at most n_ubatch tokens, [n_tokens, n_rewards], without the output projection: no logits.
    std::vector<float> decode_rewards(const token_batch & batch);

    // The same for a text of any length in one sequence.
    std::vector<float> score(const int32_t * tokens, int32_t n_tokens, int32_t sequence, int32_t position);

    // ln p(tokens[i + 1] | text so far, tokens[..i]) of the base, n_tokens - 1 of them.
    std::vector<float> log_probabilities(const int32_t * tokens, int32_t n_tokens, int32_t sequence, int32_t position);

    const float *      logits() const;
    const float *      logits_row(int32_t row) const;
    std::vector<float> rewards() const;                    // [n_outputs, n_rewards], calibrated
    const float *      rows() const { return last_rows; } // [n_outputs, row_size], raw

    // Of a vocabulary head, counted among these alone: the raw queries, [n_outputs, rank + 1], and the calibrated
    // scores of next tokens after the token of an output row: of n candidates, or of all (null: n is ignored).
    std::vector<float> queries(int32_t head) const;
    std::vector<float> vocabulary_scores(int32_t head, int32_t row, const int32_t * candidates, int32_t n);

    int32_t n_outputs() const { return n_last_outputs; }

    void sequence_copy(int32_t source, int32_t target, int32_t begin, int32_t end);
    // False, and nothing is removed: llama.cpp cannot, or layers with a window could not go on at begin.
    bool    sequence_remove(int32_t sequence, int32_t begin, int32_t end);
    void    sequence_keep(int32_t sequence);
    int32_t sequence_max_position(int32_t sequence) const;
    void    clear();

    // Move the tokens at positions [begin, end) of a sequence by delta, their keys with them. The last decode's outputs
    // are gone then. What stands where they go must have been removed. ConfigError unless can_shift.
    bool can_shift() const { return shiftable; }
    void sequence_shift(int32_t sequence, int32_t begin, int32_t end, int32_t delta);

    // A sequence's cells behind a header. After a load that failed the sequence is empty.
    std::vector<uint8_t> save_sequence(int32_t sequence);
    void                 load_sequence(const uint8_t * data, size_t size, int32_t sequence);

    // What a view of logits() holds: the memory that it reads. A decode may write new logits there; one that needs more
    // room leaves the old ones, and takes other memory. Not to be called without a claim.
    std::shared_ptr<const void> view();

    // Highest logits of a row, best first; equal logits: lower token first.
    std::vector<candidate> top_k(int32_t row, int32_t k) const;

    llama_context * get() const { return handle.get(); }

    const std::shared_ptr<const model> owner;

    double  seconds = 0.0; // inside llama_decode
    int64_t n_calls = 0;
    int64_t n_fed   = 0; // tokens of them

private:
    const bool        with_rewards;
    const int32_t     n_outputs_max;
    const std::string geometry; // of a saved sequence

    cell_sharing sharing;

    stop_function interrupted;

    bool     was_interrupted = false;
    unsigned n_abort_polls   = 0;
    int64_t  t_abort_poll_us = 0;

    std::unique_ptr<llama_context, decltype(&llama_free)> handle;
    const bool                                            shiftable;

    mutable std::atomic<bool> busy { false };

    // Of all views that live at a time.
    struct viewed_memory {
        std::shared_ptr<const context>     owner;
        std::vector<std::shared_ptr<void>> outlived;
    };
    std::weak_ptr<viewed_memory> viewed;

    int32_t       n_last_outputs = 0;
    const float * last_rows      = nullptr;

    const live_count<context> counted;

    static bool poll_abort(void * self);

    void run(const token_batch & batch, reward_mode mode);

    template <class row_reader>
    void feed_text(const int32_t * tokens, int32_t n_tokens, int32_t sequence, int32_t position, int32_t n_chunk,
        reward_mode mode, const row_reader & read_rows);

    void note_if_empty(int32_t sequence); // that shares nothing then
    void check_shift(int32_t sequence, int32_t first, int32_t last, int32_t delta) const;
    void check_batch(const token_batch & batch) const;
    void check_sequence(int32_t sequence) const;
    void check_position(int64_t position) const;
    void check_text(const int32_t * tokens, int32_t n_tokens, int32_t sequence, int32_t position) const;
    void check_output_row(int32_t row) const;
    void check_rows() const;
    void check_gives_rewards() const;
};

} // namespace otter
