#include "inserted_part.h"

#include "gguf/error.h"

#include "ggml-cpu.h"

#include <stdexcept>

namespace otter {

int32_t insertion_spec::n_rewards() const {
    int32_t n = 0;
    for (const auto & head : heads) {
        n += head.n_rewards();
    }
    return n;
}

int32_t insertion_spec::n_head_outputs() const {
    int32_t n = 0;
    for (const auto & head : heads) {
        n += head.n_outputs();
    }
    return n;
}

int32_t insertion_spec::n_cache_layers() const {
    int32_t n = 0;
    for (const int32_t k : n_head_kv) {
        n += k > 0;
    }
    return n;
}

int32_t insertion_spec::row_size(int32_t n_embd) const {
    return n_head_outputs() + (hidden_states ? width + n_embd : 0);
}

static bool rotated(const llama_hparams & hparams, feature_set features, int32_t il) {
    const bool skipped = features.has(steps_without_rope) && uint32_t(il + 1) % hparams.n_no_rope_layer_step == 0;
    return !skipped && hparams.has_rope(uint32_t(il));
}

void inserted_part::extend_hparams(llama_hparams & hparams) {
    n_layer = int32_t(hparams.n_layer());
    norm    = { features.has(layer_norm) ? hparams.f_norm_eps : hparams.f_norm_rms_eps, features.has(layer_norm) };

    if (hparams.n_layer_all != hparams.n_layer()) {
        throw std::runtime_error("a base with multi-token prediction layers cannot hold an insertion");
    }
    if (int32_t(spec.n_head_kv.size()) != n_layer || int32_t(spec.n_ff.size()) != n_layer) {
        throw std::runtime_error("the insertion lists " + std::to_string(spec.n_head_kv.size()) + " layers, the base has " +
            std::to_string(n_layer));
    }
    if (n_layer + spec.n_cache_layers() > LLAMA_MAX_LAYERS) {
        throw std::runtime_error("too many layers with inserted attention for llama.cpp's KV cache");
    }

    layers.resize(n_layer);
    for (int32_t il = 0; il < n_layer; ++il) {
        if (spec.n_head_kv[il] == 0) {
            continue;
        }
        const uint32_t jl = hparams.n_layer_all++;

        layers[il].cache_layer    = int32_t(jl);
        layers[il].rotated        = rotated(hparams, features, il);
        hparams.n_head_kv_arr[jl] = spec.n_head_kv[il];
        hparams.n_head_arr[jl]    = spec.n_head_kv[il] * (hparams.n_head_arr[il] / hparams.n_head_kv_arr[il]);
        hparams.n_ff_arr[jl]      = 0;
        hparams.is_swa_impl[jl]   = hparams.is_swa_impl[il];
        hparams.is_recr_impl[jl]  = hparams.is_recr_impl[il];
        hparams.rope_pattern[jl]  = layers[il].rotated;
    }

    hparams.n_embd_out_impl = spec.row_size(int32_t(hparams.n_embd));
}

bool inserted_part::reads_inserted_state() const {
    for (const auto & head : spec.heads) {
        if (head.input != head_input::base) {
            return true;
        }
    }
    return spec.hidden_states && spec.width > 0;
}

static std::string table_suffix(const inserted_head & head) {
    return std::string(head.kind->table) + "." + head.name + ".otter.weight";
}

const ggml_tensor * token_table(const llama_model * model, const inserted_head & head) {
    return model->get_tensor(LLM_TN(model->arch)(LLM_TENSOR_CLS, table_suffix(head).c_str()).str().c_str());
}

// No graph reads a token table, so it stays beside the CPU wherever the layers go, and is never rearranged.
static void create_token_table(llama_model_base & model, llama_model_loader & loader, const inserted_head & head) {
    const buft_list_t plain = {
        { ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU), ggml_backend_cpu_buffer_type() },
    };
    const std::string suffix = table_suffix(head);
    loader.create_tensor(model.hparams, &plain, &plain, &plain, &plain, model.tn(LLM_TENSOR_CLS, suffix.c_str()),
        { head.rank, model.vocab.n_tokens() }, 0);
}

// Forms of an architecture whose graph the inserted blocks do not follow.
static void check_form(const llama_layer & layer, feature_set features, uint32_t n_head_kv) {
    if (features.has(one_norm) && (layer.attn_norm_2 == nullptr) != (n_head_kv == 1)) {
        throw otter_error(error_kind::unsupported,
            "a base with several KV heads and one norm for attention and FFN (Falcon2 11B), or one and two, cannot "
            "hold an insertion");
    }
    if (layer.ffn_norm == nullptr && !features.has(one_norm)) {
        throw otter_error(
            error_kind::unsupported, "a base whose attention and FFN read one norm (StableLM 2 12B) cannot hold an insertion");
    }
    if (layer.attn_q_norm != nullptr && layer.attn_q_norm->ne[1] > 1) {
        throw otter_error(error_kind::unsupported,
            "a base with a norm for each query head by itself (StableLM 2 12B) cannot hold an insertion");
    }
}

// Creates the tensors of an inserted part, each beside the base's of the same name. d, e: widths of h and h'; n: channels
// of a head.
class inserted_part::tensor_maker {
public:
    tensor_maker(inserted_part & inserted, llama_model_base & base) :
        part(inserted),
        model(base),
        d(base.hparams.n_embd),
        e(inserted.spec.width),
        n(base.hparams.n_embd_head_k()) {}

    void state_table() {
        part.token_embd = create(model.tn(LLM_TENSOR_TOKEN_EMBD, "otter.weight"), { e, model.vocab.n_tokens() });
    }

    void attention(int32_t il) {
        const auto &  base = model.layers[il];
        const int64_t k    = part.spec.n_head_kv[il];
        const int64_t q    = k * model.hparams.n_gqa(il);

        auto & layer = part.layers[il];
        if (base.attn_norm != nullptr) {
            layer.attn_norm = norm(LLM_TENSOR_ATTN_NORM, il);
        }
        if (part.features.has(joint_head_norms)) {
            layer.attn_q_norm = vector(LLM_TENSOR_ATTN_Q_NORM, il, n * q);
            layer.attn_k_norm = vector(LLM_TENSOR_ATTN_K_NORM, il, n * k);
        }
        if (base.attn_post_norm != nullptr) {
            layer.attn_post_norm = vector(LLM_TENSOR_ATTN_POST_NORM, il, e);
        }
        layer.attn_qkv    = weight(LLM_TENSOR_ATTN_QKV, il, d + e, n * (q + 2 * k));
        layer.attn_output = output(LLM_TENSOR_ATTN_OUT, il, n * (model.hparams.n_head(il) + q));

        // the cache layer shifts its keys with the rotary factors of the layer it stands beside
        auto & cache_layer = model.layers[layer.cache_layer];

        cache_layer.rope_freqs = base.rope_freqs;
        cache_layer.rope_long  = base.rope_long;
        cache_layer.rope_short = base.rope_short;
    }

    void ffn(int32_t il) {
        const auto &  base = model.layers[il];
        const int64_t f    = part.spec.n_ff[il];

        auto & layer = part.layers[il];
        if (part.features.has(one_norm) && base.attn_norm_2 == nullptr) { // attention may have created it already
            layer.attn_norm = layer.attn_norm.weight != nullptr ? layer.attn_norm : norm(LLM_TENSOR_ATTN_NORM, il);
            layer.ffn_norm  = layer.attn_norm;
        } else if (base.ffn_norm != nullptr || part.features.has(one_norm)) {
            layer.ffn_norm = norm(LLM_TENSOR_FFN_NORM, il);
        }
        if (base.ffn_post_norm != nullptr) {
            layer.ffn_post_norm = vector(LLM_TENSOR_FFN_POST_NORM, il, e);
        }
        // experts have inner states of their own, which the inserted rows do not read
        const int64_t f_base = model.hparams.n_expert > 0 ? 0 : model.hparams.n_ff(il);

        layer.ffn_up   = weight(LLM_TENSOR_FFN_UP, il, d + e, part.features.has(ungated) ? f : 2 * f);
        layer.ffn_down = output(LLM_TENSOR_FFN_DOWN, il, f_base + f);
    }

    void output_norm() { part.output_norm = norm(LLM_TENSOR_OUTPUT_NORM, -1); }

    void head(const inserted_head & head, llama_model_loader & loader) {
        const int64_t columns = head.input == head_input::inserted ? e : head.input == head_input::base ? d : d + e;

        const std::string weight = head.name + ".otter.weight";
        const std::string bias   = head.name + ".otter.bias";

        inserted_head_tensors tensors;
        tensors.weight = create(model.tn(LLM_TENSOR_CLS_OUT, weight.c_str()), { columns, head.n_outputs() });
        tensors.bias   = create(model.tn(LLM_TENSOR_CLS_OUT, bias.c_str()), { head.n_outputs() });
        part.heads.push_back(tensors);
        if (head.kind->table != nullptr) {
            create_token_table(model, loader, head);
        }
    }

private:
    inserted_part &    part;
    llama_model_base & model;
    const int64_t      d;
    const int64_t      e;
    const int64_t      n;

    ggml_tensor * create(const LLM_TN_IMPL & name, const std::initializer_list<int64_t> & ne) {
        return model.create_tensor(name, ne, 0);
    }
    ggml_tensor * vector(llm_tensor which, int32_t il, int64_t n_channels) {
        return create(model.tn(which, "otter.weight", il), { n_channels });
    }
    ggml_tensor * bias(llm_tensor which, int32_t il, feature where) {
        return part.features.has(where) ? create(model.tn(which, "otter.bias", il), { e }) : nullptr;
    }
    norm_weights norm(llm_tensor which, int32_t il) { return { vector(which, il, e), bias(which, il, layer_norm) }; }

    block_weight weight(llm_tensor which, int32_t il, int64_t n_columns, int64_t n_rows) {
        const float scale = model.hparams.f_residual_scale == 0.0f ? 1.0f : model.hparams.f_residual_scale;
        return { create(model.tn(which, "otter.weight", il), { n_columns, n_rows }), nullptr, part.norm, scale,
            part.features.has(gelu_ffn), part.features.has(ungated) };
    }
    // a map back to the residual
    block_weight output(llm_tensor which, int32_t il, int64_t n_columns) {
        block_weight result = weight(which, il, n_columns, e);
        result.bias         = bias(which, il, all_biases);
        return result;
    }
};

void inserted_part::create_tensors(llama_model_base & model, llama_model_loader & loader) {
    tensor_maker make(*this, model);
    if (spec.state_table) {
        make.state_table();
    }
    for (int32_t il = 0; il < n_layer; ++il) {
        if (features.has(layer_norm) && spec.width > 0) {
            check_form(model.layers[il], features, model.hparams.n_head_kv(il));
        }
        if (spec.n_head_kv[il] > 0) {
            make.attention(il);
        }
        if (spec.n_ff[il] > 0) {
            make.ffn(il);
        }
    }
    if (reads_inserted_state()) {
        make.output_norm();
    }
    for (const auto & head : spec.heads) {
        make.head(head, loader);
    }
}

} // namespace otter
