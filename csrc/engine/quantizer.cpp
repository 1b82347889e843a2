#include "quantizer.h"

#include "fail.h"
#include "log.h"

#include "gguf/base_parts.h"

#include <cstring>
#include <string_view>

namespace otter {

namespace {

struct stopped : std::runtime_error {
    stopped() : std::runtime_error("stopped") {}
};

// What stands behind `mark` up to the next space, ")" or ","; "" without the mark.
std::string word_behind(std::string_view line, std::string_view mark) {
    size_t begin = line.find(mark);
    if (begin == std::string_view::npos) {
        return "";
    }
    begin = line.find_first_not_of(' ', begin + mark.size());
    if (begin == std::string_view::npos) {
        return "";
    }
    return std::string(line.substr(begin, line.find_first_of(" ),", begin) - begin));
}

ggml_type type_named(const std::string & name) {
    for (int i = 0; i < GGML_TYPE_COUNT; ++i) {
        const char * known = ggml_type_name(ggml_type(i));
        if (known != nullptr && name == known) {
            return ggml_type(i);
        }
    }
    throw engine_error("llama.cpp's quantizer names an unknown tensor type '" + name + "'");
}

// Reads the quantizer's log. A tensor's line comes in parts of which each may end it:
//     [   1/  29] output.weight - [ 256, 320, 1, 1], type =    f32, converting to q6_K .. size = 1.0 MiB -> 0.2 MiB
// In a dry run the new type stands in brackets at the end; of a tensor that is copied there is only the size.
class log_reader {
public:
    explicit log_reader(const quantize_options & opts) : options(opts) {}

    void read(const std::string & line) {
        if (!line.empty() && line.front() == '[') {
            tensor = word_behind(line, "] ");
            type   = word_behind(line, "type = ");
        }
        if (line.find("falling back to") != std::string::npos) {
            report.fallbacks.push_back(word_behind(line, "warning:"));
        }
        if (line.find("will require an imatrix") != std::string::npos) {
            report.needs_importance = true;
        }
        if (!tensor.empty() && line.find("size = ") != std::string::npos) {
            end_tensor(line);
        }
    }

    quantize_report report;

private:
    const quantize_options & options;

    std::string tensor;
    std::string type;

    void end_tensor(const std::string & line) {
        const std::string converted = word_behind(line, "converting to ");
        const std::string planned   = word_behind(line, "MiB (");
        const ggml_type   result    = type_named(!converted.empty() ? converted : !planned.empty() ? planned : type);

        report.types[tensor] = result;
        if (options.progress && !options.progress(tensor, result)) {
            throw stopped();
        }
        tensor.clear();
    }
};

thread_local log_reader * active_reader = nullptr;

std::vector<llama_model_kv_override> to_overrides(const quantize_options & options) {
    std::vector<llama_model_kv_override> overrides;
    const auto                           copy = [](char (&to)[128], const std::string & from) {
        std::strncpy(to, from.c_str(), sizeof(to) - 1); // longer texts are cut, as llama.cpp's own tool does
    };
    for (const auto & [key, value] : options.metadata) {
        llama_model_kv_override entry = {};
        copy(entry.key, key);
        if (const auto * number = std::get_if<int64_t>(&value)) {
            entry.tag     = LLAMA_KV_OVERRIDE_TYPE_INT;
            entry.val_i64 = *number;
        } else {
            entry.tag = LLAMA_KV_OVERRIDE_TYPE_STR;
            copy(entry.val_str, std::get<std::string>(value));
        }
        overrides.push_back(entry);
    }
    overrides.push_back({}); // an empty key ends the list
    return overrides;
}

// The reason alone, out of the lines that llama.cpp logs on its way out.
std::string quantizer_reason(const log_errors & errors) {
    static const std::string mark = "failed to quantize: ";

    const std::string log = errors.text();
    const size_t      at  = log.rfind(mark);
    return at == std::string::npos ? log : log.substr(at + mark.size());
}

quantize_report run(const std::string & source, const std::string & target, const quantize_options & options) {
    const auto overrides = to_overrides(options);

    std::vector<llama_model_imatrix_data> importance;
    for (const auto & [name, values] : options.importance) {
        importance.push_back({ name.c_str(), values.data(), values.size() });
    }
    importance.push_back({ nullptr, nullptr, 0 });

    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.nthread                     = options.n_threads;
    params.ftype                       = options.file_type;
    params.output_tensor_type          = options.output_tensor_type;
    params.token_embedding_type        = options.token_embedding_type;
    params.allow_requantize            = true;
    params.only_copy                   = options.only_copy;
    params.pure                        = options.pure;
    params.keep_split                  = options.keep_split;
    params.dry_run                     = options.dry_run;
    params.imatrix                     = options.importance.empty() ? nullptr : importance.data();
    params.kv_overrides                = overrides.data();

    log_reader       reader(options);
    const log_errors errors;
    active_reader     = &reader;
    const bool failed = llama_model_quantize(source.c_str(), target.c_str(), &params) != 0;
    active_reader     = nullptr;
    if (failed) {
        throw engine_error("llama.cpp cannot quantize " + source + ": " + quantizer_reason(errors));
    }
    return std::move(reader.report);
}

// ggml asserts both: rows of whole blocks, and importance values for the types that are made from them.
void check_type(const gguf_file & file, const tensor_entry & info, ggml_type type, const quantize_options & options) {
    uint64_t   n_bytes = 0;
    const auto problem = tensor_size_problem(type, info.ne.data(), info.n_dims, &n_bytes);
    if (!problem.empty()) {
        throw config_error(
            cat(file.path(), ": tensor ", quoted(info.name), " cannot be ", tensor_type_name(type), ": ", problem));
    }
    if (ggml_quantize_requires_imatrix(type) && options.importance.count(std::string(info.name)) == 0) {
        throw config_error(cat(file.path(), ": tensor ", quoted(info.name), " needs importance values to be ",
            tensor_type_name(type), ", and the importance matrix has none for it"));
    }
}

void check_plan(const base_parts & parts, const quantize_report & plan, const quantize_options & options) {
    for (const gguf_file * file : parts.all()) {
        for (const tensor_entry & info : file->tensors()) {
            const auto found = plan.types.find(std::string(info.name));
            if (found == plan.types.end()) {
                throw engine_error(cat(file->path(), ": llama.cpp's quantizer says nothing of tensor ", quoted(info.name)));
            }
            if (found->second != info.type && !plan.needs_importance) {
                check_type(*file, info, found->second, options);
            }
        }
    }
}

} // namespace

quantize_report quantize_model(const std::string & source, const std::string & target, const quantize_options & options) {
    if (options.n_threads > GGML_MAX_N_THREADS) {
        throw config_error(cat("n_threads is ", options.n_threads, ", expected at most ", GGML_MAX_N_THREADS));
    }
    if (!options.dry_run) {
        check_path(target);
    }
    const gguf_file  file(source);
    const base_parts parts(file);

    quantize_options dry       = options;
    dry.dry_run                = true;
    dry.progress               = nullptr;
    const quantize_report plan = run(source, target, dry);
    check_plan(parts, plan, options);
    if (!options.dry_run) {
        run(source, target, options);
    }
    return plan;
}

void watch_quantizer(const std::string & line) {
    if (active_reader != nullptr) {
        active_reader->read(line);
    }
}

} // namespace otter
