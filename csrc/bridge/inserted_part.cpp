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

static bool rotated(const llama_hparams & hparams, const block_traits & traits, int32_t il) {
    const bool skipped = traits.steps_without_rope && uint32_t(il + 1) % hparams.n_no_rope_layer_step == 0;
    return !skipped && hparams.has_rope(uint32_t(il));
}

void inserted_part::extend_hparams(llama_hparams & hparams) {
    n_layer = int32_t(hparams.n_layer());
    norm    = { traits.layer_norm ? hparams.f_norm_eps : hparams.f_norm_rms_eps, traits.layer_norm };

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
        layers[il].rotated        = rotated(hparams, traits, il);
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
static void check_form(const llama_layer & layer, const block_traits & traits, uint32_t n_head_kv) {
    if (traits.no_ffn_norm && (layer.attn_norm_2 == nullptr) != (n_head_kv == 1)) {
        throw otter_error(error_kind::unsupported,
            "a base with several KV heads and one norm for attention and FFN (Falcon2 11B), or one and two, cannot "
            "hold an insertion");
    }
    if (layer.ffn_norm == nullptr && !traits.no_ffn_norm) {
        throw otter_error(
            error_kind::unsupported, "a base whose attention and FFN read one norm (StableLM 2 12B) cannot hold an insertion");
    }
    if (layer.attn_q_norm != nullptr && layer.attn_q_norm->ne[1] > 1) {
        throw otter_error(error_kind::unsupported,
            "a base with a norm for each query head by itself (StableLM 2 12B) cannot hold an insertion");
    }
}

void inserted_part::create_tensors(llama_model_base & model, llama_model_loader & loader) {
    const auto & tn = model.tn;
    const auto & hp = model.hparams;

    const int64_t d = hp.n_embd;
    const int64_t e = spec.width;
    const int64_t n = hp.n_embd_head_k();

    const auto create = [&](const LLM_TN_IMPL & name, const std::initializer_list<int64_t> & ne) {
        return model.create_tensor(name, ne, 0);
    };
    const float residual_scale = hp.f_residual_scale == 0.0f ? 1.0f : hp.f_residual_scale;
    const auto  create_weight  = [&](const LLM_TN_IMPL & name, const std::initializer_list<int64_t> & ne) {
        return block_weight { create(name, ne), nullptr, norm, residual_scale, traits.gelu, traits.gated };
    };
    // a map back to the residual
    const auto create_output = [&](llm_tensor which, int32_t il, int64_t n_columns) {
        block_weight weight = create_weight(tn(which, "otter.weight", il), { n_columns, e });
        if (traits.output_biases) {
            weight.bias = create(tn(which, "otter.bias", il), { e });
        }
        return weight;
    };
    const auto create_norm = [&](llm_tensor which, int32_t il) {
        return norm_weights {
            create(tn(which, "otter.weight", il), { e }),
            traits.layer_norm ? create(tn(which, "otter.bias", il), { e }) : nullptr,
        };
    };

    if (spec.state_table) {
        token_embd = create(tn(LLM_TENSOR_TOKEN_EMBD, "otter.weight"), { e, model.vocab.n_tokens() });
    }

    for (int32_t il = 0; il < n_layer; ++il) {
        auto &       layer = layers[il];
        const auto & base  = model.layers[il];
        if (traits.layer_norm && e > 0) {
            check_form(base, traits, hp.n_head_kv(il));
        }

        const int64_t k_ins = spec.n_head_kv[il];
        const int64_t q_ins = k_ins * hp.n_gqa(il);
        const int64_t f_ins = spec.n_ff[il];

        // experts have inner states of their own, which the inserted rows do not read
        const int64_t f_base = hp.n_expert > 0 ? 0 : hp.n_ff(il);

        const bool one_norm = traits.no_ffn_norm && base.attn_norm_2 == nullptr;

        if (base.attn_norm != nullptr && (k_ins > 0 || (one_norm && f_ins > 0))) {
            layer.attn_norm = create_norm(LLM_TENSOR_ATTN_NORM, il);
        }
        if (k_ins > 0) {
            if (traits.joint_head_norms) {
                layer.attn_q_norm = create(tn(LLM_TENSOR_ATTN_Q_NORM, "otter.weight", il), { n * q_ins });
                layer.attn_k_norm = create(tn(LLM_TENSOR_ATTN_K_NORM, "otter.weight", il), { n * k_ins });
            }
            if (base.attn_post_norm != nullptr) {
                layer.attn_post_norm = create(tn(LLM_TENSOR_ATTN_POST_NORM, "otter.weight", il), { e });
            }
            layer.attn_qkv    = create_weight(tn(LLM_TENSOR_ATTN_QKV, "otter.weight", il), { d + e, n * (q_ins + 2 * k_ins) });
            layer.attn_output = create_output(LLM_TENSOR_ATTN_OUT, il, n * (hp.n_head(il) + q_ins));

            // the cache layer shifts its keys with the rotary factors of the layer it stands beside
            auto & cache_layer = model.layers[layer.cache_layer];

            cache_layer.rope_freqs = base.rope_freqs;
            cache_layer.rope_long  = base.rope_long;
            cache_layer.rope_short = base.rope_short;
        }
        if (f_ins > 0) {
            if (one_norm) {
                layer.ffn_norm = layer.attn_norm;
            } else if (base.ffn_norm != nullptr || traits.no_ffn_norm) {
                layer.ffn_norm = create_norm(LLM_TENSOR_FFN_NORM, il);
            }
            if (base.ffn_post_norm != nullptr) {
                layer.ffn_post_norm = create(tn(LLM_TENSOR_FFN_POST_NORM, "otter.weight", il), { e });
            }
            layer.ffn_up = create_weight(tn(LLM_TENSOR_FFN_UP, "otter.weight", il), { d + e, (traits.gated ? 2 : 1) * f_ins });
            layer.ffn_down = create_output(LLM_TENSOR_FFN_DOWN, il, f_base + f_ins);
        }
    }

    if (reads_inserted_state()) {
        output_norm = create_norm(LLM_TENSOR_OUTPUT_NORM, -1);
    }

    for (const auto & head : spec.heads) {
        const int64_t columns = head.input == head_input::inserted ? e : head.input == head_input::base ? d : d + e;

        const std::string weight = head.name + ".otter.weight";
        const std::string bias   = head.name + ".otter.bias";

        inserted_head_tensors tensors;
        tensors.weight = create(tn(LLM_TENSOR_CLS_OUT, weight.c_str()), { columns, head.n_outputs() });
        tensors.bias   = create(tn(LLM_TENSOR_CLS_OUT, bias.c_str()), { head.n_outputs() });
        heads.push_back(tensors);
        if (head.kind->table != nullptr) {
            create_token_table(model, loader, head);
        }
    }
}

} // namespace otter
