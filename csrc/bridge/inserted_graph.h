// Hangs the inserted blocks onto a base graph while llama.cpp builds it.

#pragma once

#include "inserted_part.h"

#include "llama-graph.h"

namespace otter {

// One graph's worth of building. llama.cpp names each tensor of its graph through a callback; `tap` listens to it and
// adds every inserted block where its inputs appear, so that no activation stays alive longer than in the base.
class inserted_graph : public llm_graph_context {
public:
    inserted_graph(const llama_model & base, const inserted_part & inserted, const llm_graph_params & params);

    void tap(ggml_tensor * cur, const char * name, int il);

    // Call when the base graph is complete.
    void finish();

private:
    const llama_model &   model;
    const inserted_part & part;
    const reward_mode     mode;

    ggml_tensor * state    = nullptr; // h' where the taps have arrived, [e, T]
    ggml_tensor * attn_ins = nullptr; // inserted heads' output of the current layer, [n*g*k', T], until it is in h'
    ggml_tensor * act_ins  = nullptr; // inserted inner activation of the current layer, [f', T]

    ggml_tensor * q_normed    = nullptr; // the base's queries of the current layer, where a norm makes them
    ggml_tensor * post_normed = nullptr; // what the base adds to h next, where a norm makes it, [d, T]

    int n_nodes_with_rewards = 0;

    // queries and keys: the inserted ones are [n, heads, T]
    struct query_key {
        ggml_tensor * q;
        ggml_tensor * k;
    };

    void on_attn_norm(ggml_tensor * cur, int il);
    void on_k_normed(ggml_tensor * cur, int il);
    void on_attn_input(ggml_tensor * y, const query_key & base, int il);
    void on_ffn_inp(ggml_tensor * cur, int il);
    void on_ffn_norm(ggml_tensor * cur, int il);
    void on_ffn_up(ggml_tensor * cur, int il);
    void on_ffn_input(ggml_tensor * y, ggml_tensor * h, int il);
    void on_l_out(ggml_tensor * cur, int il);
    void on_result_norm(ggml_tensor * cur);

    void add_attention(int64_t n_columns, int il);

    ggml_tensor * build_initial_state(ggml_tensor * h);

    // views of the product, made as the base makes its own; `base`: where a norm reads all heads together, the base's
    // queries and keys before it, [n*heads, T]
    query_key     build_query_key(ggml_tensor * qkv, const query_key & base, int il);
    ggml_tensor * build_joint_norm(ggml_tensor * base, ggml_tensor * qkv, int64_t first, ggml_tensor * w, int il);
    ggml_tensor * build_rope(ggml_tensor * cur, int il);
    ggml_tensor * build_inserted_attn(const query_key & qk, ggml_tensor * v, int jl);
    ggml_tensor * build_heads(ggml_tensor * y, ggml_tensor * y_ins);

    // products over joined inputs: one node on the CPU for few tokens, ggml's own operations otherwise
    ggml_tensor * build_norm_mul_mat(const block_weight & w, const norm_input & in, int il);
    ggml_tensor * build_norm_act(const block_weight & w, const norm_input & in, int il);
    ggml_tensor * build_mul_mat_add(
        const block_weight & w, ggml_tensor * a, ggml_tensor * b /* or null */, const residual_input & to, int il);
    ggml_tensor * build_norm_input(const norm_input & in, int il);
    ggml_tensor * build_partial_norm(const norm_input & in, int il);
    ggml_tensor * build_concat_mul_mat(ggml_tensor * w, ggml_tensor * a, ggml_tensor * b, int il);

    // h', to which a sub-layer's output is added, and its norm before that
    residual_input to_residual(ggml_tensor * post_norm) const;

    bool on_cpu(int il) const;
    bool fused(const ggml_tensor * w, int64_t n_columns, int il, int64_t parts = 1) const;

    ggml_tensor * input_of(const ggml_tensor * weight) const;
    ggml_tensor * gather_outputs(ggml_tensor * cur, int64_t n_columns);

    template <class input> input * find_input() const;
};

reward_mode mode_of(const llama_cparams & cparams);

} // namespace otter
