// Names and sizes of GGUF value types and of the tensor types that this package accepts.

#pragma once

#include "ggml.h"
#include "gguf.h"

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace otter {

// "u32", "f32", "str" ...; nullptr if there is no such type.
const char * value_type_name(uint32_t type);

// Bytes of one value; 0 for strings and arrays.
uint64_t value_type_size(gguf_type type);

// Types that llama.cpp can multiply with and look rows up in. Integers, F64 and the intermediate Q8_1 and Q8_K pass
// llama.cpp's reader and then call a null function or abort.
bool tensor_type_usable(uint32_t type);

// ggml's name in upper case ("F16", "Q4_K"), "type 99" for an unknown number.
std::string tensor_type_name(uint32_t type);

// Inverse of tensor_type_name for usable types.
std::optional<ggml_type> tensor_type_from_name(std::string_view name);

// Why a tensor of this type and shape cannot exist ("" = it can); *n_bytes is its size. Every dimension at least 1,
// elements and bytes below 2^63 (llama.cpp counts in int64), rows of whole blocks.
std::string tensor_size_problem(ggml_type type, const uint64_t * ne, uint32_t n_dims, uint64_t * n_bytes);

// "[64, 128]"
std::string shape_text(const uint64_t * ne, uint32_t n_dims);

} // namespace otter
