// The tensors of architecture `llama`, as llama.cpp's own class creates them (src/models/llama.cpp): every required
// one is there, each has its shape, and nothing is left over.

#include "gguf/check_base.h"

#include <algorithm>
#include <initializer_list>
#include <map>

namespace otter {

namespace {

struct expected_tensor {
    std::vector<uint64_t> shape; // ggml order, columns first
    bool                  required;
    bool                  plain; // F32: used element-wise or as rotary factors
};

// What the graph of this architecture takes for granted beyond the keys' own ranges.
void check_geometry(const gguf_file & file, const base_sizes & sizes) {
    const auto uniform = [&](const char * name, const std::vector<uint32_t> & values) {
        const std::string key = cat("llama.", name);
        if (values.empty()) {
            file.fail_key(key, "is missing, expected a u32");
        }
        if (values[0] == 0 || std::count(values.begin(), values.end(), values[0]) != std::ptrdiff_t(values.size())) {
            file.fail_key(key, "holds 0 or differs between layers, expected one positive value");
        }
    };
    uniform("attention.head_count", sizes.n_head);
    uniform("attention.head_count_kv", sizes.n_head_kv);
    uniform("feed_forward_length", sizes.n_ff);

    if (!file.get_f32("llama.attention.layer_norm_rms_epsilon")) {
        file.fail_key("llama.attention.layer_norm_rms_epsilon", "is missing, expected an f32");
    }
    if (sizes.head_dim_k == 0 || sizes.head_dim_k % 2 != 0 || sizes.head_dim_k != sizes.head_dim_v) {
        file.fail_key("llama.attention.key_length", cat("gives heads of ", sizes.head_dim_k, " for keys and ",
                sizes.head_dim_v, " for values, expected the same even number"));
    }
    if (sizes.n_rot != sizes.head_dim_k) {
        file.fail_key("llama.rope.dimension_count", cat("is ", sizes.n_rot, ", expected the head size ",
                sizes.head_dim_k));
    }
    if (file.get_u32("llama.nextn_predict_layers").value_or(0) != 0) {
        file.unsupported("key 'llama.nextn_predict_layers' is not 0");
    }
    if (file.get_u32("llama.pooling_type").value_or(0) != 0) {
        file.unsupported("key 'llama.pooling_type' is not 0: an embedding model, not one that writes text");
    }
    const auto n_embd_out = file.get_u32("llama.embedding_length_out").value_or(0);
    if (n_embd_out != 0 && n_embd_out != sizes.n_embd) {
        file.unsupported(cat("key 'llama.embedding_length_out' is ", n_embd_out, ", expected ", sizes.n_embd));
    }
}

class llama_check {
public:
    llama_check(const base_parts & base, const base_sizes & of_base) : parts(base), sizes(of_base) {}

    void run() {
        expect_tensors();
        expect_scales();
        compare();
    }

private:
    const base_parts &                     parts;
    const base_sizes &                     sizes;
    std::map<std::string, expected_tensor> expected;

    bool has(const std::string & name) const { return parts.find_tensor(name) != nullptr; }

    void matrix(const std::string & name, std::initializer_list<uint64_t> shape, bool required = true) {
        expected[name + ".weight"] = { shape, required, false };
    }
    void vector(const std::string & name, uint64_t n, bool required = true) {
        expected[name] = { { n }, required, true };
    }

    void expect_tensors() {
        matrix("token_embd", { sizes.n_embd, sizes.n_vocab });
        matrix("output", { sizes.n_embd, sizes.n_vocab }, false);
        vector("output_norm.weight", sizes.n_embd);
        if (sizes.rope_scaling == "longrope") {
            vector("rope_factors_long.weight", sizes.n_rot / 2, false);
            vector("rope_factors_short.weight", sizes.n_rot / 2, false);
        } else {
            vector("rope_freqs.weight", sizes.n_rot / 2, false);
        }
        for (uint32_t i = 0; i < sizes.n_layer; ++i) {
            const std::string layer = cat("blk.", i, ".");
            expect_attention(layer);
            vector(layer + "ffn_norm.weight", sizes.n_embd);
            if (sizes.n_expert == 0) {
                expect_ffn(layer);
            } else {
                expect_experts(layer);
            }
        }
    }

    void expect_attention(const std::string & layer) {
        const uint64_t d   = sizes.n_embd;
        const uint64_t n_q = uint64_t(sizes.head_dim_k) * sizes.n_head[0];
        const uint64_t n_k = uint64_t(sizes.head_dim_k) * sizes.n_head_kv[0];

        vector(layer + "attn_norm.weight", d);
        if (has(layer + "attn_qkv.weight")) {
            matrix(layer + "attn_qkv", { d, n_q + 2 * n_k });
            vector(layer + "attn_qkv.bias", n_q + 2 * n_k, false);
        } else {
            matrix(layer + "attn_q", { d, n_q });
            matrix(layer + "attn_k", { d, n_k });
            matrix(layer + "attn_v", { d, n_k });
        }
        if (!has(layer + "attn_qkv.bias")) {
            vector(layer + "attn_q.bias", n_q, false);
            vector(layer + "attn_k.bias", n_k, false);
            vector(layer + "attn_v.bias", n_k, false);
        }
        matrix(layer + "attn_output", { n_q, d });
        vector(layer + "attn_output.bias", d, false);
    }

    void expect_ffn(const std::string & layer) {
        const uint64_t d = sizes.n_embd;
        const uint64_t f = sizes.n_ff[0];
        matrix(layer + "ffn_gate", { d, f });
        matrix(layer + "ffn_up", { d, f });
        matrix(layer + "ffn_down", { f, d });
        vector(layer + "ffn_gate.bias", f, false);
        vector(layer + "ffn_up.bias", f, false);
        vector(layer + "ffn_down.bias", d, false);
    }

    void expect_experts(const std::string & layer) {
        const uint64_t d = sizes.n_embd;
        const uint64_t f = sizes.n_ff[0];
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
            parts.head().fail(cat("the tensors are not those of a llama model with ", sizes.n_layer, " layers",
                    listed("missing", missing), listed("wrong", wrong), listed("unexpected", extra)));
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

    static void compare_one(const tensor_entry & found, const expected_tensor & tensor,
            std::vector<std::string> & wrong) {
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

void check_llama(const base_parts & parts, const base_sizes & sizes) {
    check_geometry(parts.head(), sizes);
    llama_check(parts, sizes).run();
}

} // namespace otter
