// What llama.cpp's public header lacks about moving positions in the KV cache.

#pragma once

#include "llama.h"

namespace otter {

// ConfigError unless the keys and values of every layer, inserted ones too, are whole blocks of these types. llama.cpp
// looks under flash attention only, and at the base's layers only: elsewhere it aborts, or computes with half a block.
void check_cache_types(const llama_model * model, ggml_type type_k, ggml_type type_v);

// Whether a shift works. llama.cpp's own answer leaves out models without rotary embedding, whose keys hold no position
// that could be changed, keys of a type that its rotation does not know (BF16), keys that are quantized without having
// been mixed first (a head size that is no multiple of 64, or LLAMA_ATTN_ROT_DISABLE set), and models whose every layer
// attends within a window: it reads through a null pointer then.
bool can_shift(llama_context * ctx, ggml_type type_k);

// How many positions a model has learned embeddings for (GPT-2), reading a further one would end the process; INT32_MAX
// where it has none.
int32_t n_learned_positions(const llama_model * model);

// Whether a sequence could not go on at position `begin`: layers with a window need keys that llama.cpp has written over,
// or not saved, because the window had moved on.
bool window_lost(llama_context * ctx, llama_seq_id sequence, llama_pos begin);

// Rotate the keys whose positions were moved. llama.cpp does it at the beginning of the next decode: a state saved
// before holds the keys unrotated, and a decode that is interrupted there leaves some layers rotated, and has them
// rotated again.
void apply_shift(llama_context * ctx);

} // namespace otter
