#include "sampler.h"

#include "fail.h"

#include <cmath>

namespace otter {

namespace {

void check(const sampler_options & options) {
    const auto refuse = [](const char * name, float value, const char * expected) {
        throw config_error(std::string(name) + " is " + std::to_string(value) + ", expected " + expected);
    };
    if (!(options.temperature >= 0.0f) || !std::isfinite(options.temperature)) {
        refuse("temperature", options.temperature, "a finite number of at least 0");
    }
    if (options.top_k < 0) {
        refuse("top_k", float(options.top_k), "at least 0 (0 = all)");
    }
    if (!(options.top_p > 0.0f && options.top_p <= 1.0f)) {
        refuse("top_p", options.top_p, "above 0 and at most 1");
    }
    if (!(options.min_p >= 0.0f && options.min_p <= 1.0f)) {
        refuse("min_p", options.min_p, "0 to 1");
    }
    if (!(options.repeat_penalty > 0.0f) || !std::isfinite(options.repeat_penalty)) {
        refuse("repeat_penalty", options.repeat_penalty, "a finite number above 0");
    }
    if (!std::isfinite(options.frequency_penalty) || !std::isfinite(options.presence_penalty)) {
        refuse("frequency_penalty or presence_penalty", options.frequency_penalty, "finite numbers");
    }
    if (options.repeat_last_n < -1) {
        refuse("repeat_last_n", float(options.repeat_last_n), "at least -1");
    }
}

// The order of llama.cpp's own default chain: penalties, top-k, top-p, min-p, temperature, draw.
llama_sampler * build_chain(const model & owner, const sampler_options & options) {
    check(options);
    llama_sampler * chain = llama_sampler_chain_init(llama_sampler_chain_default_params());

    if (options.repeat_penalty != 1.0f || options.frequency_penalty != 0.0f || options.presence_penalty != 0.0f) {
        const int32_t last_n = options.repeat_last_n < 0 ? llama_model_n_ctx_train(owner.get()) : options.repeat_last_n;
        llama_sampler_chain_add(chain, llama_sampler_init_penalties(llama_vocab_n_tokens(owner.vocab()), last_n, options.repeat_penalty,
                options.frequency_penalty, options.presence_penalty));
    }
    if (options.temperature == 0.0f) {
        llama_sampler_chain_add(chain, llama_sampler_init_greedy());
        return chain;
    }
    if (options.top_k > 0) {
        llama_sampler_chain_add(chain, llama_sampler_init_top_k(options.top_k));
    }
    if (options.top_p < 1.0f) {
        llama_sampler_chain_add(chain, llama_sampler_init_top_p(options.top_p, 1));
    }
    if (options.min_p > 0.0f) {
        llama_sampler_chain_add(chain, llama_sampler_init_min_p(options.min_p, 1));
    }
    llama_sampler_chain_add(chain, llama_sampler_init_temp(options.temperature));
    llama_sampler_chain_add(chain, llama_sampler_init_dist(options.seed));
    return chain;
}

} // namespace

sampler::sampler(std::shared_ptr<const model> model_owner, const sampler_options & options) :
    owner(std::move(model_owner)), chain(build_chain(*owner, options), llama_sampler_free) {}

llama_token sampler::sample(const context & ctx, int32_t row) {
    const float * logits  = ctx.logits_row(row);
    const int32_t n_vocab = llama_vocab_n_tokens(owner->vocab());
    if (ctx.owner != owner) {
        throw config_error("the sampler and the context belong to different models");
    }

    candidates.resize(size_t(n_vocab));
    for (llama_token token = 0; token < n_vocab; ++token) {
        candidates[size_t(token)] = { token, logits[token], 0.0f };
    }
    llama_token_data_array array = { candidates.data(), candidates.size(), -1, false };
    llama_sampler_apply(chain.get(), &array);
    if (array.selected < 0 || size_t(array.selected) >= array.size) {
        throw engine_error("llama.cpp's sampler chose no token: are the logits finite?");
    }

    const llama_token token = array.data[array.selected].id;
    llama_sampler_accept(chain.get(), token);
    return token;
}

void sampler::accept(llama_token token) {
    owner->check_token(token);
    llama_sampler_accept(chain.get(), token);
}

void sampler::reset() {
    llama_sampler_reset(chain.get());
}

} // namespace otter
