#include "bridge/tokenizer.h"

#include "engine/fail.h"

#include "llama-vocab.h"

#include <algorithm>
#include <cstdint>

namespace otter {

namespace {

// A character takes some 350 bytes in an optimized build, and several times that in others.
constexpr size_t stack_a_character = 2048;
constexpr size_t max_run           = size_t(1) << 17; // some 50 MB that are really used
constexpr size_t max_squared       = size_t(1) << 12; // a sixth of a second

enum class cut {
    by_loops,  // code that calls itself for no text
    by_space,  // std::regex, no word holds a space
    by_phrase, // std::regex, words may hold single spaces between letters
    spaces_sq, // by_space, and each space of a run is tried as the last one
    digits_sq, // by_space, and each digit of a run is tried as the first of a group
};

// src/llama-vocab.cpp has the patterns of each name, src/unicode.cpp the code that stands for some of them. A name that is
// not listed goes through std::regex, or might.
cut how_to_cut(const llama_vocab * vocab) {
    if (vocab->get_type() != LLAMA_VOCAB_TYPE_BPE) {
        return cut::by_loops;
    }
    switch (vocab->get_pre_type()) {
        case LLAMA_VOCAB_PRE_TYPE_LLAMA3:
        case LLAMA_VOCAB_PRE_TYPE_DBRX:
        case LLAMA_VOCAB_PRE_TYPE_SMAUG:
        case LLAMA_VOCAB_PRE_TYPE_CHATGLM4:
        case LLAMA_VOCAB_PRE_TYPE_STABLELM2:
        case LLAMA_VOCAB_PRE_TYPE_QWEN2:
        case LLAMA_VOCAB_PRE_TYPE_HUNYUAN:
        case LLAMA_VOCAB_PRE_TYPE_SOLAR_OPEN:
        case LLAMA_VOCAB_PRE_TYPE_GROK_2:
        case LLAMA_VOCAB_PRE_TYPE_QWEN35:
        case LLAMA_VOCAB_PRE_TYPE_KIMI_K2:
        case LLAMA_VOCAB_PRE_TYPE_LAGUNA:
        case LLAMA_VOCAB_PRE_TYPE_GEMMA4:
        case LLAMA_VOCAB_PRE_TYPE_SARVAM_MOE:
        case LLAMA_VOCAB_PRE_TYPE_GPT2:
        case LLAMA_VOCAB_PRE_TYPE_MPT:
        case LLAMA_VOCAB_PRE_TYPE_OLMO:
        case LLAMA_VOCAB_PRE_TYPE_JAIS:
        case LLAMA_VOCAB_PRE_TYPE_TRILLION:
        case LLAMA_VOCAB_PRE_TYPE_GRANITE_DOCLING:
        // std::regex for a single digit, code for the rest
        case LLAMA_VOCAB_PRE_TYPE_STARCODER:
        case LLAMA_VOCAB_PRE_TYPE_REFACT:
        case LLAMA_VOCAB_PRE_TYPE_COMMAND_R:
        case LLAMA_VOCAB_PRE_TYPE_SMOLLM:
        case LLAMA_VOCAB_PRE_TYPE_CODESHELL:
        case LLAMA_VOCAB_PRE_TYPE_EXAONE:
        case LLAMA_VOCAB_PRE_TYPE_MINERVA:
        case LLAMA_VOCAB_PRE_TYPE_MELLUM2:      return cut::by_loops;
        case LLAMA_VOCAB_PRE_TYPE_EXAONE_MOE:   return cut::by_phrase;
        case LLAMA_VOCAB_PRE_TYPE_DEEPSEEK_LLM: return cut::spaces_sq;
        case LLAMA_VOCAB_PRE_TYPE_SUPERBPE:     return cut::digits_sq;
        default:                                return cut::by_space;
    }
}

// The most characters in a row of which each may be what `counts` says of its first byte.
template <class function>
size_t longest_run(const std::string & text, const function & counts) {
    size_t longest = 0;
    size_t n       = 0;
    for (const char c : text) {
        const auto byte = uint8_t(c);
        if ((byte & 0xc0) == 0x80) { // of the character before
            continue;
        }
        n       = counts(byte) ? n + 1 : 0;
        longest = std::max(longest, n);
    }
    return longest;
}

bool is_ascii_space(uint8_t byte) {
    return byte == ' ' || (byte >= '\t' && byte <= '\r');
}

// Beyond ASCII there are spaces among the characters that begin with C2, E1, E2 and E3.
bool may_be_space(uint8_t byte) {
    return is_ascii_space(byte) || byte == 0xc2 || (byte >= 0xe1 && byte <= 0xe3);
}

void check_run(size_t n, size_t most, const char * what) {
    if (n > most) {
        throw config_error("a text with " + std::to_string(n) + " " + what +
            " in a row, this model's tokenizer takes at most " + std::to_string(most));
    }
}

bool is_letter_or_space(uint8_t byte) {
    return byte == ' ' || byte >= 0x80 || (byte >= 'a' && byte <= 'z') || (byte >= 'A' && byte <= 'Z');
}

size_t longest_match(cut way, const std::string & text) {
    const size_t n_words   = longest_run(text, [](uint8_t byte) { return !is_ascii_space(byte); });
    const size_t n_spaces  = longest_run(text, may_be_space);
    const size_t n_letters = way == cut::by_phrase ? longest_run(text, is_letter_or_space) : 0;
    if (way == cut::spaces_sq) {
        check_run(n_spaces, max_squared, "spaces");
    }
    if (way == cut::digits_sq) {
        check_run(longest_run(text, [](uint8_t byte) { return byte >= '0' && byte <= '9'; }), max_squared, "digits");
    }
    return std::max({ n_words, n_spaces, n_letters });
}

// Where spaces are replaced byte by byte, one in an overlong encoding gets past: llama.cpp decodes it as a space later, and
// aborts on a space in the merges.
void check_overlong_spaces(const std::string & text) {
    for (const char * space : { "\xc0\xa0", "\xe0\x80\xa0", "\xf0\x80\x80\xa0" }) {
        const size_t place = text.find(space);
        if (place != std::string::npos) {
            throw config_error("a text with an overlong encoding of a space at byte " + std::to_string(place) +
                ", which is no UTF-8: this model's tokenizer does not take it");
        }
    }
}

} // namespace

size_t stack_to_cut(const llama_vocab * vocab, const std::string & text) {
    if (vocab->get_type() == LLAMA_VOCAB_TYPE_BPE && vocab->get_escape_whitespaces()) {
        check_overlong_spaces(text);
    }
    const cut way = how_to_cut(vocab);
    if (way == cut::by_loops) {
        return 0;
    }
    const size_t n = longest_match(way, text);
    check_run(n, max_run, "characters without a space, or spaces,");
    return 3 * n * stack_a_character; // one match may be a gap, a word and a gap
}

} // namespace otter
