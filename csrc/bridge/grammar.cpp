#include "bridge/grammar.h"

#include "engine/fail.h"
#include "gguf/token_length.h"

#include "llama-grammar.h"
#include "llama-vocab.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>
#include <map>
#include <utility>
#include <vector>

namespace otter {

namespace {

// llama.cpp's parser and its search for left recursion call themselves; the thread's stack must hold that.
constexpr int    max_nesting    = 128;
constexpr int    max_left_depth = 500;
constexpr double max_left_paths = 1e6; // the search walks every path, and there may be two to the number of rules
constexpr size_t max_bytes      = size_t(1) << 20;

otter_error refuse(const std::string & reason) {
    return config_error("the grammar is wrong: " + reason);
}

// llama.cpp's message ends with the rest of the text: a line of it says enough.
std::string one_line(const std::string & reason) {
    constexpr size_t  enough = 100;
    const std::string line   = reason.substr(0, reason.find_first_of("\r\n"));
    return line.size() <= enough ? line : line.substr(0, enough) + " ...";
}

const char * skip_space(const char * pos) {
    while (*pos != '\0' && strchr(" \t\r\n#", *pos) != nullptr) {
        pos += *pos == '#' ? strcspn(pos, "\r\n") : 1;
    }
    return pos;
}

// Behind a literal, a class or a token, whose opening character stands at pos.
const char * skip_quoted(const char * pos, char closing) {
    for (++pos; *pos != '\0' && *pos != closing; ++pos) {
        pos += *pos == '\\' && pos[1] != '\0' ? 1 : 0;
    }
    return *pos == '\0' ? pos : pos + 1;
}

// x{m,n} with m above n: the parser would count up to n - m below zero.
void check_repetition(const char * pos) {
    const auto read = [&pos](long otherwise) {
        pos                   = skip_space(pos);
        const size_t n_digits = strspn(pos, "0123456789");
        if (n_digits > 9) {
            throw refuse("a repetition of a number with " + std::to_string(n_digits) + " digits");
        }
        const long number = n_digits > 0 ? std::stol(std::string(pos, n_digits)) : otherwise;
        pos               = skip_space(pos + n_digits);
        return number;
    };
    const long least = read(0);
    if (*pos != ',') {
        return;
    }
    ++pos;
    if (read(least) < least) {
        throw refuse("a repetition {m,n} with m above n");
    }
}

// Nesting and repetitions, before the parser runs. Up to the first mistake this reads the text as the parser does.
void check_shape(const std::string & text) {
    if (text.size() > max_bytes) {
        throw refuse(std::to_string(text.size()) + " bytes, at most " + std::to_string(max_bytes) + " are taken");
    }
    if (text.find('\0') != std::string::npos) {
        throw refuse("it holds a NUL character");
    }
    int depth = 0;
    for (const char * pos = skip_space(text.c_str()); *pos != '\0'; pos = skip_space(pos)) {
        switch (*pos) {
            case '"': pos = skip_quoted(pos, '"'); continue;
            case '[': pos = skip_quoted(pos, ']'); continue;
            case '<': pos += strcspn(pos, ">"); continue;
            case '(': ++depth; break;
            case ')': --depth; break;
            case '{': check_repetition(pos + 1); break;
            default:  break;
        }
        if (depth > max_nesting) {
            throw refuse("parentheses more than " + std::to_string(max_nesting) + " deep");
        }
        ++pos;
    }
}

bool ends_alternative(const llama_grammar_element & element) {
    return element.type == LLAMA_GRETYPE_END || element.type == LLAMA_GRETYPE_ALT;
}

class rule_check {
public:
    explicit rule_check(const llama_grammar_parser & parser) :
        rules(parser.rules),
        symbols(parser.symbol_ids),
        nullable(rules.size()),
        open(rules.size()),
        paths(rules.size()) {}

    void run() {
        if (symbols.find("root") == symbols.end()) {
            throw refuse("there is no rule 'root'");
        }
        check_references();
        while (find_nullable()) {
        }
        for (size_t rule = 0; rule < rules.size(); ++rule) {
            if (visit(rule, 0) > max_left_paths) {
                throw refuse("too many ways to begin rule '" + name(rule) + "'");
            }
        }
    }

private:
    const llama_grammar_rules &             rules;
    const std::map<std::string, uint32_t> & symbols;

    std::vector<bool>   nullable; // may a rule be empty?
    std::vector<bool>   open;     // is its visit under way?
    std::vector<double> paths;    // that llama.cpp's search walks below a rule; 0 = not visited yet

    std::string name(size_t rule) const {
        const auto it =
            std::find_if(symbols.begin(), symbols.end(), [=](const auto & symbol) { return symbol.second == rule; });
        return it == symbols.end() ? "?" : it->first;
    }

    void check_references() const {
        for (const auto & [symbol, id] : symbols) {
            if (id >= rules.size() || rules[id].empty()) {
                throw refuse("rule '" + symbol + "' is not defined");
            }
        }
    }

    // One pass; true if it found more.
    bool find_nullable() {
        bool changed = false;
        for (size_t rule = 0; rule < rules.size(); ++rule) {
            bool empty = true;
            for (const auto & element : rules[rule]) {
                if (!ends_alternative(element)) {
                    empty = empty && element.type == LLAMA_GRETYPE_RULE_REF && nullable[element.value];
                } else if (empty && !nullable[rule]) {
                    nullable[rule] = changed = true;
                } else {
                    empty = true;
                }
            }
        }
        return changed;
    }

    // Rules that may stand at the beginning of a rule. llama.cpp's own search misses one behind a rule that is empty
    // only by way of others, and the sampler would then never end.
    double visit(size_t rule, int depth) {
        if (open[rule]) {
            throw refuse("rule '" + name(rule) + "' begins with itself (left recursion)");
        }
        if (depth > max_left_depth) {
            throw refuse("rules that begin with rules, more than " + std::to_string(max_left_depth) + " deep");
        }
        if (paths[rule] > 0.0) {
            return paths[rule];
        }
        open[rule]      = true;
        double n_paths  = 1.0;
        bool   at_begin = true;
        for (const auto & element : rules[rule]) {
            if (ends_alternative(element)) {
                at_begin = true;
            } else if (at_begin && element.type == LLAMA_GRETYPE_RULE_REF) {
                n_paths += visit(element.value, depth + 1);
                at_begin = nullable[element.value];
            } else {
                at_begin = false;
            }
        }
        open[rule]         = false;
        return paths[rule] = n_paths;
    }
};

} // namespace

// A vocabulary may spell a token longer than its file does: what is no byte of a byte-level tokenizer is described.
static void check_tokens(const llama_vocab * vocab) {
    for (llama_token token = 0; token < llama_token(vocab->n_tokens()); ++token) {
        const size_t n_bytes = vocab->token_to_piece(token).size();
        if (n_bytes > max_token_characters && n_characters(vocab->token_to_piece(token)) > max_token_characters) {
            throw config_error("a grammar needs tokens of at most " + std::to_string(max_token_characters) +
                " characters, token " + std::to_string(token) + " of this vocabulary has " + std::to_string(n_bytes) +
                " bytes");
        }
    }
}

static void check_grammar(const llama_vocab * vocab, const std::string & text) {
    check_tokens(vocab);
    check_shape(text);
    llama_grammar_parser parser(vocab);
    try {
        for (const char * pos = skip_space(text.c_str()); *pos != '\0';) {
            pos = parser.parse_rule(pos);
        }
    } catch (const std::exception & error) {
        throw refuse(one_line(error.what()));
    }
    rule_check(parser).run();
}

grammar::grammar(const llama_vocab * vocab, const std::string & text) {
    check_grammar(vocab, text);
    state.reset(llama_grammar_init_impl(vocab, text.c_str(), "root", false, nullptr, 0, nullptr, 0));
    if (!state) {
        throw refuse("llama.cpp refuses it");
    }
}

// Stacks point into the rules. llama.cpp's own copy compares each of their elements with each of the rules'.
grammar::grammar(const grammar & other) : state(new llama_grammar(*other.state)) {
    using element = const llama_grammar_element *;

    std::map<element, element, std::less<>> copies; // where a rule begins there and here
    for (size_t rule = 0; rule < state->rules.size(); ++rule) {
        copies[other.state->rules[rule].data()] = state->rules[rule].data();
    }
    for (auto & stack : state->stacks) {
        for (element & position : stack) {
            const auto & [theirs, ours] = *std::prev(copies.upper_bound(position));
            position                    = ours + (position - theirs);
        }
    }
}

grammar::~grammar() = default;

void grammar::apply(llama_token_data_array * tokens) const {
    llama_grammar_apply_impl(*state, tokens);
}

void grammar::accept(llama_token token) {
    llama_grammar_accept_impl(*state, token);
}

// Where no text is read in two ways, each stack ends at another place of the rules.
bool grammar::has_too_many_ways() const {
    constexpr size_t few      = 4096;
    size_t           n_places = 0;
    for (const auto & rule : state->rules) {
        n_places += rule.size();
    }
    return state->stacks.size() > std::max(few, n_places);
}

} // namespace otter
