#include "gguf/check_base.h"

namespace otter {

namespace {

// llama.cpp maps weights where they stand in the file and asserts this alignment (TENSOR_ALIGNMENT in ggml-impl.h).
constexpr uint64_t mapping_alignment = 32;

void check_type(const gguf_file & file) {
    const auto type = file.get_str("general.type");
    if (type && *type != "model") {
        file.fail_key("general.type", cat("is ", quoted(*type), ", expected a base model ('model')"));
    }
}

void check_tensor_extra(const gguf_file & file) {
    const kv_entry * names = file.get_array("general.tensor_extra.name", GGUF_TYPE_STRING);
    const kv_entry * flags = file.get_array("general.tensor_extra.prec_a4", GGUF_TYPE_BOOL);
    if (names != nullptr && (flags == nullptr || flags->count != names->count)) {
        file.fail_key("general.tensor_extra.prec_a4",
            cat("is missing or of another length, expected ", names->count,
                " values, one for each of general.tensor_extra.name"));
    }
}

void check_general(const gguf_file & file, problem_list & problems) {
    problems.attempt([&] { check_type(file); });
    problems.attempt([&] { file.get_str("general.name"); });
    problems.attempt([&] { file.get_u32("general.quantization_version"); });
    problems.attempt([&] { file.get_u32("general.file_type"); });
    problems.attempt([&] { check_tensor_extra(file); });
}

void check_alignment(const gguf_file & file) {
    if (file.alignment() % mapping_alignment != 0) {
        file.unsupported(cat("key 'general.alignment' is ", file.alignment(), ", expected a multiple of ", mapping_alignment));
    }
}

void check_vectors(const gguf_file & file, problem_list & problems) {
    for (const tensor_entry & info : file.tensors()) {
        // norm weights and biases meet F32 activations in element-wise operations, which abort on other types
        if (info.n_dims == 1 && info.type != GGML_TYPE_F32) {
            problems.attempt([&] {
                file.fail_tensor(info.name, cat("has one dimension and type ", tensor_type_name(info.type), ", expected F32"));
            });
        }
    }
}

void check_embedding(const base_parts & parts, uint32_t n_vocab) {
    const tensor_entry * embedding = parts.find_tensor("token_embd.weight");
    if (embedding == nullptr) {
        parts.head().fail_tensor("token_embd.weight", "is missing: not a model with weights");
    }
    if (embedding->ne[1] != n_vocab) {
        parts.head().fail_tensor(embedding->name,
            cat("has ", embedding->ne[1], " rows, expected ", n_vocab, ", one for each of tokenizer.ggml.tokens"));
    }
}

} // namespace

base_sizes check_base(const gguf_file & file) {
    problem_list problems(file);
    check_general(file, problems);
    base_sizes sizes = check_hparams(file, problems);
    sizes.n_vocab    = check_vocab(file, problems);
    problems.throw_any();

    const base_parts parts(file);
    for (const gguf_file * part : parts.all()) {
        problems.attempt([&] { check_alignment(*part); });
        check_vectors(*part, problems);
    }
    problems.attempt([&] { check_embedding(parts, sizes.n_vocab); });
    problems.throw_any();
    check_tensors(parts, sizes);
    return sizes;
}

} // namespace otter
