// The sequences in the KV cache.

#include "context.h"

#include "fail.h"
#include "log.h"

#include "bridge/memory.h"

#include <algorithm>
#include <limits>

namespace otter {

void context::note_if_empty(int32_t sequence) {
    if (llama_memory_seq_pos_max(llama_get_memory(get()), sequence) < 0) {
        sharing.emptied(sequence);
    }
}

void context::sequence_copy(int32_t source, int32_t target, int32_t begin, int32_t end) {
    const exclusive claimed = claim();
    check_sequence(source);
    check_sequence(target);
    llama_memory_seq_cp(llama_get_memory(get()), source, target, begin, end);
    sharing.copied(source, target);
}

bool context::sequence_remove(int32_t sequence, int32_t begin, int32_t end) {
    const exclusive claimed = claim();
    check_sequence(sequence);
    const bool to_the_end = end < 0 || end > llama_memory_seq_pos_max(llama_get_memory(get()), sequence);
    if (begin > 0 && to_the_end && window_lost(get(), sequence, begin)) {
        return false;
    }
    const bool removed = llama_memory_seq_rm(llama_get_memory(get()), sequence, begin, end);
    note_if_empty(sequence);
    return removed;
}

void context::sequence_keep(int32_t sequence) {
    const exclusive claimed = claim();
    check_sequence(sequence);
    llama_memory_seq_keep(llama_get_memory(get()), sequence);
    sharing.reset();
}

int32_t context::sequence_max_position(int32_t sequence) const {
    const exclusive claimed = claim();
    check_sequence(sequence);
    return llama_memory_seq_pos_max(llama_get_memory(get()), sequence);
}

void context::clear() {
    const exclusive claimed = claim();
    llama_memory_clear(llama_get_memory(get()), false); // forgetting the cells is enough: what they held is masked
    sharing.reset();
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
    for (int32_t other = 0; other < int32_t(llama_n_seq_max(get())); ++other) {
        if (other != sequence && sharing.shared(other, sequence) &&
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
    const log_errors errors;
    llama_memory_seq_add(memory, sequence, first, last + 1, delta);
    llama_set_abort_callback(get(), nullptr, nullptr); // keys half rotated are of no use to anybody
    apply_shift(get());
    llama_set_abort_callback(get(), poll_abort, this);
    if (!errors.empty()) {
        llama_memory_clear(memory, false);
        throw engine_error("llama.cpp failed to shift, the context is empty: " + errors.text());
    }
}

} // namespace otter
