// What is inserted into a base model, and the few calls that reach it. No llama.cpp header is needed to read this
// file, and no private one outside this folder: everything that depends on llama.cpp's internals stands beside it.

#pragma once

#include "head_kinds.h"

#include "llama.h"

#include <cstdint>
#include <string>
#include <vector>

namespace otter {

enum class head_input { inserted, base, both };

struct inserted_head {
    std::string       name;
    const head_kind * kind     = head_kinds;
    head_input        input    = head_input::inserted;
    int32_t           n_labels = 1;
    int32_t           rank     = 0; // columns of the token table; 0 = none

    int32_t n_outputs() const { return kind->n_outputs(n_labels, rank); } // floats in a row
    int32_t n_rewards() const { return kind->output == head_output::rewards ? n_labels : 0; }
};

// Mirrors otter_gguf.config.InsertionConfig (symbols: docs/method.md).
struct insertion_spec {
    int32_t width         = 0;     // e
    bool    state_table   = false; // h'_0 from a table [V, e], not from a slice of the embedded state
    int32_t state_offset  = 0;     // first channel of the slice
    bool    hidden_states = false; // rows carry the final normed h' and h behind the heads' outputs

    std::vector<int32_t>       n_head_kv; // k' of each layer
    std::vector<int32_t>       n_ff;      // f' of each layer
    std::vector<inserted_head> heads;

    int32_t n_rewards() const;      // of all heads
    int32_t n_head_outputs() const; // of all heads; they stand first in a row, in the heads' order
    int32_t n_cache_layers() const; // layers with inserted attention, each an extra layer of the KV cache
    int32_t row_size(int32_t n_embd) const;
};

// What the graphs of a context compute beyond the base's.
enum class reward_mode {
    off,    // inserted blocks fill their KV cache, no head is read
    marked, // a row for each token marked as output, beside its logits
    all,    // a row for every token, the output projection left out
};

// Load a base with its inserted part. `sidecar` empty: the inserted tensors stand in the base's file (merged).
// Throws std::exception; llama.cpp's reasons are in its log.
llama_model * load_inserted_model(
    const std::string & path, const std::string & sidecar, const insertion_spec & spec, llama_model_params params);

void set_reward_mode(llama_context * ctx, reward_mode mode);

// Rows of the last decode, row_size floats each, in batch order.
const float * reward_rows(llama_context * ctx);

// The token table [rank, V] of a head whose kind has one, in plain rows that the CPU can read.
const ggml_tensor * token_table(const llama_model * model, const inserted_head & head);

// Layers of the base alone (llama_model_n_layer also counts the inserted cache layers).
int32_t base_n_layer(const llama_model * model, const insertion_spec & spec);

} // namespace otter
