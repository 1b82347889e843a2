// What can be widened: the one list of this side. The other is otter_gguf/architectures, one file a model type.

#pragma once

#include <cstdint>

namespace otter {

// What llama.cpp's class of an architecture (src/models/) does otherwise than its Llama.
enum feature : uint32_t {
    // in the file, for the validator
    head_norms   = 1u << 0, // norms of queries and keys, a weight for each channel of a head
    map_biases   = 1u << 1, // attention output and FFN may have biases
    output_bias  = 1u << 2, // the output projection may have one
    rope_factors = 1u << 3, // rotary factors may stand in the file
    long_factors = 1u << 4, // long and short ones may, whatever the scaling is called
    partial_rope = 1u << 5, // the rotary embedding may leave out the last channels of a head
    experts      = 1u << 6, // the FFN may be a mixture of experts
    only_experts = 1u << 7, // it always is one, whose inner size is a key of its own
    fused_gate   = 1u << 8, // gate and up are one matrix, ffn_up
    scaled       = 1u << 9, // logits are divided by a number that the file must hold
    tied         = 1u << 10, // the output projection is the embedding, and has no tensor
    untied       = 1u << 11, // the output projection has a tensor of its own
    fused_qkv    = 1u << 12, // queries, keys and values are one map
    parallel     = 1u << 13, // a key says whether attention and FFN read the same state
    other_norms  = 1u << 14, // the FFN's norm may be missing, each query and key head may have a norm of its own
    positions    = 1u << 15, // a table of learned positions instead of a rotary embedding
    no_pre_norms = 1u << 16, // sub-layers read the state as it is
    post_norms   = 1u << 17, // the outputs of sub-layers are normed before they are added
    windows      = 1u << 18, // some layers attend within a window
    no_windows   = 1u << 19, // with a window it is an architecture of its own under the same name

    // in the file and in the graph
    layer_norms = 1u << 20, // norms are LayerNorm, each with a bias
    all_biases  = 1u << 21, // every map of a layer has a bias
    ungated     = 1u << 22, // the FFN has no gate
    joint_norms = 1u << 23, // head_norms have one statistic for all heads, and a weight for each channel of each head
    no_ffn_norm = 1u << 24, // the FFN reads attn_norm, beside attention, which may have attn_norm_2 instead

    // in the graph alone, for the inserted blocks
    gelu_ffn           = 1u << 25, // the FFN's activation is GELU in its tanh form instead of SiLU
    steps_without_rope = 1u << 26, // each n_no_rope_layer_step-th layer attends without rotary embedding
};

// row(name in a GGUF, llama_model_<class>, features)
// clang-format off
#define OTTER_ARCHITECTURES(row)                                                                                            \
    row("ernie4_5", ernie4_5, 0)                                                                                            \
    row("falcon",   falcon,   layer_norms | fused_qkv | ungated | no_ffn_norm | gelu_ffn)                                   \
    row("gemma",    gemma,    tied | gelu_ffn)                                                                              \
    row("gemma2",   gemma2,   tied | post_norms | windows | gelu_ffn)                                                       \
    row("gemma3",   gemma3,   head_norms | post_norms | windows | gelu_ffn)                                                 \
    row("gpt2",     gpt2,     layer_norms | all_biases | fused_qkv | ungated | gelu_ffn | positions)                        \
    row("gptneox",  gptneox,  layer_norms | all_biases | fused_qkv | ungated | gelu_ffn | untied | partial_rope | parallel) \
    row("granite",  granite,  map_biases | rope_factors | scaled)                                                           \
    row("llama",    llama,    map_biases | rope_factors | experts)                                                          \
    row("olmo2",    olmo2,    head_norms | joint_norms | no_pre_norms | post_norms | no_windows)                            \
    row("phi3",     phi3,     long_factors | partial_rope | fused_gate)                                                     \
    row("qwen2",    qwen2,    output_bias)                                                                                  \
    row("qwen3",    qwen3,    head_norms)                                                                                   \
    row("qwen3moe", qwen3moe, head_norms | experts | only_experts)                                                          \
    row("smollm3",  smollm3,  steps_without_rope)                                                                           \
    row("stablelm", stablelm, layer_norms | untied | partial_rope | other_norms)                                            \
    row("starcoder2", starcoder2, layer_norms | all_biases | ungated | gelu_ffn)
// clang-format on

} // namespace otter
