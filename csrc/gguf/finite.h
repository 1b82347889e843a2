// Finds NaN and infinity in tensor data at memory speed.

#pragma once

#include "gguf/gguf_file.h"

namespace otter {

// Index of the first value (F32, F16, BF16) or block (quantized types: by its scales) that is NaN or infinite; -1 if
// there is none. `data` holds n_bytes, whole blocks.
int64_t first_non_finite(ggml_type type, const uint8_t * data, uint64_t n_bytes);

// Throws otter_error(file) that names the first of these tensors with such a value, or one that the file lacks.
void check_finite(const gguf_file & file, const std::vector<std::string> & names);

} // namespace otter
