// ggml's reference quantizers, with everything checked that they assert or leave undefined.

#pragma once

#include "gguf/types.h"

#include <vector>

namespace otter {

// Bytes of a tensor. Throws otter_error(file) on an unknown type, a shape without 1 to 4 dimensions, a row that is no
// multiple of the block, an overflow.
uint64_t tensor_nbytes(const std::string & type, const std::vector<uint64_t> & shape);

// The usable type of this name; otter_error(file) otherwise.
ggml_type parse_tensor_type(const std::string & name);

// Bytes of rows x columns values in the type's layout. Throws otter_error: `config` for a type that needs an
// importance matrix, `file` for values that are not finite, or not so in the target type (F16 ends at 65504).
std::vector<uint8_t> quantize_rows(ggml_type type, const float * values, uint64_t n_rows, uint64_t n_columns);

// Inverse: n_rows x n_columns values from whole rows of blocks.
void dequantize_rows(ggml_type type, const uint8_t * data, uint64_t n_rows, uint64_t n_columns, float * values);

} // namespace otter
