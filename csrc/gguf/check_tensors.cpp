// The tensors of an architecture, as llama.cpp's own class of it creates them (src/models/): every required one is
// there, each has its shape, and nothing is left over.

#include "architectures.h"
#include "gguf/check_base.h"
#include "gguf/problem_list.h"

#include <algorithm>
#include <initializer_list>
#include <iterator>
#include <map>
#include <optional>
#include <string_view>

namespace otter {

namespace {

struct tensor_form : feature_set {
    std::string_view architecture;
};

#define OTTER_FORM(name, class_name, features) { { features }, name },
constexpr tensor_form tensor_forms[] = { OTTER_ARCHITECTURES(OTTER_FORM) };
#undef OTTER_FORM

struct expected_tensor {
    std::vector<uint64_t> shape; // ggml order, columns first
    bool                  required;
    bool                  plain; // F32: used element-wise or as rotary factors
};

// What the graph of an architecture takes for granted beyond the keys' own ranges; all that is wrong in one message.
class geometry_check {
public:
    geometry_check(const gguf_file & head, const base_sizes & of_base, const tensor_form & of_architecture) :
        file(head),
        sizes(of_base),
        form(of_architecture),
        problems(head) {}

    void run() {
        problems.attempt([&] { uniform("attention.head_count", sizes.n_head); });
        problems.attempt([&] { uniform("attention.head_count_kv", sizes.n_head_kv); });
        problems.attempt([&] { uniform("feed_forward_length", sizes.n_ff); });
        attempt(&geometry_check::experts_width);
        attempt(&geometry_check::parallel_residual);
        attempt(&geometry_check::norms);
        attempt(&geometry_check::heads);
        attempt(&geometry_check::rotated);
        attempt(&geometry_check::only_text);
        attempt(&geometry_check::output_width);
        attempt(&geometry_check::scales);
        attempt(&geometry_check::number_of_experts);
        attempt(&geometry_check::window_sizes);
        attempt(&geometry_check::window_pattern);
        attempt(&geometry_check::caps);
        problems.throw_any();
    }

private:
    const gguf_file &   file;
    const base_sizes &  sizes;
    const tensor_form & form;
    problem_list        problems;

    void attempt(void (geometry_check::*check)() const) {
        problems.attempt([&] { (this->*check)(); });
    }

    std::string key(const char * name) const { return cat(sizes.architecture, ".", name); }

    void uniform(const char * name, const std::vector<uint32_t> & values) const {
        if (values.empty()) {
            file.fail_key(key(name), "is missing, expected a u32");
        }
        if (values[0] == 0 || std::count(values.begin(), values.end(), values[0]) != std::ptrdiff_t(values.size())) {
            file.fail_key(key(name), "holds 0 or differs between layers, expected one positive value");
        }
    }

    void absent(const char * name, const char * what) const {
        if (file.get_u32(key(name)).value_or(0) != 0) {
            file.unsupported(cat("key ", quoted(key(name)), " is not 0", what));
        }
    }

    void experts_width() const {
        if (form.has(only_experts)) {
            uniform("expert_feed_forward_length", sizes.n_ff_exp);
        }
    }

    void parallel_residual() const {
        if (form.has(parallel) && !file.get_bool(key("use_parallel_residual"))) {
            file.fail_key(key("use_parallel_residual"), "is missing, expected a bool");
        }
    }

    void norms() const {
        const char * epsilon = form.has(layer_norm) ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon";
        if (!file.get_f32(key(epsilon))) {
            file.fail_key(key(epsilon), "is missing, expected an f32");
        }
    }

    void heads() const {
        if (sizes.head_dim_k == 0 || sizes.head_dim_k % 2 != 0 || sizes.head_dim_k != sizes.head_dim_v) {
            file.fail_key(key("attention.key_length"),
                cat("gives heads of ", sizes.head_dim_k, " for keys and ", sizes.head_dim_v,
                    " for values, expected the same even number"));
        }
    }

    void rotated() const {
        const bool part_fits = sizes.n_rot > 0 && sizes.n_rot < sizes.head_dim_k && sizes.n_rot % 2 == 0;
        if (sizes.n_rot != sizes.head_dim_k && !(form.has(partial_rope) && part_fits)) {
            file.fail_key(key("rope.dimension_count"),
                cat("is ", sizes.n_rot, ", expected the head size ", sizes.head_dim_k,
                    form.has(partial_rope) ? " or a smaller even number" : ""));
        }
    }

    void only_text() const {
        absent("nextn_predict_layers", "");
        absent("pooling_type", ": an embedding model, not one that writes text");
        if (form.has(scaled) && file.find(key("deepstack_mapping")) != nullptr) {
            file.unsupported(cat("key ", quoted(key("deepstack_mapping")), ": a model that reads images"));
        }
    }

    void output_width() const {
        const auto n_embd_out = file.get_u32(key("embedding_length_out")).value_or(0);
        if (n_embd_out != 0 && n_embd_out != sizes.n_embd) {
            file.unsupported(cat("key ", quoted(key("embedding_length_out")), " is ", n_embd_out, ", expected ", sizes.n_embd));
        }
    }

    void scales() const {
        const auto logit_scale = file.get_f32(key("logit_scale"));
        if (form.has(scaled) && (!logit_scale || *logit_scale == 0.0f)) {
            file.fail_key(key("logit_scale"), "is missing or 0, expected an f32");
        }
    }

    void number_of_experts() const {
        if (form.has(only_experts) && sizes.n_expert == 0) {
            file.fail_key(key("expert_count"), "is missing or 0, expected a number of at least 1");
        }
        if (!form.has(experts) && sizes.n_expert > 0) {
            file.unsupported(cat("key ", quoted(key("expert_count")), " is ", sizes.n_expert, ", expected no experts"));
        }
    }

    void window_sizes() const {
        for (const char * name : { "attention.key_length_swa", "attention.value_length_swa", "rope.dimension_count_swa" }) {
            const uint32_t size = file.get_u32(key(name)).value_or(sizes.head_dim_k);
            if (size != sizes.head_dim_k) {
                file.unsupported(cat("key ", quoted(key(name)), " is ", size, ", expected the head size ", sizes.head_dim_k));
            }
        }
        const char * name = "attention.sliding_window";
        const auto   size = form.has(windows) || form.has(no_windows) ? file.get_u32(key(name)) : std::nullopt;
        if (form.has(no_windows) && size.value_or(0) > 0) {
            file.unsupported(cat("key ", quoted(key(name)), " is ", *size, ": layers that attend within a window"));
        }
        constexpr uint32_t most = 1 << 22; // llama.cpp takes memory for as many cells at each decode, whatever n_ctx is
        if (form.has(windows) && (size.value_or(1) == 0 || size.value_or(1) > most)) {
            file.fail_key(key(name), cat("is ", *size, ", expected 1 to ", most));
        }
    }

    void window_pattern() const {
        const std::string pattern = key("attention.sliding_window_pattern");
        const kv_entry *  kv      = form.has(windows) ? file.find(pattern) : nullptr;
        if (kv == nullptr) {
            return;
        }
        const bool whole = kv->type == GGUF_TYPE_UINT32 || kv->type == GGUF_TYPE_INT32 || kv->type == GGUF_TYPE_BOOL;
        const bool fits  = kv->is_array ? whole && kv->count == sizes.n_layer : kv->type == GGUF_TYPE_UINT32;
        if (!fits) {
            file.fail_key(
                pattern, cat("is ", kv->type_name(), ", expected a u32 or one flag for each of ", sizes.n_layer, " layers"));
        }
    }

    void caps() const {
        for (const char * name : { "attn_logit_softcapping", "final_logit_softcapping" }) {
            const auto cap = file.get_f32(key(name));
            if (sizes.architecture == "gemma2" && cap.value_or(1.0f) <= 0.0f) { // its graph divides by it
                file.fail_key(key(name), cat("is ", *cap, ", expected a number above 0"));
            }
        }
    }
};

class tensor_check {
public:
    tensor_check(const base_parts & base, const base_sizes & of_base, const tensor_form & of_architecture) :
        parts(base),
        sizes(of_base),
        form(of_architecture) {}

    void run() {
        expect_tensors();
        expect_scales();
        compare();
    }

private:
    const base_parts &                     parts;
    const base_sizes &                     sizes;
    const tensor_form &                    form;
    std::map<std::string, expected_tensor> expected;

    bool has(const std::string & name) const { return parts.find_tensor(name) != nullptr; }

    void matrix(const std::string & name, std::initializer_list<uint64_t> shape, bool required = true) {
        expected[name + ".weight"] = { shape, required, false };
    }
    void vector(const std::string & name, uint64_t n, bool required = true) { expected[name] = { { n }, required, true }; }
    void norm(const std::string & name, bool required = true) {
        vector(name + ".weight", sizes.n_embd, required);
        if (form.has(layer_norm)) {
            vector(name + ".bias", sizes.n_embd, required);
        }
    }
    // of a map: `optional`: the feature that allows it
    void bias(const std::string & name, uint64_t n, feature optional) {
        if (form.has(all_biases) || form.has(optional)) {
            vector(name + ".bias", n, form.has(all_biases));
        }
    }

    void expect_tensors() {
        matrix("token_embd", { sizes.n_embd, sizes.n_vocab });
        if (!form.has(tied)) {
            matrix("output", { sizes.n_embd, sizes.n_vocab }, form.has(untied));
        }
        norm("output_norm");
        if (form.has(positions)) {
            const std::string n_positions = sizes.architecture + ".context_length";
            matrix("position_embd", { sizes.n_embd, parts.head().get_u32(n_positions).value_or(0) });
        }
        if (form.has(lm_head_bias)) {
            vector("output.bias", sizes.n_vocab, false);
        }
        if (form.has(long_factors) || (form.has(rope_factors) && sizes.rope_scaling == "longrope")) {
            vector("rope_factors_long.weight", sizes.n_rot / 2, false);
            vector("rope_factors_short.weight", sizes.n_rot / 2, false);
        } else if (form.has(rope_factors)) {
            vector("rope_freqs.weight", sizes.n_rot / 2, false);
        }
        for (uint32_t i = 0; i < sizes.n_layer; ++i) {
            const std::string layer = cat("blk.", i, ".");
            expect_attention(layer);
            expect_norms(layer);
            if (sizes.n_expert == 0) {
                expect_ffn(layer);
            } else {
                expect_experts(layer);
            }
        }
    }

    void expect_norms(const std::string & layer) {
        if (!form.has(no_pre_norms)) {
            norm(layer + "attn_norm");
            if (form.has(one_norm)) {
                norm(layer + "attn_norm_2", false);
            } else {
                norm(layer + "ffn_norm", !form.has(other_norms));
            }
        }
        if (form.has(post_norm)) {
            vector(layer + "post_attention_norm.weight", sizes.n_embd);
            vector(layer + "post_ffw_norm.weight", sizes.n_embd);
        }
    }

    void expect_attention(const std::string & layer) {
        const uint64_t d   = sizes.n_embd;
        const uint64_t n_q = uint64_t(sizes.head_dim_k) * sizes.n_head[0];
        const uint64_t n_k = uint64_t(sizes.head_dim_k) * sizes.n_head_kv[0];

        if (form.has(only_fused_qkv) || has(layer + "attn_qkv.weight")) {
            matrix(layer + "attn_qkv", { d, n_q + 2 * n_k });
            if (!form.has(only_fused_qkv) || form.has(all_biases)) {
                vector(layer + "attn_qkv.bias", n_q + 2 * n_k, form.has(all_biases));
            }
        } else {
            matrix(layer + "attn_q", { d, n_q });
            matrix(layer + "attn_k", { d, n_k });
            matrix(layer + "attn_v", { d, n_k });
        }
        if (!form.has(only_fused_qkv) && !has(layer + "attn_qkv.bias")) {
            vector(layer + "attn_q.bias", n_q, false);
            vector(layer + "attn_k.bias", n_k, false);
            vector(layer + "attn_v.bias", n_k, false);
        }
        matrix(layer + "attn_output", { n_q, d });
        bias(layer + "attn_output", d, map_biases);
        if (form.has(head_norms)) {
            vector(layer + "attn_q_norm.weight", form.has(joint_head_norms) ? n_q : sizes.head_dim_k);
            vector(layer + "attn_k_norm.weight", form.has(joint_head_norms) ? n_k : sizes.head_dim_k);
        }
        if (form.has(other_norms)) {
            expected[layer + "attn_q_norm.weight"] = { { sizes.head_dim_k, sizes.n_head[0] }, false, true };
            expected[layer + "attn_k_norm.weight"] = { { sizes.head_dim_k, sizes.n_head_kv[0] }, false, true };
        }
    }

    void expect_ffn(const std::string & layer) {
        const uint64_t d = sizes.n_embd;
        const uint64_t f = sizes.n_ff[0];
        if (!form.has(ungated) && !form.has(fused_gate)) {
            matrix(layer + "ffn_gate", { d, f });
            bias(layer + "ffn_gate", f, map_biases);
        }
        matrix(layer + "ffn_up", { d, form.has(fused_gate) ? 2 * f : f });
        bias(layer + "ffn_up", f, map_biases);
        matrix(layer + "ffn_down", { f, d });
        bias(layer + "ffn_down", d, map_biases);
    }

    void expect_experts(const std::string & layer) {
        const uint64_t d = sizes.n_embd;
        const uint64_t f = form.has(only_experts) ? sizes.n_ff_exp[0] : sizes.n_ff[0];
        const uint64_t n = sizes.n_expert;
        matrix(layer + "ffn_gate_inp", { d, n });
        matrix(layer + "ffn_gate_exps", { d, f, n });
        matrix(layer + "ffn_up_exps", { d, f, n });
        matrix(layer + "ffn_down_exps", { f, d, n });
    }

    // Each layer matrix may have a scale beside it (NVFP4): one value, or one an expert. Not beside a bias: llama.cpp's
    // graph asserts against that pair.
    void expect_scales() {
        std::vector<std::pair<std::string, uint64_t>> scales;
        for (const auto & [name, tensor] : expected) {
            const bool layer_weight = !tensor.plain && name.rfind("blk.", 0) == 0;
            const auto stem         = name.substr(0, name.size() - std::string_view("weight").size());
            if (layer_weight && !has(stem + "bias")) {
                const uint64_t n = tensor.shape.size() == 3 ? tensor.shape[2] : 1;
                scales.emplace_back(stem + "scale", n);
                scales.emplace_back(stem + "input_scale", n);
            }
        }
        for (const auto & [name, n] : scales) {
            vector(name, n, false);
        }
    }

    // All differences in one message.
    void compare() const {
        std::vector<std::string> missing;
        std::vector<std::string> wrong;
        for (const auto & [name, tensor] : expected) {
            const tensor_entry * found = parts.find_tensor(name);
            if (found != nullptr) {
                compare_one(*found, tensor, wrong);
            } else if (tensor.required) {
                missing.push_back(name);
            }
        }
        const std::vector<std::string> extra = unexpected();
        if (!missing.empty() || !wrong.empty() || !extra.empty()) {
            parts.head().fail(cat("the tensors are not those of a ", sizes.architecture, " model with ", sizes.n_layer,
                " layers", listed("missing", missing), listed("wrong", wrong), listed("unexpected", extra)));
        }
    }

    std::vector<std::string> unexpected() const {
        std::vector<std::string> extra;
        for (const gguf_file * file : parts.all()) {
            for (const tensor_entry & info : file->tensors()) {
                const bool inserted = info.name.find(".otter.") != std::string_view::npos; // a merged file's own part
                if (!inserted && expected.count(std::string(info.name)) == 0) {
                    extra.push_back(quoted(info.name));
                }
            }
        }
        return extra;
    }

    static void compare_one(const tensor_entry & found, const expected_tensor & tensor, std::vector<std::string> & wrong) {
        std::vector<uint64_t> shape = tensor.shape;
        shape.resize(found.ne.size(), 1);
        if (!std::equal(shape.begin(), shape.end(), found.ne.begin())) {
            wrong.push_back(cat(found.name, " ", shape_text(found.ne.data(), found.n_dims), " expected ",
                shape_text(tensor.shape.data(), uint32_t(tensor.shape.size()))));
        } else if (tensor.plain && found.type != GGML_TYPE_F32) {
            wrong.push_back(cat(found.name, " ", tensor_type_name(found.type), " expected F32"));
        }
    }

    // "; missing: a, b, c and 4 more"
    static std::string listed(const char * title, const std::vector<std::string> & items) {
        static const size_t max_items = 6;
        std::string         out       = items.empty() ? "" : cat("; ", title, ": ");
        for (size_t i = 0; i < std::min(items.size(), max_items); ++i) {
            out += (i == 0 ? "" : ", ") + items[i];
        }
        return items.size() > max_items ? cat(out, " and ", items.size() - max_items, " more") : out;
    }
};

} // namespace

void check_tensors(const base_parts & parts, const base_sizes & sizes) {
    const auto form = std::find_if(std::begin(tensor_forms), std::end(tensor_forms),
        [&](const tensor_form & known) { return known.architecture == sizes.architecture; });
    if (form == std::end(tensor_forms)) {
        return;
    }
    geometry_check(parts.head(), sizes, *form).run();
    tensor_check(parts, sizes, *form).run();
}

} // namespace otter
