#include "gguf/base_parts.h"

#include <cstdio>

namespace otter {

namespace {

template <typename T> std::optional<T> get(const gguf_file & file, const char * key, gguf_type type, const char * name) {
    const kv_entry * kv = file.find(key);
    if (kv != nullptr && (kv->is_array || kv->type != type)) {
        file.fail_key(key, cat("has type ", kv->type_name(), ", expected ", name));
    }
    return kv != nullptr ? std::optional<T>(file.element<T>(*kv, 0)) : std::nullopt;
}

std::optional<uint32_t> get_u16(const gguf_file & file, const char * key) {
    return get<uint16_t>(file, key, GGUF_TYPE_UINT16, "u16");
}

// "-00002-of-00003.gguf", counted from 1
std::string part_suffix(uint32_t number, uint32_t count) {
    char text[64];
    std::snprintf(text, sizeof(text), "-%05u-of-%05u.gguf", number, count);
    return text;
}

} // namespace

base_parts::base_parts(const gguf_file & first) : files { &first } {
    const uint32_t count = get_u16(first, "split.count").value_or(0);
    if (count < 2) {
        return;
    }
    if (get_u16(first, "split.no").value_or(UINT16_MAX) != 0) {
        first.fail_key("split.no", cat("is not 0: give the first of the ", count, " parts"));
    }
    const std::string & path   = first.path();
    const std::string   suffix = part_suffix(1, count);
    if (path.size() < suffix.size() || path.compare(path.size() - suffix.size(), suffix.size(), suffix) != 0) {
        first.fail_key("split.count", cat("is ", count, ", expected a file name that ends with ", quoted(suffix)));
    }
    const std::string prefix = path.substr(0, path.size() - suffix.size());
    for (uint32_t i = 1; i < count; ++i) {
        opened.push_back(std::make_unique<const gguf_file>(prefix + part_suffix(i + 1, count)));
        const gguf_file & part = *opened.back();
        if (get_u16(part, "split.no").value_or(UINT16_MAX) != i) {
            part.fail_key("split.no", cat("is missing or not ", i, ", the number of this part"));
        }
        if (get_u16(part, "split.count").value_or(count) != count) {
            part.fail_key("split.count", cat("is not ", count, ", the number of parts that ", path, " names"));
        }
        files.push_back(&part);
    }
    check_number_of_tensors();
}

// What each part says of the tensors in all of them; only llama.cpp's loader needs it to be there.
void base_parts::check_number_of_tensors() const {
    size_t n_tensors = 0;
    for (const gguf_file * file : files) {
        n_tensors += file->tensors().size();
    }
    for (const gguf_file * file : files) {
        const auto said = get<int32_t>(*file, "split.tensors.count", GGUF_TYPE_INT32, "i32");
        if (said && static_cast<int64_t>(*said) != static_cast<int64_t>(n_tensors)) {
            file->fail_key("split.tensors.count", cat("is ", *said, ", but its parts hold ", n_tensors, " tensors"));
        }
    }
}

const tensor_entry * base_parts::find_tensor(std::string_view name) const {
    for (const gguf_file * file : files) {
        const tensor_entry * info = file->find_tensor(name);
        if (info != nullptr) {
            return info;
        }
    }
    return nullptr;
}

} // namespace otter
