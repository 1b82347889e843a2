// The header in front of a saved sequence. llama.cpp trusts most of what it reads back, so that a damaged or foreign
// state must not reach it.

#pragma once

#include "ggml.h"

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace otter {

class model;

// What must be the same where a sequence is loaded: llama.cpp, model, insertion and cache types.
std::string saved_geometry(const model & owner, ggml_type type_k, ggml_type type_v);

// Bytes of the header at the beginning of the data.
constexpr size_t state_header_size = 32;

// Fill in the header; the payload stands behind it.
void write_state_header(std::vector<uint8_t> & data, const std::string & geometry);

// ConfigError unless the data is whole, undamaged and of this geometry.
void check_state_header(const uint8_t * data, size_t size, const std::string & geometry);

} // namespace otter
