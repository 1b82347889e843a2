// What can be widened: the one list of this side. The other is otter_gguf/architectures, one file a model type.

#pragma once

#include <cstdint>

namespace otter {

// What llama.cpp's class of an architecture (src/models/) does otherwise than its Llama. What otter_gguf/architectures
// says too has the same name there: Architecture.traits, which a test compares with this table.
// clang-format off
#define OTTER_FEATURES(feature)                                                                                             \
    /* in the file, for the validator */                                                                                    \
    feature(head_norms)         /* norms of queries and keys, a weight for each channel of a head */                        \
    feature(map_biases)         /* attention output and FFN may have biases */                                              \
    feature(lm_head_bias)       /* the output projection may have one */                                                    \
    feature(rope_factors)       /* rotary factors may stand in the file */                                                  \
    feature(long_factors)       /* long and short ones may, whatever the scaling is called */                               \
    feature(partial_rope)       /* the rotary embedding may leave out the last channels of a head */                        \
    feature(experts)            /* the FFN may be a mixture of experts */                                                   \
    feature(only_experts)       /* it always is one, whose inner size is a key of its own */                                \
    feature(fused_gate)         /* gate and up are one matrix, ffn_up */                                                    \
    feature(scaled)             /* logits are divided by a number that the file must hold */                                \
    feature(tied)               /* the output projection is the embedding, and has no tensor */                             \
    feature(untied)             /* the output projection has a tensor of its own */                                         \
    feature(only_fused_qkv)     /* queries, keys and values are always one map, as they may be in every file */             \
    feature(parallel)           /* a key says whether attention and FFN read the same state */                              \
    feature(other_norms)        /* the FFN's norm may be missing, each query and key head may have a norm of its own */     \
    feature(positions)          /* a table of learned positions instead of a rotary embedding */                            \
    feature(no_pre_norms)       /* sub-layers read the state as it is */                                                    \
    feature(post_norm)          /* the outputs of sub-layers are normed before they are added */                            \
    feature(windows)            /* some layers attend within a window */                                                    \
    feature(no_windows)         /* with a window it is an architecture of its own under the same name */                    \
    /* in the file and in the graph */                                                                                      \
    feature(layer_norm)         /* norms are LayerNorm, each with a bias */                                                 \
    feature(all_biases)         /* every map of a layer has a bias */                                                       \
    feature(ungated)            /* the FFN has no gate */                                                                   \
    feature(joint_head_norms)   /* head_norms have one statistic for all heads, and weights for each of them */             \
    feature(one_norm)           /* the FFN reads attn_norm, and so does attention, unless there is an attn_norm_2 for it */ \
    /* in the graph alone, for the inserted blocks */                                                                       \
    feature(gelu_ffn)           /* the FFN's activation is GELU in its tanh form instead of SiLU */                         \
    feature(steps_without_rope) /* each n_no_rope_layer_step-th layer attends without rotary embedding */
// clang-format on

#define OTTER_NAME(name) name,
namespace feature_index {
enum : uint32_t { OTTER_FEATURES(OTTER_NAME) };
}
#undef OTTER_NAME

#define OTTER_BIT(name) name = 1u << feature_index::name,
enum feature : uint32_t { OTTER_FEATURES(OTTER_BIT) };
#undef OTTER_BIT

struct feature_set {
    uint32_t bits = 0;

    bool has(feature which) const { return (bits & which) != 0; }
};

// row(name in a GGUF, llama_model_<class>, features)
// clang-format off
#define OTTER_ARCHITECTURES(row)                                                                                                \
    row("ernie4_5", ernie4_5, 0)                                                                                                \
    row("falcon",   falcon,   layer_norm | only_fused_qkv | ungated | one_norm | gelu_ffn)                                      \
    row("gemma",    gemma,    tied | gelu_ffn)                                                                                  \
    row("gemma2",   gemma2,   tied | post_norm | windows | gelu_ffn)                                                            \
    row("gemma3",   gemma3,   head_norms | post_norm | windows | gelu_ffn)                                                      \
    row("gpt2",     gpt2,     layer_norm | all_biases | only_fused_qkv | ungated | gelu_ffn | positions)                        \
    row("gptneox",  gptneox,  layer_norm | all_biases | only_fused_qkv | ungated | gelu_ffn | untied | partial_rope | parallel) \
    row("granite",  granite,  map_biases | rope_factors | scaled)                                                               \
    row("llama",    llama,    map_biases | rope_factors | experts)                                                              \
    row("olmo2",    olmo2,    head_norms | joint_head_norms | no_pre_norms | post_norm | no_windows)                            \
    row("phi3",     phi3,     long_factors | partial_rope | fused_gate)                                                         \
    row("qwen2",    qwen2,    lm_head_bias)                                                                                     \
    row("qwen3",    qwen3,    head_norms)                                                                                       \
    row("qwen3moe", qwen3moe, head_norms | experts | only_experts)                                                              \
    row("smollm3",  smollm3,  steps_without_rope)                                                                               \
    row("stablelm", stablelm, layer_norm | untied | partial_rope | other_norms)                                                 \
    row("starcoder2", starcoder2, layer_norm | all_biases | ungated | gelu_ffn)
// clang-format on

} // namespace otter
