// The steps of an inserted block as single nodes of a CPU graph. A graph node costs about 4 us (a barrier of all
// threads), as much as the arithmetic of a whole inserted sub-layer of a small insertion, so norm, concatenation,
// product, gate and residual are joined where the weights are readable by the CPU.
//
// d, e: widths of h and h'; T: tokens. The pieces of a product's input stand side by side along the columns.

#pragma once

#include "ggml.h"

namespace otter {

struct norm_params {
    float eps        = 0.0f;
    bool  layer_norm = false; // the mean of h is subtracted first
};

// Inserted weights of a norm.
struct norm_weights {
    ggml_tensor * weight = nullptr; // [e]; null where nothing is inserted
    ggml_tensor * bias   = nullptr; // [e]; null but for LayerNorm
};

// A weight that fused nodes multiply with. They take it as their user data, not as a source: the scheduler would refuse a
// source that ggml has rearranged. So it must outlive every graph.
struct block_weight {
    ggml_tensor * tensor = nullptr; // null where nothing is inserted
    ggml_tensor * bias   = nullptr; // [rows], of a product that is added to the residual; null where there is none
    norm_params   norm;
    float         scale    = 1.0f;  // of a product that is added to the residual
    bool          gelu_ffn = false; // the activation is GELU in its tanh form instead of SiLU
    bool          ungated  = false; // the activation is no gate's, whose weight would hold two matrices, gate above up
};

// Input of an inserted sub-layer: y = the base's normed h [d, T]; h [d, T] gives the statistic; h_ins [e, T] is
// normed by it (partial norm: y' = w' * h' / rms(h), or w' * (h' - mean(h)) / std(h) + b'). Where the sub-layer has no
// norm, y = h and y' = h'.
struct norm_input {
    ggml_tensor * y;
    ggml_tensor * h;
    ggml_tensor * h_ins;
    norm_weights  ins; // null without a norm
};

// What the output o' of an inserted sub-layer is added to, h_ins [e, T]; where a norm stands before the sum, w' * o' / rms(o)
// with the base's output o [d, T].
struct residual_input {
    ggml_tensor * h_ins;
    ggml_tensor * o;
    ggml_tensor * w_ins; // [e]; null without a norm
};

// y' -> [e, T]
ggml_tensor * cpu_partial_norm(ggml_context * ctx, const norm_input & in, const norm_params & norm);

// weight @ [y, y'] -> [rows, T]
ggml_tensor * cpu_norm_mul_mat(ggml_context * ctx, const block_weight & weight, const norm_input & in);

// With x = [y, y'] -> ungated: activation(weight @ x) [rows, T]; else weight = gate above up -> activation(gate @ x) * (up @ x)
// [rows/2, T]
ggml_tensor * cpu_norm_act(ggml_context * ctx, const block_weight & weight, const norm_input & in);

// h' + scale * norm(weight @ [a, b] + bias) -> [rows, T]; b may be null where nothing is normed
ggml_tensor * cpu_mul_mat_add(
    ggml_context * ctx, const block_weight & weight, ggml_tensor * a, ggml_tensor * b, const residual_input & to);

// [a, b] -> [columns of a + columns of b, T]
ggml_tensor * cpu_concat(ggml_context * ctx, ggml_tensor * a, ggml_tensor * b);

// Do the weight's plain rows stand in host memory?
bool cpu_readable(const ggml_tensor * weight);

// Can the fused products take this weight? `parts`: how many stacked matrices it holds (gate and up: 2).
bool cpu_multipliable(const ggml_tensor * weight, int64_t parts);

} // namespace otter
