// The tokenizer: llama.cpp asserts unique tokens while loading, and throws or aborts on missing byte tokens, on a
// missing BOS and on tokenizers without text only when the first string is tokenized (src/llama-vocab.cpp).

#include "gguf/check_base.h"
#include "gguf/token_length.h"

#include <algorithm>
#include <cctype>
#include <cmath>
#include <deque>

namespace otter {

namespace {

constexpr uint64_t max_tokens = uint64_t(1) << 22; // 15 times the largest vocabulary known

constexpr const char * tokens_key = "tokenizer.ggml.tokens";
constexpr const char * merges_key = "tokenizer.ggml.merges";
constexpr const char * scores_key = "tokenizer.ggml.scores";
constexpr const char * types_key  = "tokenizer.ggml.token_type";

constexpr const char * bool_keys[] = {
    // clang-format off
    "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token", "tokenizer.ggml.add_sep_token",
    "tokenizer.ggml.add_space_prefix", "tokenizer.ggml.remove_extra_whitespaces",
    "tokenizer.ggml.normalizer.lowercase", "tokenizer.ggml.normalizer.strip_accents",
    // clang-format on
};

// Ids that steer generation: out of range they are an error.
constexpr const char * strict_id_keys[] = {
    // clang-format off
    "tokenizer.ggml.bos_token_id", "tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id",
    "tokenizer.ggml.eom_token_id",
    // clang-format on
};

// Ids that llama.cpp drops with a warning when they are out of range, as they are in many published files.
constexpr const char * loose_id_keys[] = {
    // clang-format off
    "tokenizer.ggml.unknown_token_id", "tokenizer.ggml.seperator_token_id", "tokenizer.ggml.padding_token_id",
    "tokenizer.ggml.cls_token_id", "tokenizer.ggml.mask_token_id", "tokenizer.ggml.fim_pre_token_id",
    "tokenizer.ggml.fim_suf_token_id", "tokenizer.ggml.fim_mid_token_id", "tokenizer.ggml.fim_pad_token_id",
    "tokenizer.ggml.fim_rep_token_id", "tokenizer.ggml.fim_sep_token_id", "tokenizer.ggml.prefix_token_id",
    "tokenizer.ggml.suffix_token_id", "tokenizer.ggml.middle_token_id", "tokenizer.ggml.token_type_count",
    // clang-format on
};

// Names of pre-tokenizers that the pinned llama.cpp knows, sorted.
constexpr std::string_view pre_tokenizers[] = {
    // clang-format off
    "a.x-4.0", "afmoe", "bailingmoe", "bailingmoe2", "bloom", "chameleon", "chatglm-bpe", "codeshell", "cohere2moe",
    "command-r", "dbrx", "deepseek-coder", "deepseek-llm", "deepseek-r1-qwen", "deepseek-v3", "default", "exaone",
    "exaone-moe", "exaone4", "f2llmv2", "falcon", "falcon-h1", "falcon3", "gemma4", "gigachat", "glm4", "glm5",
    "gpt-2", "gpt-4o", "gpt3-finnish", "granite-docling", "granite-embed-multi-311m", "granite-embed-multi-97m",
    "grok-2", "hunyuan", "hunyuan-dense", "hy_v4", "jais", "jais-2", "jina-de", "jina-es", "jina-v1-en",
    "jina-v2-code", "jina-v2-de", "jina-v2-es", "jina-v5-nano", "joyai-llm", "kanana2", "kimi-k2", "kormo", "laguna",
    "lfm2", "llada-moe", "llama-bpe", "llama-v3", "llama3", "llama4", "megrez", "mellum", "mellum2", "midm-2.0",
    "minerva-7b", "minicpm5", "minimax-m2", "modern-bert", "mpt", "olmo", "phi-2", "pixtral", "poro-chat", "qwen2",
    "qwen35", "refact", "roberta-bpe", "sarvam-moe", "seed-coder", "smaug-bpe", "smollm", "solar-open", "spark2_5",
    "stablelm2", "starcoder", "superbpe", "talkie", "tekken", "tiny_aya", "trillion", "ufakzeka", "viking",
    "youtu",
    // clang-format on
};

// Those of them that add a BOS without being told to, and those that have no default BOS.
constexpr std::string_view bos_adders[] = {
    // clang-format off
    "chameleon", "falcon-h1", "falcon3", "gemma4", "granite-embed-multi-311m", "jina-v5-nano", "lfm2", "llama-bpe",
    "llama-v3", "llama3", "midm-2.0", "pixtral", "tekken",
    // clang-format on
};
constexpr std::string_view without_bos[] = { "chatglm-bpe", "glm4", "glm5" };

template <size_t n>
bool contains(const std::string_view (&sorted)[n], std::string_view text) {
    return std::binary_search(std::begin(sorted), std::end(sorted), text);
}

struct token {
    std::string_view text;
    uint32_t         id;

    bool operator<(const token & other) const {
        const int c = text.compare(other.text);
        return c < 0 || (c == 0 && id < other.id);
    }
};

class vocab_check {
public:
    vocab_check(const gguf_file & base, problem_list & found) : file(base), problems(found) {}

    uint32_t run() {
        check_keys();
        const bool known = problems.attempt([&] { check_model(); });
        if (!problems.attempt([&] { read_tokens(); })) {
            return 0;
        }
        problems.attempt([&] { check_token_types(); });
        problems.attempt([&] { check_scores(); });
        if (known) {
            problems.attempt([&] { model == "llama" ? check_byte_tokens() : check_merges(); });
            check_special_ids();
        }
        problems.attempt([&] { check_named_tokens(); });
        return uint32_t(by_text.size());
    }

private:
    const gguf_file & file;
    problem_list &    problems;
    std::string       model;
    std::string       pre;

    std::vector<std::string_view> texts;       // as in the file
    std::deque<std::string>       empty_names; // what llama.cpp calls empty tokens
    std::vector<token>            by_text;     // as llama.cpp sees them, sorted

    void check_keys() {
        for (const char * key : bool_keys) {
            problems.attempt([&] { file.get_bool(key); });
        }
        for (const char * key : loose_id_keys) {
            problems.attempt([&] { file.get_u32(key); });
        }
        problems.attempt([&] { file.get_str("tokenizer.chat_template"); });
        problems.attempt([&] { file.get_array("tokenizer.ggml.suppress_tokens", GGUF_TYPE_INT32); });
    }

    void check_model() {
        model = file.get_str("tokenizer.ggml.model").value_or("");
        pre   = file.get_str("tokenizer.ggml.pre").value_or("");
        if (model.empty()) {
            file.fail_key("tokenizer.ggml.model", "is missing, expected llama or gpt2");
        }
        if (model != "llama" && model != "gpt2" && model != "gemma4") {
            file.unsupported(cat("key 'tokenizer.ggml.model' is ", quoted(model), ", expected llama, gpt2 or gemma4"));
        }
        if (model == "gemma4") {
            pre = "gemma4"; // whatever the file says
        }
        if (model == "gpt2" && pre == "whitespace") { // an embedding model's: llama.cpp aborts on two spaces
            file.unsupported(cat("key 'tokenizer.ggml.pre' is ", quoted(pre), ", no language model's"));
        }
        if (model == "gpt2" && !pre.empty() && !contains(pre_tokenizers, pre)) {
            file.unsupported(cat("key 'tokenizer.ggml.pre' is ", quoted(pre), ", unknown to this llama.cpp"));
        }
    }

    // llama.cpp reads tokens as C strings and names empty ones after their id; two that end up equal abort it.
    void read_tokens() {
        const kv_entry * kv = file.get_array(tokens_key, GGUF_TYPE_STRING);
        if (kv == nullptr || kv->count == 0 || kv->count > max_tokens) {
            file.fail_key(tokens_key,
                cat(kv == nullptr ? "is missing" : cat("has ", kv->count, " tokens"), ", expected 1 to ", max_tokens));
        }
        texts = file.strings(*kv);
        by_text.reserve(texts.size());
        for (uint32_t id = 0; id < texts.size(); ++id) {
            check_length(id);
            std::string_view text = texts[id].substr(0, texts[id].find('\0'));
            if (text.empty()) {
                text = empty_names.emplace_back(cat("[EMPTY_", id, "]"));
            }
            by_text.push_back({ text, id });
        }
        std::sort(by_text.begin(), by_text.end());
        for (size_t i = 1; i < by_text.size(); ++i) {
            if (by_text[i].text == by_text[i - 1].text) {
                file.fail_key(tokens_key,
                    cat("holds ", quoted(by_text[i].text), " twice, as tokens ", by_text[i - 1].id, " and ", by_text[i].id));
            }
        }
    }

    void check_length(uint32_t id) const {
        if (texts[id].size() <= max_token_characters) { // all but a few
            return;
        }
        const size_t n = n_characters(texts[id]);
        if (n > max_token_characters) {
            file.fail_key(
                tokens_key, cat("holds token ", id, " of ", n, " characters, expected at most ", max_token_characters));
        }
    }

    bool has_token(std::string_view text) const {
        const auto it = std::lower_bound(by_text.begin(), by_text.end(), token { text, 0 });
        return it != by_text.end() && it->text == text;
    }

    const kv_entry * token_array(const char * key, gguf_type type) const {
        const kv_entry * kv = file.get_array(key, type);
        if (kv != nullptr && kv->count != texts.size()) {
            file.fail_key(key, cat("has ", kv->count, " values, expected ", texts.size(), ", one a token"));
        }
        return kv;
    }

    static bool is_byte_token(std::string_view text) {
        const auto hex = [](char c) { return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'F') || (c >= 'a' && c <= 'f'); };
        return text.size() == 6 && text.substr(0, 3) == "<0x" && hex(text[3]) && hex(text[4]) && text[5] == '>';
    }

    void check_token_types() const {
        const kv_entry * kv = token_array(types_key, GGUF_TYPE_INT32);
        for (uint32_t id = 0; kv != nullptr && id < texts.size(); ++id) {
            if (file.element<int32_t>(*kv, id) == 6 && !is_byte_token(texts[id])) {
                file.fail_key(types_key,
                    cat("makes token ", id, ", ", quoted(texts[id]), ", a byte token, expected a text like '<0x41>'"));
            }
        }
    }

    void check_scores() const {
        const kv_entry * any = file.find(scores_key);
        if (any == nullptr || (any->is_array && any->type == GGUF_TYPE_INT32)) {
            token_array(scores_key, GGUF_TYPE_INT32);
            return;
        }
        const kv_entry * kv = token_array(scores_key, GGUF_TYPE_FLOAT32);
        for (uint32_t id = 0; id < texts.size(); ++id) {
            if (!std::isfinite(file.element<float>(*kv, id))) {
                file.fail_key(
                    scores_key, cat("holds ", file.element<float>(*kv, id), " for token ", id, ", expected a finite number"));
            }
        }
    }

    // Text that no token covers falls back to bytes, through a lookup that throws.
    void check_byte_tokens() const {
        static const char hex[] = "0123456789ABCDEF";
        for (int byte = 0; byte < 256; ++byte) {
            const char named[] = { '<', '0', 'x', hex[byte >> 4], hex[byte & 15], '>' };
            const char plain   = char(byte);
            if (!has_token({ named, sizeof(named) }) && (byte == 0 || !has_token({ &plain, 1 }))) {
                file.fail_key(tokens_key,
                    cat("has no byte token ", std::string_view(named, sizeof(named)),
                        ", expected all 256 in a 'llama' tokenizer"));
            }
        }
    }

    void check_merges() const {
        const kv_entry * kv = file.get_array(merges_key, GGUF_TYPE_STRING);
        if (kv == nullptr) {
            if (pre != "kimi-k2") {
                file.fail_key(merges_key, cat("is missing, expected arr[str] in a ", quoted(model), " tokenizer"));
            }
            return;
        }
        if (kv->count > max_tokens) {
            file.fail_key(merges_key, cat("has ", kv->count, " merges, expected at most ", max_tokens));
        }
        for (const std::string_view merge : file.strings(*kv)) {
            const size_t space = merge.find(' ', 1);
            if (space == std::string_view::npos || space + 1 == merge.size()) {
                file.fail_key(merges_key, cat("holds ", quoted(merge), ", expected two tokens and a space"));
            }
        }
    }

    // The token that llama.cpp will use: the key's, else the default if the vocabulary reaches that far, else -1.
    int64_t special_id(const char * key, int64_t fallback) const {
        const auto id = file.get_u32(key);
        return id ? *id : fallback < int64_t(texts.size()) ? fallback : -1;
    }

    void check_special_ids() {
        for (const char * key : strict_id_keys) {
            problems.attempt([&] { check_special_id(key); });
        }
        problems.attempt([&] { check_added_tokens(); });
    }

    void check_special_id(const char * key) const {
        const auto id = file.get_u32(key);
        if (id && *id >= texts.size()) {
            file.fail_key(key, cat("is ", *id, ", expected a token below ", texts.size()));
        }
    }

    // A token that is put before or behind every text exists.
    void check_added_tokens() const {
        const bool    spm         = model == "llama";
        const bool    adds_bos    = spm || contains(bos_adders, pre);
        const int64_t default_bos = spm ? 1 : model == "gemma4" || contains(without_bos, pre) ? -1 : 11;
        const int64_t default_eos = spm ? 2 : model == "gemma4" ? -1 : 11;

        const bool forced = pre == "gemma4" || pre == "granite-embed-multi-311m";
        if ((forced || file.get_bool("tokenizer.ggml.add_bos_token").value_or(adds_bos)) &&
            special_id("tokenizer.ggml.bos_token_id", default_bos) < 0) {
            file.fail_key("tokenizer.ggml.bos_token_id", "is missing, but a BOS token is added to every text");
        }
        if (file.get_bool("tokenizer.ggml.add_eos_token").value_or(false) &&
            special_id("tokenizer.ggml.eos_token_id", default_eos) < 0) {
            file.fail_key("tokenizer.ggml.eos_token_id", "is missing, but an EOS token is added to every text");
        }
    }

    // llama.cpp looks these tokens up, and throws without them, if only the model's name says Phi-3.
    void check_named_tokens() const {
        std::string name(file.get_str("general.name").value_or(""));
        std::transform(name.begin(), name.end(), name.begin(), [](char c) { return char(std::tolower(uint8_t(c))); });
        if (name.find("phi-3") == std::string::npos && name.find("phi3") == std::string::npos) {
            return;
        }
        for (const char * text : { "</s>", "<unk>", "<s>", "<|endoftext|>" }) {
            if (!has_token(text)) {
                file.fail_key(tokens_key, cat("has no token ", quoted(text), ", expected in a model named ", quoted(name)));
            }
        }
    }
};

} // namespace

uint32_t check_vocab(const gguf_file & file, problem_list & problems) {
    return vocab_check(file, problems).run();
}

} // namespace otter
