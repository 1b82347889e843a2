// A loaded model: llama.cpp's own, or llama.cpp's own with an inserted part.

#pragma once

#include "heads.h"
#include "watch.h"

#include "gguf/live.h"

#include "llama.h"

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

namespace otter {

struct model_options {
    std::string        sidecar;
    int32_t            n_gpu_layers = -1;
    llama_split_mode   split_mode   = LLAMA_SPLIT_MODE_LAYER;
    int32_t            main_gpu     = 0;
    std::vector<float> tensor_split;
    bool               use_mmap      = true;
    bool               use_mlock     = false;
    bool               check_tensors = false;
    bool               vocab_only    = false;

    std::function<bool(float)> progress; // false = stop loading
};

class model {
public:
    model(const std::string & path, const model_options & options, std::optional<insertion> inserted);

    model(const model &)             = delete;
    model & operator=(const model &) = delete;

    llama_model *       get() const { return handle.get(); }
    const llama_vocab * vocab() const { return llama_model_get_vocab(handle.get()); }

    const std::optional<insertion> inserted;

    // ConfigError if there are not that many vocabulary heads
    const vocabulary_head & vocabulary(int32_t head) const;

    int32_t n_layer() const;
    int32_t n_rewards() const { return inserted ? inserted->spec.n_rewards() : 0; }
    int32_t row_size() const { return inserted ? inserted->spec.row_size(llama_model_n_embd(get())) : 0; }

    // ConfigError on a text that is not Unicode, that this tokenizer has no stack for, or that takes it too long.
    std::vector<llama_token> tokenize(
        const std::string & text, bool add_special, bool parse_special, const stop_function & stop = {}) const;
    std::string detokenize(const std::vector<llama_token> & tokens, bool special) const;
    std::string token_text(llama_token token, bool special) const;
    std::string description() const;

    // ConfigError if the token is not in the vocabulary
    void check_token(llama_token token) const;

private:
    std::unique_ptr<llama_model, decltype(&llama_model_free)> handle;

    std::vector<vocabulary_head> vocabulary_heads; // point into `inserted` and `handle`

    const live_count<model> counted;
};

} // namespace otter
