// The inserted tensors of a loaded model and their place among llama.cpp's layers.

#pragma once

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

// What an architecture does otherwise than Llama and neither its tensors nor its hyper-parameters tell.
struct block_traits {
    bool steps_without_rope = false; // each n_no_rope_layer_step-th layer attends without rotary embedding
    bool gelu               = false; // the FFN's activation is GELU instead of SiLU
    bool gated              = true;  // the FFN has a gate beside its up map
    bool layer_norm         = false; // norms are LayerNorm with biases instead of RMSNorm
    bool output_biases      = false; // maps back to the residual have biases
    bool joint_head_norms   = false; // queries (and keys) are normed with one statistic for all heads
    bool no_ffn_norm        = false; // the FFN reads attn_norm, beside attention, which may have attn_norm_2 instead
};

struct inserted_head_tensors {
    ggml_tensor * weight = nullptr; // [columns, outputs]
    ggml_tensor * bias   = nullptr; // [outputs]
};

struct inserted_part {
    insertion_spec spec;
    block_traits   traits;

    int32_t n_layer = 0; // L of the base

    ggml_tensor * token_embd = nullptr; // [e, V], state source `table`
    norm_weights  output_norm;

    std::vector<inserted_layer>        layers;
    std::vector<inserted_head_tensors> heads;

    norm_params norm; // outlives every graph: graphs are reused between calls

    inserted_part(insertion_spec what, block_traits how) : spec(std::move(what)), traits(how) {}

    // Append the inserted attention as layers behind the base's, so that the KV cache holds them too.
    void extend_hparams(llama_hparams & hparams);

    // Create the inserted tensors through the loader: mmap, placement and type checks are llama.cpp's own.
    void create_tensors(llama_model_base & model, llama_model_loader & loader);

    // Does any head, or the caller, read h' behind the last layer?
    bool reads_inserted_state() const;
};

} // namespace otter
