// llama.cpp's grammar, with what it does not check itself or tells nobody but the terminal.
//
// Its parser and its search call themselves, for each parenthesis, rule and character of a token; a grammar that can read
// one text in many ways costs it exponential time. The constructor bounds the first, the caller's watch the second.

#pragma once

#include "llama.h"

#include <memory>
#include <string>

struct llama_grammar;

namespace otter {

class grammar {
public:
    // ConfigError, with the reason, unless llama.cpp takes this text (GBNF with a rule `root`) and can work with it.
    grammar(const llama_vocab * vocab, const std::string & text);
    grammar(const grammar & other);
    ~grammar();

    grammar & operator=(const grammar &) = delete;

    // Set the logits of the tokens that may not come next to minus infinity.
    void apply(llama_token_data_array * tokens) const;

    // A token that apply has left. Of what it throws only a std::exception leaves nothing to go on with.
    void accept(llama_token token);

    // Whether the text so far is read in so many ways that the grammar must be ambiguous, and will soon take for ever.
    bool has_too_many_ways() const;

private:
    std::unique_ptr<llama_grammar> state;
};

} // namespace otter
