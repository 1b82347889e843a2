#include "model.h"

#include "fail.h"
#include "log.h"

#include "bridge/tokenizer.h"
#include "gguf/mapped_file.h"

#include <stdexcept>

namespace otter {

namespace {

llama_model_params to_llama_params(const model_options & options, std::vector<float> & tensor_split) {
    llama_model_params params = llama_model_default_params();

    if (!options.tensor_split.empty()) {
        if (options.tensor_split.size() > llama_max_devices()) {
            throw config_error("tensor_split lists " + std::to_string(options.tensor_split.size()) +
                " devices, llama.cpp was built for at most " + std::to_string(llama_max_devices()));
        }
        tensor_split = options.tensor_split;
        tensor_split.resize(llama_max_devices(), 0.0f);
        params.tensor_split = tensor_split.data();
    }
    params.n_gpu_layers  = options.n_gpu_layers;
    params.split_mode    = options.split_mode;
    params.main_gpu      = options.main_gpu;
    params.check_tensors = options.check_tensors;
    params.vocab_only    = options.vocab_only;
    params.load_mode     = options.use_mmap ? (options.use_mlock ? LLAMA_LOAD_MODE_MMAP_MLOCK : LLAMA_LOAD_MODE_AUTO)
                                            : (options.use_mlock ? LLAMA_LOAD_MODE_MLOCK : LLAMA_LOAD_MODE_NONE);

    params.progress_callback = [](float progress, void * data) {
        const auto & callback = static_cast<const model_options *>(data)->progress;
        return !callback || callback(progress);
    };
    params.progress_callback_user_data = const_cast<model_options *>(&options);
    return params;
}

llama_model * load(const std::string & path, const model_options & options, const std::optional<insertion> & inserted) {
    check_path(path);
    if (!options.sidecar.empty()) {
        check_path(options.sidecar);
    }
    std::vector<float>       tensor_split;
    const llama_model_params params = to_llama_params(options, tensor_split);

    const log_errors errors;
    std::string      reason;
    try {
        llama_model * loaded = inserted ? load_inserted_model(path, options.sidecar, inserted->spec, params)
                                        : llama_model_load_from_file(path.c_str(), params);
        if (loaded != nullptr) {
            return loaded;
        }
    } catch (const otter_error &) {
        throw;
    } catch (const std::exception & error) {
        reason = error.what();
    }
    const bool both = !reason.empty() && !errors.empty();
    throw engine_error("llama.cpp cannot load " + path + ": " + (both ? reason + "; " + errors.text() : errors.text(reason)));
}

// Call a llama.cpp function that fills a buffer and answers with the size it wanted, negative where it did not fit.
template <class element, class fill_function>
std::vector<element> fill_buffer(size_t guess, const fill_function & fill) {
    std::vector<element> buffer(guess);
    int32_t              n = fill(buffer.data(), int32_t(buffer.size()));
    if (n < 0) {
        if (n == INT32_MIN) {
            throw engine_error("text is too long for llama.cpp's tokenizer");
        }
        buffer.resize(size_t(-n));
        n = fill(buffer.data(), int32_t(buffer.size()));
    }
    buffer.resize(size_t(n < 0 ? 0 : n));
    return buffer;
}

constexpr size_t stack_at_hand = size_t(128) << 10; // of any thread: the smallest that systems make have 512 kB

// Processor time for a text: seven times what the slowest tokenizer takes for prose.
constexpr double max_seconds        = 2.0;
constexpr double max_seconds_a_byte = 4e-6;

} // namespace

model::model(const std::string & path, const model_options & options, std::optional<insertion> inserted_part) :
    inserted(std::move(inserted_part)),
    handle(load(path, options, inserted), llama_model_free) {
    if (!inserted || options.vocab_only) {
        return;
    }
    int32_t first = 0;
    for (size_t i = 0; i < inserted->spec.heads.size(); ++i) {
        const auto & head = inserted->spec.heads[i];
        if (head.kind->output == head_output::scores) {
            vocabulary_heads.push_back({ token_table(get(), head), &inserted->calibrations[i], first });
        }
        first += head.n_outputs();
    }
}

const vocabulary_head & model::vocabulary(int32_t head) const {
    if (head < 0 || size_t(head) >= vocabulary_heads.size()) {
        throw config_error(
            "vocabulary head " + std::to_string(head) + ", the model has " + std::to_string(vocabulary_heads.size()));
    }
    return vocabulary_heads[size_t(head)];
}

int32_t model::n_layer() const {
    return inserted ? base_n_layer(get(), inserted->spec) : llama_model_n_layer(get());
}

std::vector<llama_token> model::tokenize(
    const std::string & text, bool add_special, bool parse_special, const stop_function & stop) const {
    if (text.size() > size_t(INT32_MAX)) {
        throw config_error("text of " + std::to_string(text.size()) + " bytes is too long to tokenize");
    }
    std::vector<llama_token> result;
    const double             most = max_seconds + max_seconds_a_byte * double(text.size());
    const auto               work = [&](const stop_function & asked) {
        const allocation_watch watch(asked, most);
        result = fill_buffer<llama_token>(text.size() + 2, [&](llama_token * tokens, int32_t n) {
            return llama_tokenize(vocab(), text.data(), int32_t(text.size()), tokens, n, add_special, parse_special);
        });
    };
    try {
        const size_t n_stack = stack_to_cut(vocab(), text);
        if (n_stack > stack_at_hand) {
            run_on_stack(n_stack, work, stop);
        } else {
            work(stop);
        }
    } catch (const std::out_of_range &) { // a vocabulary without the byte tokens that this text needs
        throw engine_error("the vocabulary cannot spell this text: a byte token is missing");
    } catch (const std::invalid_argument &) { // a number that UTF-8 could hold, and Unicode does not
        throw config_error("the text is not UTF-8: it holds a character above U+10FFFF");
    } catch (const out_of_time &) {
        throw config_error("a text of " + std::to_string(text.size()) + " bytes takes this model's tokenizer more than " +
            std::to_string(int(most)) + " seconds");
    }
    return result;
}

void model::check_token(llama_token token) const {
    if (token < 0 || token >= llama_vocab_n_tokens(vocab())) {
        throw config_error("token " + std::to_string(token) + " is outside the vocabulary of " +
            std::to_string(llama_vocab_n_tokens(vocab())));
    }
}

std::string model::detokenize(const std::vector<llama_token> & tokens, bool special) const {
    for (const llama_token token : tokens) {
        check_token(token);
    }
    const auto text = fill_buffer<char>(8 * tokens.size() + 32, [&](char * buffer, int32_t n) {
        return llama_detokenize(vocab(), tokens.data(), int32_t(tokens.size()), buffer, n, false, special);
    });
    return { text.begin(), text.end() };
}

std::string model::token_text(llama_token token, bool special) const {
    check_token(token);
    const auto text = fill_buffer<char>(
        32, [&](char * buffer, int32_t n) { return llama_token_to_piece(vocab(), token, buffer, n, 0, special); });
    return { text.begin(), text.end() };
}

std::string model::description() const {
    char buffer[256];
    llama_model_desc(get(), buffer, sizeof(buffer));
    return buffer;
}

} // namespace otter
