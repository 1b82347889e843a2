// Refuses a base model on which llama.cpp would abort, crash or compute nonsense instead of reporting an error.

#pragma once

#include "gguf/base_parts.h"
#include "gguf/problem_list.h"

namespace otter {

// Sizes of a base as llama.cpp will read them from its keys.
struct base_sizes {
    std::string architecture;

    uint32_t n_layer = 0;
    uint32_t n_embd  = 0;
    uint32_t n_vocab = 0; // tokens in the tokenizer, which is what llama.cpp shapes the embedding by

    // one entry a layer; empty where the key is absent
    std::vector<uint32_t> n_head;
    std::vector<uint32_t> n_head_kv;
    std::vector<uint32_t> n_ff;
    std::vector<uint32_t> n_ff_exp;

    uint32_t head_dim_k = 0; // 0 without attention heads
    uint32_t head_dim_v = 0;
    uint32_t n_rot      = 0;
    uint32_t n_expert   = 0;

    std::string rope_scaling = "linear";
};

// Typed and bounded keys, tokenizer, tensor types, and for architectures that can be widened the complete list of
// tensors with their shapes.
// The other parts of a split base are opened and checked too. Throws otter_error: `file` for what is wrong,
// `unsupported` for what is right but not handled. One message names every key with a problem; of tensors it speaks where
// all keys are right. Does not read tensor data, see finite.h.
base_sizes check_base(const gguf_file & file);

// Its parts. The first two add what they find, and return what they could read nevertheless.
base_sizes check_hparams(const gguf_file & file, problem_list & problems);
uint32_t   check_vocab(const gguf_file & file, problem_list & problems); // number of tokens
void       check_tensors(const base_parts & parts, const base_sizes & sizes);

} // namespace otter
