// llama.cpp's quantizer for whole base models, with what it would abort on checked first.

#pragma once

#include "llama.h"

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <variant>
#include <vector>

namespace otter {

struct quantize_options {
    llama_ftype file_type  = LLAMA_FTYPE_MOSTLY_Q8_0;
    bool        only_copy  = false; // every tensor as it is; file_type is ignored
    bool        pure       = false; // the file type's own tensor type everywhere, no mixture
    bool        keep_split = false; // one file for each of the source's; `target` is then their common prefix
    bool        dry_run    = false; // report the types, write nothing
    int32_t     n_threads  = 0;     // 0 = all

    ggml_type output_tensor_type   = GGML_TYPE_COUNT; // COUNT = the mixture's own
    ggml_type token_embedding_type = GGML_TYPE_COUNT;

    std::map<std::string, std::vector<float>>                       importance; // by tensor, one value a column
    std::map<std::string, std::variant<int64_t, std::string>>       metadata;   // added to the target
    std::function<bool(const std::string & tensor, ggml_type type)> progress;   // after each tensor; false stops
};

struct quantize_report {
    std::map<std::string, ggml_type> types;     // of the target's tensors
    std::vector<std::string>         fallbacks; // tensors whose rows do not fit the blocks of the type meant for them
    bool                             needs_importance = false; // found in a dry run: writing would fail without it
};

// Reads `source` (the first file of a split one) and writes `target`. Tensors that are quantized already are
// quantized again. Throws otter_error: `file` for a damaged source, `config` for types that do not fit its rows or
// that lack importance values, `engine` with llama.cpp's words for all else, being stopped included. Other threads
// that log meanwhile can tear a line apart: then a dry run fails, and progress leaves a tensor out.
quantize_report quantize_model(const std::string & source, const std::string & target, const quantize_options & options);

// Every line of llama.cpp's log must pass here: they are the quantizer's only account of what it does. Throws where
// the quantizer that runs in this thread is to stop.
void watch_quantizer(const std::string & line);

} // namespace otter
