// Hyper-parameters: the keys that llama.cpp reads for every architecture (llama_model_base::load_hparams), with the
// types that it demands and the ranges that it asserts.

#include "gguf/check_base.h"

#include <algorithm>
#include <cmath>

namespace otter {

namespace {

constexpr uint32_t max_layers  = 512;  // LLAMA_MAX_LAYERS
constexpr uint32_t max_experts = 1024; // LLAMA_MAX_EXPERTS
constexpr uint32_t max_width   = 1u << 24;
constexpr uint32_t max_heads   = 1u << 16;

struct u32_rule {
    const char * name;
    uint32_t     min;
    uint32_t     max;
    bool         required = false;
};

constexpr u32_rule u32_rules[] = {
    { "context_length", 1, INT32_MAX, true },
    { "embedding_length", 1, max_width, true },
    { "block_count", 1, max_layers, true },
    { "embedding_length_out", 0, max_width },
    { "nextn_predict_layers", 0, max_layers },
    { "pooling_type", 0, INT32_MAX },
    { "classifier.pooling_type", 0, INT32_MAX },
    { "vocab_size", 0, INT32_MAX },
    { "expert_count", 0, max_experts },
    { "expert_group_count", 0, max_experts },
    { "expert_group_used_count", 0, max_experts },
    { "attention.key_length", 1, max_heads },
    { "attention.value_length", 1, max_heads },
    { "attention.key_length_swa", 1, max_heads },
    { "attention.value_length_swa", 1, max_heads },
    { "rope.dimension_count", 0, max_heads },
    { "rope.dimension_count_swa", 0, max_heads },
    { "rope.scaling.original_context_length", 0, INT32_MAX },
};

// What a number must be besides finite.
enum class f32_range { any, not_negative, positive };

struct f32_rule {
    const char * name;
    f32_range    range;
};

constexpr f32_rule f32_rules[] = {
    { "attention.layer_norm_epsilon", f32_range::positive },
    { "attention.layer_norm_rms_epsilon", f32_range::positive },
    { "attention.group_norm_epsilon", f32_range::positive },
    { "attention.scale", f32_range::any },
    { "attention.clamp_kqv", f32_range::any },
    { "attention.max_alibi_bias", f32_range::any },
    { "rope.freq_base", f32_range::positive },
    { "rope.freq_base_swa", f32_range::positive },
    { "rope.scale_linear", f32_range::not_negative },
    { "rope.scaling.factor", f32_range::not_negative },
    { "rope.scaling.alpha", f32_range::any },
    { "rope.scaling.attn_factor", f32_range::any },
    { "rope.scaling.yarn_log_multiplier", f32_range::any },
    { "rope.scaling.yarn_ext_factor", f32_range::any },
    { "rope.scaling.yarn_attn_factor", f32_range::any },
    { "rope.scaling.yarn_beta_fast", f32_range::any },
    { "rope.scaling.yarn_beta_slow", f32_range::any },
    { "logit_scale", f32_range::any },
    { "residual_scale", f32_range::any },
    { "embedding_scale", f32_range::any },
    { "attn_logit_softcapping", f32_range::any },
    { "final_logit_softcapping", f32_range::any },
};

class hparams_check {
public:
    hparams_check(const gguf_file & base, problem_list & found) : file(base), problems(found) {}

    base_sizes run() {
        if (!problems.attempt([&] { read_architecture(); })) {
            return sizes;
        }
        const bool numbers = check_u32_rules();
        check_f32_rules();
        problems.attempt([&] { file.get_bool(key("rope.scaling.finetuned")); });
        problems.attempt([&] { check_attention_mode(); });
        problems.attempt([&] { read_rope_scaling(); });
        problems.attempt([&] { file.get_array(key("classifier.output_labels"), GGUF_TYPE_STRING); });
        if (numbers && read_layers()) {
            problems.attempt([&] { read_heads(); });
        }
        return sizes;
    }

private:
    const gguf_file & file;
    problem_list &    problems;
    base_sizes        sizes;

    std::string key(const char * name) const { return sizes.architecture + "." + name; }

    uint32_t u32(const char * name, uint32_t fallback) const { return file.get_u32(key(name)).value_or(fallback); }

    void read_architecture() {
        const auto name = file.get_str("general.architecture");
        if (!name) {
            file.fail_key("general.architecture", "is missing, expected the name of an architecture such as 'llama'");
        }
        const auto usual = [](char c) {
            return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_' || c == '.';
        };
        if (name->empty() || name->size() > 64 || !std::all_of(name->begin(), name->end(), usual)) {
            file.fail_key("general.architecture", cat("is ", quoted(*name), ", expected a name such as 'llama'"));
        }
        sizes.architecture = *name;
    }

    bool check_u32_rules() {
        bool right = true;
        for (const u32_rule & rule : u32_rules) {
            right = problems.attempt([&] { check_u32(rule); }) && right;
        }
        return right;
    }

    void check_u32(const u32_rule & rule) const {
        const auto value = file.get_u32(key(rule.name));
        if (!value && rule.required) {
            file.fail_key(key(rule.name), "is missing, expected a u32");
        }
        if (value && (*value < rule.min || *value > rule.max)) {
            file.fail_key(key(rule.name), cat("is ", *value, ", expected ", rule.min, " to ", rule.max));
        }
    }

    void check_f32_rules() {
        for (const f32_rule & rule : f32_rules) {
            problems.attempt([&] { check_f32(rule); });
        }
    }

    void check_f32(const f32_rule & rule) const {
        const auto value = file.get_f32(key(rule.name)).value_or(1.0f); // absent: as good as any
        const bool in_range =
            rule.range == f32_range::any || value > 0 || (rule.range == f32_range::not_negative && value == 0);
        if (!std::isfinite(value) || !in_range) {
            file.fail_key(key(rule.name),
                cat("is ", value, ", expected a finite number",
                    rule.range == f32_range::positive           ? " above 0"
                        : rule.range == f32_range::not_negative ? " of at least 0"
                                                                : ""));
        }
    }

    // A scalar for all layers, or an array with one value a layer; empty if absent.
    std::vector<uint32_t> per_layer(const char * name, uint32_t max) const {
        const kv_entry * kv = file.find(key(name));
        if (kv == nullptr) {
            return {};
        }
        const bool int_array = kv->is_array && (kv->type == GGUF_TYPE_UINT32 || kv->type == GGUF_TYPE_INT32);
        if (!int_array && (kv->is_array || kv->type != GGUF_TYPE_UINT32)) {
            file.fail_key(kv->key, cat("has type ", kv->type_name(), ", expected u32, arr[u32] or arr[i32]"));
        }
        if (kv->is_array && kv->count != sizes.n_layer) {
            file.fail_key(kv->key, cat("has ", kv->count, " values, expected ", sizes.n_layer, ", one a layer"));
        }
        std::vector<uint32_t> values(sizes.n_layer);
        for (uint32_t i = 0; i < sizes.n_layer; ++i) {
            values[i] = file.element<uint32_t>(*kv, kv->is_array ? i : 0);
            if (values[i] > max) {
                file.fail_key(kv->key, cat("holds ", values[i], ", expected 0 to ", max));
            }
        }
        return values;
    }

    // What there is one of a layer. False where the heads cannot be read.
    bool read_layers() {
        sizes.n_layer    = u32("block_count", 0);
        sizes.n_embd     = u32("embedding_length", 0);
        const bool heads = problems.attempt([&] { sizes.n_head = per_layer("attention.head_count", max_heads); });
        const bool kv    = problems.attempt([&] { sizes.n_head_kv = per_layer("attention.head_count_kv", max_heads); });
        problems.attempt([&] { sizes.n_ff = per_layer("feed_forward_length", max_width); });
        problems.attempt([&] { sizes.n_ff_exp = per_layer("expert_feed_forward_length", max_width); });
        if (sizes.n_head_kv.empty()) {
            sizes.n_head_kv = sizes.n_head;
        }
        problems.attempt([&] { check_predict_layers(); });
        problems.attempt([&] { check_experts(); });
        return heads && kv;
    }

    void check_predict_layers() const {
        if (u32("nextn_predict_layers", 0) > sizes.n_layer) {
            file.fail_key(key("nextn_predict_layers"),
                cat("is ", u32("nextn_predict_layers", 0), ", expected at most the ", sizes.n_layer, " layers"));
        }
    }

    void check_experts() {
        sizes.n_expert       = u32("expert_count", 0);
        const uint32_t group = u32("expert_group_count", 0);
        const uint32_t taken = u32("expert_group_used_count", 0);
        const auto     used  = per_layer("expert_used_count", max_experts);
        const uint32_t most  = used.empty() ? 0 : *std::max_element(used.begin(), used.end());

        if (most > sizes.n_expert || (sizes.n_expert > 0 && most == 0)) {
            file.fail_key(key("expert_used_count"), cat("is ", most, " of ", sizes.n_expert, " experts"));
        }
        const bool count_fits = group == 0 || group < sizes.n_expert;
        const bool split_fits = group < 2 || (sizes.n_expert % group == 0 && taken > 0 && taken < group);
        if (!count_fits || !split_fits) {
            file.fail_key(
                key("expert_group_count"), cat("is ", group, " with ", taken, " used, for ", sizes.n_expert, " experts"));
        }
    }

    void check_attention_mode() const {
        if (!file.get_bool(key("attention.causal")).value_or(true)) {
            file.unsupported(cat("key ", quoted(key("attention.causal")), " is false: not a model that writes text"));
        }
    }

    void read_rope_scaling() {
        const auto name = file.get_str(key("rope.scaling.type"));
        if (!name) {
            return;
        }
        if (*name != "none" && *name != "linear" && *name != "yarn" && *name != "longrope") {
            file.fail_key(key("rope.scaling.type"), cat("is ", quoted(*name), ", expected none, linear, yarn or longrope"));
        }
        sizes.rope_scaling = *name;
    }

    void read_heads() {
        if (sizes.n_head.empty() || sizes.n_head[0] == 0) {
            return;
        }
        const uint32_t head_dim = sizes.n_embd / sizes.n_head[0];
        sizes.head_dim_k        = u32("attention.key_length", head_dim);
        sizes.head_dim_v        = u32("attention.value_length", head_dim);
        sizes.n_rot             = u32("rope.dimension_count", sizes.head_dim_k);
        for (uint32_t i = 0; i < sizes.n_layer; ++i) {
            if (sizes.n_head_kv[i] != 0 && sizes.n_head[i] % sizes.n_head_kv[i] != 0) {
                file.fail_key(key("attention.head_count"),
                    cat("is ", sizes.n_head[i], " in layer ", i, ", expected a multiple of the ", sizes.n_head_kv[i],
                        " KV heads"));
            }
        }
    }
};

} // namespace

base_sizes check_hparams(const gguf_file & file, problem_list & problems) {
    return hparams_check(file, problems).run();
}

} // namespace otter
