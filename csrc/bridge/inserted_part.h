// The inserted tensors of a loaded model and their place among llama.cpp's layers.

#pragma once

#include "architectures.h"
#include "insertion.h"
#include "ops/block_ops.h"

#include "llama-model-loader.h"
#include "llama-model.h"

#include <vector>

namespace otter {

// Tensors of one layer; null where nothing is inserted. Shapes in ggml order (columns first).
struct inserted_layer {
    norm_weights  attn_norm;
    block_weight  attn_qkv;                 // [d+e, n*(g*k' + 2*k')]
    ggml_tensor * attn_q_norm = nullptr;    // [n*g*k'], where a norm reads all heads together
    ggml_tensor * attn_k_norm = nullptr;    // [n*k']
    block_weight  attn_output;              // [n*(H + g*k'), e]
    ggml_tensor * attn_post_norm = nullptr; // [e]
    norm_weights  ffn_norm;
    block_weight  ffn_up;                   // [d+e, 2*f'], gate above up; [d+e, f'] where there is no gate
    block_weight  ffn_down;                 // [f + f', e]; beside experts [f', e]
    ggml_tensor * ffn_post_norm = nullptr;  // [e]

    int32_t cache_layer = -1;   // its layer in the KV cache, L + i
    bool    rotated     = true; // queries and keys get the rotary embedding
};

struct inserted_head_tensors {
    ggml_tensor * weight = nullptr; // [columns, outputs]
    ggml_tensor * bias   = nullptr; // [outputs]
};

struct inserted_part {
    insertion_spec spec;
    feature_set    features; // of the base's architecture

    int32_t n_layer = 0; // L of the base

    ggml_tensor * token_embd = nullptr; // [e, V], state source `table`
    norm_weights  output_norm;

    std::vector<inserted_layer>        layers;
    std::vector<inserted_head_tensors> heads;

    norm_params norm; // outlives every graph: graphs are reused between calls

    inserted_part(insertion_spec what, feature_set of_base) : spec(std::move(what)), features(of_base) {}

    // Append the inserted attention as layers behind the base's, so that the KV cache holds them too.
    void extend_hparams(llama_hparams & hparams);

    // Create the inserted tensors through the loader: mmap, placement and type checks are llama.cpp's own.
    void create_tensors(llama_model_base & model, llama_model_loader & loader);

    // Does any head, or the caller, read h' behind the last layer?
    bool reads_inserted_state() const;

private:
    class tensor_maker;
};

} // namespace otter
