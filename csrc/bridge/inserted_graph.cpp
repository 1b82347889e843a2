#include "inserted_graph.h"

#include "ggml-impl.h" // ggml_cgraph: the output projection's nodes are taken off the end of the graph

#include <cmath>
#include <cstring>

namespace otter {

// Up to this many tokens an inserted product runs as one fused node; beyond, ggml's matrix kernels are faster.
static constexpr int64_t max_fused_tokens = 4;

reward_mode mode_of(const llama_cparams & cparams) {
    if (!cparams.embeddings_nextn) {
        return reward_mode::off;
    }
    return cparams.embeddings_nextn_masked ? reward_mode::marked : reward_mode::all;
}

inserted_graph::inserted_graph(const llama_model & base, const inserted_part & inserted, const llm_graph_params & params) :
    llm_graph_context(params),
    model(base),
    part(inserted),
    mode(mode_of(params.cparams)) {}

void inserted_graph::tap(ggml_tensor * cur, const char * name, int il) {
    if (part.spec.width > 0 && il >= 0 && il < part.n_layer) {
        // clang-format off
        if (strcmp(name, "attn_norm"  ) == 0) { on_attn_norm(cur, il); }
        if (strcmp(name, "attn_norm_2") == 0) { on_attn_input(cur, {}, il); }
        if (strcmp(name, "Qcur_normed") == 0) { q_normed = cur;        }
        if (strcmp(name, "Kcur_normed") == 0) { on_k_normed (cur, il); }
        if (strcmp(name, "ffn_inp"    ) == 0) { on_ffn_inp  (cur, il); }
        if (strcmp(name, "sa_out"     ) == 0) { on_ffn_inp  (cur, il); } // Gemma's name of it
        if (strcmp(name, "ffn_norm"   ) == 0) { on_ffn_norm (cur, il); }
        if (strcmp(name, "ffn_up"     ) == 0) { on_ffn_up   (cur, il); }
        if (strcmp(name, "l_out"      ) == 0) { on_l_out    (cur, il); }
        // clang-format on
    }
    if (strcmp(name, "attn_post_norm") == 0 || strcmp(name, "ffn_post_norm") == 0) { // some without their layer
        post_normed = cur;
    }
    if (strcmp(name, "result_norm") == 0) {
        on_result_norm(cur);
    }
}

// y = w * (h / rms(h)), or w * ((h - mean(h)) / std(h)) + b: the norm node's own source is what it
// norms, such as the residual state.
static ggml_tensor * normed_by(const ggml_tensor * normed) {
    const ggml_tensor * scaled = normed->op == GGML_OP_ADD ? normed->src[0] : normed;
    const ggml_tensor * norm   = scaled->op == GGML_OP_MUL ? scaled->src[0] : scaled;
    GGML_ASSERT(norm->op == GGML_OP_RMS_NORM || norm->op == GGML_OP_NORM);
    return norm->src[0];
}

// The input of the product that something is made of, by a bias or a cut out of a fused product at most.
static ggml_tensor * product_input(const ggml_tensor * cur) {
    while (cur->op != GGML_OP_MUL_MAT) {
        cur = cur->src[0];
        GGML_ASSERT(cur != nullptr);
    }
    return cur->src[1];
}

// Heads of n channels, stacked in the rows of a product: [n, n_heads, T].
static ggml_tensor * view_heads(ggml_context * ctx, ggml_tensor * product, int64_t n, int64_t first, int64_t n_heads) {
    const size_t size = n * sizeof(float);
    return ggml_view_3d(ctx, product, n, n_heads, product->ne[1], size, product->nb[1], first * size);
}

void inserted_graph::on_attn_norm(ggml_tensor * y, int il) {
    const bool of_ffn = model.layers[il].attn_norm_2 != nullptr; // attention has the other one
    if (!part.features.has(joint_head_norms) && !of_ffn) {
        on_attn_input(y, {}, il);
    }
}

// Norms over all heads take their statistics from the base's, so these must be there.
void inserted_graph::on_k_normed(ggml_tensor * k_normed, int il) {
    if (part.features.has(joint_head_norms)) {
        const query_key base = { normed_by(q_normed), normed_by(k_normed) };
        on_attn_input(product_input(base.q), base, il);
    }
}

// y: what the base's queries are made of, its normed h, or h itself where there is no norm.
void inserted_graph::on_attn_input(ggml_tensor * y, const query_key & base, int il) {
    ggml_tensor * h = model.layers[il].attn_norm == nullptr ? y : normed_by(y);
    if (il == 0) {
        state = build_initial_state(h);
    }

    const auto & layer = part.layers[il];
    attn_ins           = nullptr;
    if (layer.attn_qkv.tensor == nullptr) {
        return;
    }

    const int64_t n_kv    = part.spec.n_head_kv[il];
    const int64_t n_query = model.hparams.n_head(layer.cache_layer);

    ggml_tensor * qkv = build_norm_mul_mat(layer.attn_qkv, { y, h, state, layer.attn_norm }, il);
    cb(qkv, "otter_qkv", il);

    const query_key qk = build_query_key(qkv, base, il);

    ggml_tensor * v = view_heads(ctx0, qkv, n_embd_head_k, n_query + n_kv, n_kv);

    attn_ins = build_inserted_attn(qk, v, layer.cache_layer);
    ggml_build_forward_expand(gf, attn_ins);
}

void inserted_graph::on_ffn_inp(ggml_tensor * h, int il) {
    ggml_build_forward_expand(gf, h);
    add_attention(h->ne[1], il);
    if (model.layers[il].ffn_norm == nullptr) {
        on_ffn_input(h, h, il);
    }
}

void inserted_graph::add_attention(int64_t n_columns, int il) {
    const auto & layer = part.layers[il];

    state = gather_outputs(state, n_columns);
    if (attn_ins == nullptr) {
        return;
    }

    ggml_tensor * attn = gather_outputs(input_of(model.layers[il].wo), n_columns);

    state =
        build_mul_mat_add(layer.attn_output, attn, gather_outputs(attn_ins, n_columns), to_residual(layer.attn_post_norm), il);
    attn_ins = nullptr;
    cb(state, "otter_ffn_inp", il);
    ggml_build_forward_expand(gf, state);
}

void inserted_graph::on_ffn_norm(ggml_tensor * y, int il) {
    if (hparams.use_par_res) { // beside attention: the FFN reads h' as it entered the layer
        state = gather_outputs(state, y->ne[1]);
    } else {
        on_ffn_inp(normed_by(y), il); // Phi-3 has no name for it
    }
    on_ffn_input(y, normed_by(y), il);
}

// Beside attention, where no norm is called the FFN's: its first product is the first sign of it.
void inserted_graph::on_ffn_up(ggml_tensor * product, int il) {
    if (!part.features.has(one_norm)) {
        return;
    }
    ggml_tensor * y      = product_input(product);
    ggml_tensor * normed = y->op == GGML_OP_GET_ROWS ? y->src[0] : y; // in the last layer the output tokens alone

    state = gather_outputs(state, y->ne[1]);
    on_ffn_input(y, gather_outputs(normed_by(normed), y->ne[1]), il);
}

// y: what the base's FFN reads, made of h
void inserted_graph::on_ffn_input(ggml_tensor * y, ggml_tensor * h, int il) {
    const auto & layer = part.layers[il];

    act_ins = nullptr;
    if (layer.ffn_up.tensor == nullptr) {
        return;
    }
    act_ins = build_norm_act(layer.ffn_up, { y, h, state, layer.ffn_norm }, il);
    cb(act_ins, "otter_ffn_act", il);
    ggml_build_forward_expand(gf, act_ins);
}

void inserted_graph::on_l_out(ggml_tensor * h, int il) {
    const auto & layer = part.layers[il];

    ggml_build_forward_expand(gf, h);
    add_attention(h->ne[1], il); // where it runs beside the FFN
    if (layer.ffn_down.tensor == nullptr) {
        return;
    }
    if (model.layers[il].ffn_down == nullptr) { // experts
        state = build_mul_mat_add(layer.ffn_down, act_ins, nullptr, to_residual(layer.ffn_post_norm), il);
    } else {
        state = build_mul_mat_add(
            layer.ffn_down, input_of(model.layers[il].ffn_down), act_ins, to_residual(layer.ffn_post_norm), il);
    }
    cb(state, "otter_l_out", il);
    ggml_build_forward_expand(gf, state);
}

void inserted_graph::on_result_norm(ggml_tensor * y) {
    if (mode == reward_mode::off) {
        return;
    }

    ggml_tensor * y_ins = nullptr;
    if (part.output_norm.weight != nullptr) {
        y_ins = build_partial_norm({ y, normed_by(y), state, part.output_norm }, part.n_layer - 1);
    }

    ggml_tensor * row = build_heads(y, y_ins);
    cb(row, "otter_result", -1);

    res->t_h_nextn = row;
    ggml_build_forward_expand(gf, row);
    n_nodes_with_rewards = ggml_graph_n_nodes(gf);
}

void inserted_graph::finish() {
    if (mode == reward_mode::all) {
        GGML_ASSERT(n_nodes_with_rewards > 0);
        gf->n_nodes   = n_nodes_with_rewards;
        res->t_logits = nullptr;
    }
}

ggml_tensor * inserted_graph::build_initial_state(ggml_tensor * h) {
    if (part.token_embd != nullptr) {
        GGML_ASSERT(res->t_inp_tokens != nullptr);
        ggml_tensor * rows = ggml_get_rows(ctx0, part.token_embd, res->t_inp_tokens);
        // what is multiplied with the base's embeddings is multiplied with the table's rows too
        return hparams.f_embedding_scale == 0.0f ? rows : ggml_scale(ctx0, rows, hparams.f_embedding_scale);
    }
    return ggml_view_2d(ctx0, h, part.spec.width, h->ne[1], h->nb[1], part.spec.state_offset * sizeof(float));
}

inserted_graph::query_key inserted_graph::build_query_key(ggml_tensor * qkv, const query_key & base, int il) {
    const auto &  layer   = part.layers[il];
    ggml_tensor * q_norm  = model.layers[il].attn_q_norm;
    ggml_tensor * k_norm  = model.layers[il].attn_k_norm;
    const int64_t n       = n_embd_head_k;
    const int64_t n_kv    = part.spec.n_head_kv[il];
    const int64_t n_query = model.hparams.n_head(layer.cache_layer);

    if (part.features.has(joint_head_norms)) {
        ggml_tensor * q = build_joint_norm(base.q, qkv, 0, layer.attn_q_norm, il);
        ggml_tensor * k = build_joint_norm(base.k, qkv, n_query, layer.attn_k_norm, il);
        return { build_rope(q, il), build_rope(k, il) };
    }
    if (q_norm == nullptr) {
        // queries and keys stand side by side: one rotary node for both
        ggml_tensor * qk = build_rope(view_heads(ctx0, qkv, n, 0, n_query + n_kv), il);
        cb(qk, "otter_qk", il);
        return {
            ggml_view_3d(ctx0, qk, n, n_query, n_tokens, qk->nb[1], qk->nb[2], 0),
            ggml_view_3d(ctx0, qk, n, n_kv, n_tokens, qk->nb[1], qk->nb[2], n_query * qk->nb[1]),
        };
    }
    GGML_ASSERT(q_norm->ne[0] == n && k_norm->ne[0] == n);
    ggml_tensor * q = build_norm(view_heads(ctx0, qkv, n, 0, n_query), q_norm, nullptr, LLM_NORM_RMS, il);
    ggml_tensor * k = build_norm(view_heads(ctx0, qkv, n, n_query, n_kv), k_norm, nullptr, LLM_NORM_RMS, il);
    return { build_rope(q, il), build_rope(k, il) };
}

// Heads of the product from `first` on, normed with the statistic of all the base's: w' * q' / rms(q) -> [n, heads, T].
ggml_tensor * inserted_graph::build_joint_norm(ggml_tensor * base, ggml_tensor * qkv, int64_t first, ggml_tensor * w, int il) {
    const int64_t n = n_embd_head_k;

    ggml_tensor * rows = ggml_view_2d(ctx0, qkv, w->ne[0], qkv->ne[1], qkv->nb[1], first * n * sizeof(float));
    ggml_tensor * cur  = build_partial_norm({ nullptr, base, rows, { w, nullptr } }, il);
    return ggml_reshape_3d(ctx0, cur, n, w->ne[0] / n, cur->ne[1]);
}

ggml_tensor * inserted_graph::build_rope(ggml_tensor * cur, int il) {
    if (!part.layers[il].rotated || rope_type == LLAMA_ROPE_TYPE_NONE) {
        return cur;
    }
    return ggml_rope_ext(ctx0, cur, find_input<llm_graph_input_pos>()->pos, model.get_rope_factors(cparams, il), n_rot,
        rope_type, n_ctx_orig, model.get_rope_freq_base(cparams, il), model.get_rope_freq_scale(cparams, il), ext_factor,
        attn_factor, beta_fast, beta_slow);
}

// [n*heads, T]. Cache layer jl is of the same kind as the layer that it stands beside: within a window, or not.
ggml_tensor * inserted_graph::build_inserted_attn(const query_key & qk, ggml_tensor * v, int jl) {
    ggml_tensor * q     = qk.q;
    float         scale = hparams.f_attention_scale;
    if (scale == 0.0f) {
        scale = 1.0f / sqrtf(float(n_embd_head_k));
    }
    if (hparams.attn_soft_cap) { // it caps scores that are scaled already
        q     = ggml_scale(ctx0, ggml_cont(ctx0, q), scale);
        scale = 1.0f;
    }
    if (hparams.swa_type == LLAMA_SWA_TYPE_NONE) {
        return build_attn(
            find_input<llm_graph_input_attn_kv>(), nullptr, nullptr, nullptr, q, qk.k, v, nullptr, nullptr, nullptr, scale, jl);
    }
    return build_attn(find_input<llm_graph_input_attn_kv_iswa>(), nullptr, nullptr, nullptr, q, qk.k, v, nullptr, nullptr,
        nullptr, scale, jl);
}

// Raw outputs of every head, [n_head_outputs, T]; behind them, where asked for, the final normed h' and h.
ggml_tensor * inserted_graph::build_heads(ggml_tensor * y, ggml_tensor * y_ins) {
    ggml_tensor * row    = nullptr;
    const auto    append = [&](ggml_tensor * cur) { row = row == nullptr ? cur : ggml_concat(ctx0, row, cur, 0); };

    for (size_t i = 0; i < part.heads.size(); ++i) {
        ggml_tensor * input = nullptr;
        switch (part.spec.heads[i].input) {
            case head_input::inserted: input = y_ins; break;
            case head_input::base:     input = y; break;
            case head_input::both:     input = ggml_concat(ctx0, y, y_ins, 0); break;
        }
        append(ggml_add(ctx0, ggml_mul_mat(ctx0, part.heads[i].weight, input), part.heads[i].bias));
    }
    if (part.spec.hidden_states) {
        if (y_ins != nullptr) {
            append(y_ins);
        }
        append(y);
    }
    return row;
}

ggml_tensor * inserted_graph::build_norm_mul_mat(const block_weight & w, const norm_input & in, int il) {
    if (fused(w.tensor, in.y->ne[1], il)) {
        return cpu_norm_mul_mat(ctx0, w, in);
    }
    return build_concat_mul_mat(w.tensor, in.y, build_norm_input(in, il), il);
}

ggml_tensor * inserted_graph::build_norm_act(const block_weight & w, const norm_input & in, int il) {
    if (fused(w.tensor, in.y->ne[1], il, w.ungated ? 1 : 2)) {
        return cpu_norm_act(ctx0, w, in);
    }
    ggml_tensor * product = build_concat_mul_mat(w.tensor, in.y, build_norm_input(in, il), il);
    if (w.ungated) {
        return w.gelu_ffn ? ggml_gelu(ctx0, product) : ggml_silu(ctx0, product);
    }
    return w.gelu_ffn ? ggml_geglu(ctx0, product) : ggml_swiglu(ctx0, product);
}

ggml_tensor * inserted_graph::build_mul_mat_add(
    const block_weight & w, ggml_tensor * a, ggml_tensor * b, const residual_input & to, int il) {
    if (fused(w.tensor, a->ne[1], il)) {
        return cpu_mul_mat_add(ctx0, w, a, b, to);
    }
    ggml_tensor * product = b == nullptr ? ggml_mul_mat(ctx0, w.tensor, a) : build_concat_mul_mat(w.tensor, a, b, il);
    if (w.bias != nullptr) {
        product = ggml_add(ctx0, product, w.bias);
    }
    if (to.w_ins != nullptr) {
        product = build_partial_norm({ nullptr, to.o, product, { to.w_ins, nullptr } }, il);
    }
    if (w.scale != 1.0f) {
        product = ggml_scale(ctx0, product, w.scale);
    }
    return ggml_add(ctx0, product, to.h_ins);
}

// y', or h' as it is
ggml_tensor * inserted_graph::build_norm_input(const norm_input & in, int il) {
    return in.ins.weight == nullptr ? in.h_ins : build_partial_norm(in, il);
}

residual_input inserted_graph::to_residual(ggml_tensor * post_norm) const {
    return { state, post_norm == nullptr ? nullptr : normed_by(post_normed), post_norm };
}

// y' = w' * h' / sqrt(mean(h^2) + eps), with the mean of h off h and h' first where it is a LayerNorm; where there is no
// node of our own, from operations that every backend has
ggml_tensor * inserted_graph::build_partial_norm(const norm_input & in, int il) {
    if (on_cpu(il)) {
        return cpu_partial_norm(ctx0, in, part.norm);
    }
    const float inverse_n = 1.0f / float(in.h->ne[0]);

    ggml_tensor * h     = ggml_is_contiguous(in.h) ? in.h : ggml_cont(ctx0, in.h);
    ggml_tensor * h_ins = in.h_ins;
    if (part.norm.layer_norm) {
        ggml_tensor * mean = ggml_scale(ctx0, ggml_sum_rows(ctx0, h), inverse_n);
        h                  = ggml_sub(ctx0, h, mean);
        h_ins              = ggml_sub(ctx0, in.h_ins, mean);
    }
    ggml_tensor * cur = ggml_sum_rows(ctx0, ggml_sqr(ctx0, h));
    cur               = ggml_sqrt(ctx0, ggml_scale_bias(ctx0, cur, inverse_n, part.norm.eps));
    cur               = ggml_mul(ctx0, ggml_div(ctx0, h_ins, cur), in.ins.weight);
    return in.ins.bias == nullptr ? cur : ggml_add(ctx0, cur, in.ins.bias);
}

// w @ [a, b]. A long prompt's activations are worth not copying: where the rows of w can be cut, as two products.
ggml_tensor * inserted_graph::build_concat_mul_mat(ggml_tensor * w, ggml_tensor * a, ggml_tensor * b, int il) {
    if (!on_cpu(il)) {
        return ggml_mul_mat(ctx0, w, ggml_concat(ctx0, a, b, 0));
    }
    const int64_t block = ggml_blck_size(w->type);
    if (!cpu_readable(w) || a->ne[0] % block != 0 || b->ne[0] % block != 0) {
        return ggml_mul_mat(ctx0, w, cpu_concat(ctx0, a, b));
    }
    ggml_tensor * w_a = ggml_view_2d(ctx0, w, a->ne[0], w->ne[1], w->nb[1], 0);
    ggml_tensor * w_b = ggml_view_2d(ctx0, w, b->ne[0], w->ne[1], w->nb[1], ggml_row_size(w->type, a->ne[0]));
    return ggml_add(ctx0, ggml_mul_mat(ctx0, w_a, a), ggml_mul_mat(ctx0, w_b, b));
}

bool inserted_graph::on_cpu(int il) const {
    return ggml_backend_dev_type(model.dev_layer(il)) == GGML_BACKEND_DEVICE_TYPE_CPU;
}

bool inserted_graph::fused(const ggml_tensor * w, int64_t n_columns, int il, int64_t parts) const {
    return n_columns <= max_fused_tokens && on_cpu(il) && cpu_multipliable(w, parts);
}

// The input that the base multiplies with one of its weights: the newest such product in the graph.
ggml_tensor * inserted_graph::input_of(const ggml_tensor * weight) const {
    for (int i = ggml_graph_n_nodes(gf) - 1; i >= 0; --i) {
        const ggml_tensor * node = ggml_graph_node(gf, i);
        if (node->op == GGML_OP_MUL_MAT && node->src[0] == weight) {
            return node->src[1];
        }
    }
    GGML_ABORT("the base graph does not multiply with %s", weight->name);
}

// Behind its last attention the base goes on with the output tokens alone; so does h'.
ggml_tensor * inserted_graph::gather_outputs(ggml_tensor * cur, int64_t n_columns) {
    if (cur == nullptr || cur->ne[1] == n_columns) {
        return cur;
    }
    return ggml_get_rows(ctx0, cur, find_input<llm_graph_input_out_ids>()->out_ids);
}

template <class input>
input * inserted_graph::find_input() const {
    for (const auto & candidate : res->inputs) {
        if (auto * found = dynamic_cast<input *>(candidate.get())) {
            return found;
        }
    }
    GGML_ABORT("the base graph lacks an input that the inserted blocks need");
}

} // namespace otter
