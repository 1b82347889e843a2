// Products with weights that ggml has rearranged for the CPU (buffer type CPU_REPACK): there are no plain rows to read
// then, but ggml's own kernel for one column can be called from inside a fused node.

#pragma once

#include "ggml.h"

namespace otter {

// Rows come in groups of this many.
constexpr int64_t repacked_group = 8;

// Is this a rearranged weight whose kernel is known here? (Q4_0 on x86-64 with AVX2)
bool is_repacked(const ggml_tensor * weight);

// out[i] = row (begin + i) of the weight times the input, a column of Q8_0 blocks; begin and end are multiples of the group.
void repacked_product(const ggml_tensor * weight, int64_t begin, int64_t end, const void * input, float * out);

} // namespace otter
