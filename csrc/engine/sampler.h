// llama.cpp's samplers over a row of logits.

#pragma once

#include "logits.h"
#include "model.h"
#include "watch.h"

#include "bridge/grammar.h"

#include <atomic>
#include <memory>
#include <set>
#include <string>
#include <vector>

namespace otter {

// Without defaults: they are Python's.
struct sampler_options {
    float    temperature; // 0 = greedy
    int32_t  top_k;       // 0 = all
    float    top_p;
    float    min_p;
    float    repeat_penalty;
    int32_t  repeat_last_n;
    float    frequency_penalty;
    float    presence_penalty;
    uint32_t seed;

    std::vector<llama_logit_bias> logit_bias;
    std::string                   grammar; // llama.cpp's GBNF; empty = none

    stop_function interrupted; // asked while the grammar works; then what it was doing is left undone
};

struct free_sampler {
    void operator()(llama_sampler * sampler) const { llama_sampler_free(sampler); }
};

using llama_sampler_ptr = std::unique_ptr<llama_sampler, free_sampler>;

// What the samplers remember of a text. Null: there is no such sampler.
struct sampler_history {
    llama_sampler_ptr               penalties;
    std::unique_ptr<otter::grammar> grammar;
    double                          seconds_left = 0.0; // of processor time, for the grammar
    std::set<llama_token>           seen; // since the beginning; no other token's logit is changed by penalties

    sampler_history clone() const;
};

// A history put aside, and which sampler it fits.
struct sampler_state {
    std::shared_ptr<const sampler_options> options;
    sampler_history                        history;
};

// Two chains. History: logit bias, penalties, grammar. Choice: top-k, top-p, min-p, temperature, draw or greedy.
class sampler {
public:
    sampler(std::shared_ptr<const model> owner, const sampler_options & options);

    sampler(const sampler &)             = delete;
    sampler & operator=(const sampler &) = delete;

    // `logits` is a row of the vocabulary's size everywhere.

    // Both chains; the token is accepted. ConfigError if none is left.
    llama_token sample(const float * logits);

    // The k best after the history chain (see best_tokens). ConfigError if none is left.
    std::vector<candidate> candidates(const float * logits, const float * bonus, int32_t k);

    // The choice chain alone: an index into n scores.
    int32_t choose(const float * scores, int32_t n);

    // A token of the prompt counts for the penalties; the grammar, which begins behind the prompt, does not see it.
    void accept(llama_token token, bool prompt);

    sampler_state save() const;
    void          restore(const sampler_state & state);
    void          reset();

    // Same settings and history, other draws.
    std::shared_ptr<sampler> clone(uint32_t seed) const;

    bool has_history() const;

    const std::shared_ptr<const model> owner;

private:
    sampler(const sampler & other, uint32_t seed);

    std::shared_ptr<const sampler_options> options;

    sampler_history   history;
    llama_sampler_ptr choice;

    std::vector<float>            row;   // logits after bias and penalties
    std::vector<llama_token_data> array; // what a chain works on
    mutable std::atomic<bool>     busy { false };
    const live_count<sampler>     counted;

    const float * adjust(const float * logits);

    std::vector<candidate> best(const float * adjusted, const float * bonus, int32_t k);

    bool offer(const float * adjusted);
    void offer(const std::vector<candidate> & tokens);

    llama_token choose(bool sorted);

    void keep_allowed(std::vector<candidate> & tokens);
    void remember(llama_token token, bool prompt);
    void accept_in_grammar(llama_token token);
};

} // namespace otter
