// llama.cpp's sampler chain over an output row of a context.

#pragma once

#include "context.h"

#include <memory>
#include <vector>

namespace otter {

struct sampler_options {
    float    temperature       = 0.8f; // 0 = greedy
    int32_t  top_k             = 40;   // 0 = all
    float    top_p             = 0.95f;
    float    min_p             = 0.05f;
    float    repeat_penalty    = 1.0f;
    int32_t  repeat_last_n     = 64;
    float    frequency_penalty = 0.0f;
    float    presence_penalty  = 0.0f;
    uint32_t seed              = LLAMA_DEFAULT_SEED;
};

class sampler {
public:
    sampler(std::shared_ptr<const model> owner, const sampler_options & options);

    // Choose from a row and remember the choice for the penalties.
    llama_token sample(const context & ctx, int32_t row);

    void accept(llama_token token);
    void reset();

private:
    std::shared_ptr<const model>  owner;
    std::vector<llama_token_data> candidates;

    std::unique_ptr<llama_sampler, decltype(&llama_sampler_free)> chain;
};

} // namespace otter
