#include "sampler.h"

#include "exclusive.h"
#include "fail.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace otter {

namespace {

constexpr float   minus_inf  = -std::numeric_limits<float>::infinity();
constexpr int32_t max_last_n = 1 << 24; // llama.cpp takes the memory at once

// Processor time that a grammar may take: for its first token, and more with each one, never above the first. A grammar
// that can read a text in many ways costs exponential time; one that reads it in one way some milliseconds for a whole
// vocabulary, and with 20,000 enumerated texts a second at the first token.
constexpr double grammar_seconds         = 5.0;
constexpr double grammar_seconds_a_token = 0.5;

void check_numbers(const sampler_options & options) {
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
    if (!std::isfinite(options.frequency_penalty)) {
        refuse("frequency_penalty", options.frequency_penalty, "a finite number");
    }
    if (!std::isfinite(options.presence_penalty)) {
        refuse("presence_penalty", options.presence_penalty, "a finite number");
    }
    if (options.repeat_last_n < -1 || options.repeat_last_n > max_last_n) {
        refuse("repeat_last_n", float(options.repeat_last_n), "-1 to 2^24");
    }
}

void check(const model & owner, const sampler_options & options) {
    check_numbers(options);
    const int32_t n_vocab = llama_vocab_n_tokens(owner.vocab());
    for (const auto & [token, bias] : options.logit_bias) {
        if (token < 0 || token >= n_vocab) {
            throw config_error("logit_bias names token " + std::to_string(token) + ", which is outside the vocabulary of " +
                std::to_string(n_vocab));
        }
        if (!(bias < std::numeric_limits<float>::infinity())) {
            throw config_error("logit_bias of token " + std::to_string(token) + " is " + std::to_string(bias) +
                ", expected a finite number, or minus infinity to forbid the token");
        }
    }
}

llama_sampler_ptr build_penalties(const model & owner, const sampler_options & options) {
    const int32_t last_n = options.repeat_last_n < 0 ? llama_model_n_ctx_train(owner.get()) : options.repeat_last_n;
    if (last_n == 0 ||
        (options.repeat_penalty == 1.0f && options.frequency_penalty == 0.0f && options.presence_penalty == 0.0f)) {
        return nullptr;
    }
    return llama_sampler_ptr(llama_sampler_init_penalties(llama_vocab_n_tokens(owner.vocab()), last_n, options.repeat_penalty,
        options.frequency_penalty, options.presence_penalty));
}

otter_error ambiguous() {
    return config_error(
        "the grammar reads a text in too many ways: make it say each thing in one way, for example "
        "`s ::= [a-z]+` in the place of `s ::= [a-z] s s | [a-z] s | [a-z]`");
}

// Let a grammar work, in what time it has left.
template <class function>
void bounded(const sampler_options & options, double & seconds_left, const function & work) {
    try {
        const allocation_watch watch(options.interrupted, seconds_left);
        work();
        seconds_left -= watch.seconds();
    } catch (const out_of_time &) {
        throw ambiguous();
    }
}

void check_ways(const grammar & grammar) {
    if (grammar.has_too_many_ways()) {
        throw ambiguous();
    }
}

// The grammar at the beginning of a text.
void begin_grammar(const model & owner, const sampler_options & options, sampler_history & history) {
    if (options.grammar.empty()) {
        return;
    }
    double                   seconds_left = grammar_seconds;
    std::unique_ptr<grammar> built;
    bounded(options, seconds_left, [&] { built = std::make_unique<grammar>(owner.vocab(), options.grammar); });
    check_ways(*built);
    history.grammar      = std::move(built);
    history.seconds_left = seconds_left;
}

// The order of llama.cpp's own default chain.
llama_sampler_ptr build_choice(const sampler_options & options, uint32_t seed) {
    llama_sampler_ptr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
    const auto        add = [&](llama_sampler * sampler) { llama_sampler_chain_add(chain.get(), sampler); };

    if (options.temperature == 0.0f) {
        add(llama_sampler_init_greedy());
        return chain;
    }
    if (options.top_k > 0) {
        add(llama_sampler_init_top_k(options.top_k));
    }
    if (options.top_p < 1.0f) {
        add(llama_sampler_init_top_p(options.top_p, 1));
    }
    if (options.min_p > 0.0f) {
        add(llama_sampler_init_min_p(options.min_p, 1));
    }
    add(llama_sampler_init_temp(options.temperature));
    add(llama_sampler_init_dist(seed));
    return chain;
}

otter_error no_token_left() {
    return config_error("no token is left to choose: the grammar allows none of the vocabulary, or no logit is finite");
}

} // namespace

sampler_history sampler_history::clone() const {
    return {
        llama_sampler_ptr(penalties ? llama_sampler_clone(penalties.get()) : nullptr),
        grammar ? std::make_unique<otter::grammar>(*grammar) : nullptr,
        seconds_left,
        seen,
    };
}

sampler::sampler(std::shared_ptr<const model> model_owner, const sampler_options & given) :
    owner(std::move(model_owner)),
    options(std::make_shared<sampler_options>(given)) {
    check(*owner, given);
    history.penalties = build_penalties(*owner, given);
    begin_grammar(*owner, given, history);
    choice = build_choice(given, given.seed);
}

sampler::sampler(const sampler & other, uint32_t seed) :
    owner(other.owner),
    options(other.options),
    history(other.history.clone()),
    choice(build_choice(*options, seed)) {}

std::shared_ptr<sampler> sampler::clone(uint32_t seed) const {
    const exclusive claim(busy, "sampler");
    return std::shared_ptr<sampler>(new sampler(*this, seed));
}

bool sampler::has_history() const {
    return !options->logit_bias.empty() || history.penalties || history.grammar;
}

// Logit bias and penalties change few tokens, so llama.cpp's sampler is given these few and not the vocabulary.
const float * sampler::adjust(const float * logits) {
    if (options->logit_bias.empty() && !history.penalties) {
        return logits;
    }
    row.assign(logits, logits + llama_vocab_n_tokens(owner->vocab()));
    for (const auto & [token, bias] : options->logit_bias) {
        row[size_t(token)] += bias;
    }
    if (history.penalties) {
        array.clear();
        for (const llama_token token : history.seen) {
            array.push_back({ token, row[size_t(token)], 0.0f });
        }
        llama_token_data_array touched = { array.data(), array.size(), -1, false };
        llama_sampler_apply(history.penalties.get(), &touched);
        for (const auto & data : array) {
            row[size_t(data.id)] = data.logit;
        }
    }
    return row.data();
}

// Drop what the grammar forbids; the order stays.
void sampler::keep_allowed(std::vector<candidate> & tokens) {
    array.clear();
    for (const auto & [token, logit] : tokens) {
        array.push_back({ token, 0.0f, 0.0f });
    }
    llama_token_data_array marked = { array.data(), array.size(), -1, false };
    bounded(*options, history.seconds_left, [&] { history.grammar->apply(&marked); });

    size_t n_kept = 0;
    for (size_t i = 0; i < tokens.size(); ++i) {
        if (array[i].logit != minus_inf) {
            tokens[n_kept++] = tokens[i];
        }
    }
    tokens.resize(n_kept);
}

// The grammar judges every token by itself and is slow: it is asked about the best ones first.
std::vector<candidate> sampler::best(const float * adjusted, const float * bonus, int32_t k) {
    const int32_t n_vocab = llama_vocab_n_tokens(owner->vocab());
    k                     = std::min(k, n_vocab);
    if (!history.grammar) {
        return best_tokens(adjusted, bonus, n_vocab, k);
    }
    for (int64_t n_asked = std::max<int64_t>(64, 4 * int64_t(k));; n_asked *= 16) {
        auto       found = best_tokens(adjusted, bonus, n_vocab, int32_t(std::min<int64_t>(n_asked, n_vocab)));
        const bool whole = int64_t(found.size()) < n_asked;
        keep_allowed(found);
        if (whole || int64_t(found.size()) >= k) {
            found.resize(std::min(found.size(), size_t(k)));
            return found;
        }
    }
}

// The tokens for the choice chain: as many of the best as it can use, or all. True: best first.
bool sampler::offer(const float * adjusted) {
    const bool greedy = options->temperature == 0.0f;
    if (greedy || options->top_k > 0) { // llama.cpp's own top-k would write out the whole vocabulary
        offer(best(adjusted, nullptr, greedy ? 1 : options->top_k));
        return true;
    }
    const int32_t n_vocab = llama_vocab_n_tokens(owner->vocab());
    if (history.grammar) {
        std::vector<candidate> tokens;
        for (llama_token token = 0; token < n_vocab; ++token) {
            tokens.emplace_back(token, adjusted[token]);
        }
        keep_allowed(tokens);
        offer(tokens);
        return false;
    }
    array.resize(size_t(n_vocab));
    for (llama_token token = 0; token < n_vocab; ++token) {
        array[size_t(token)] = { token, adjusted[token], 0.0f };
    }
    return false;
}

void sampler::offer(const std::vector<candidate> & tokens) {
    array.clear();
    for (const auto & [token, logit] : tokens) {
        array.push_back({ token, logit, 0.0f });
    }
}

// Run the choice chain over what was offered.
llama_token sampler::choose(bool sorted) {
    if (array.empty()) {
        throw no_token_left();
    }
    llama_token_data_array chosen = { array.data(), array.size(), -1, sorted };
    llama_sampler_apply(choice.get(), &chosen);
    if (chosen.selected < 0 || size_t(chosen.selected) >= chosen.size || !(chosen.data[chosen.selected].logit > minus_inf)) {
        throw no_token_left();
    }
    return chosen.data[chosen.selected].id;
}

llama_token sampler::sample(const float * logits) {
    const exclusive   claim(busy, "sampler");
    const bool        sorted = offer(adjust(logits));
    const llama_token token  = choose(sorted);
    remember(token, false);
    return token;
}

std::vector<candidate> sampler::candidates(const float * logits, const float * bonus, int32_t k) {
    const exclusive claim(busy, "sampler");
    check_k(k, llama_vocab_n_tokens(owner->vocab()));
    auto tokens = best(adjust(logits), bonus, k);
    if (tokens.empty()) {
        throw no_token_left();
    }
    return tokens;
}

int32_t sampler::choose(const float * scores, int32_t n) {
    const exclusive claim(busy, "sampler");
    array.clear();
    for (int32_t i = 0; i < n; ++i) {
        if (std::isnan(scores[i])) {
            throw config_error("score " + std::to_string(i) + " of the candidates is NaN");
        }
        array.push_back({ i, scores[i], 0.0f });
    }
    return choose(false);
}

void sampler::accept(llama_token token, bool prompt) {
    const exclusive claim(busy, "sampler");
    owner->check_token(token);
    if (history.grammar && !prompt) {
        std::vector<candidate> only = { { token, 0.0f } };
        keep_allowed(only);
        if (only.empty()) {
            throw config_error("the grammar forbids token " + std::to_string(token) + " here");
        }
    }
    remember(token, prompt);
}

// The grammar first: it may refuse.
void sampler::remember(llama_token token, bool prompt) {
    if (history.grammar && !prompt) {
        accept_in_grammar(token);
    }
    if (history.penalties) {
        history.seen.insert(token);
        llama_sampler_accept(history.penalties.get(), token);
    }
}

void sampler::accept_in_grammar(llama_token token) {
    try {
        bounded(*options, history.seconds_left, [&] { history.grammar->accept(token); });
    } catch (const otter_error &) {
        throw;
    } catch (const std::exception & error) { // its stacks are gone, and it would abort when asked again
        begin_grammar(*owner, *options, history);
        throw engine_error(std::string("llama.cpp's grammar fails on a token that it allowed: ") + error.what());
    }
    check_ways(*history.grammar);
    history.seconds_left = std::min(history.seconds_left + grammar_seconds_a_token, grammar_seconds);
}

sampler_state sampler::save() const {
    const exclusive claim(busy, "sampler");
    return { options, history.clone() };
}

void sampler::restore(const sampler_state & state) {
    const exclusive claim(busy, "sampler");
    if (state.options != options) {
        throw config_error("this state was saved by a sampler of other settings");
    }
    history = state.history.clone();
}

void sampler::reset() {
    const exclusive claim(busy, "sampler");
    if (history.penalties) {
        llama_sampler_reset(history.penalties.get());
    }
    begin_grammar(*owner, *options, history);
    history.seen.clear();
    llama_sampler_reset(choice.get());
}

} // namespace otter
