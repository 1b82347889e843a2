#include "gguf/base_parts.h"

#include <cstdio>

namespace otter {

namespace {

std::optional<uint32_t> get_u16(const gguf_file & file, const char * key) {
    const kv_entry * kv = file.find(key);
    if (kv != nullptr && (kv->is_array || kv->type != GGUF_TYPE_UINT16)) {
        file.fail_key(key, cat("has type ", kv->type_name(), ", expected u16"));
    }
    return kv != nullptr ? std::optional<uint32_t>(file.element<uint16_t>(*kv, 0)) : std::nullopt;
}

// "-00002-of-00003.gguf", counted from 1
std::string part_suffix(uint32_t number, uint32_t count) {
    char text[64];
    std::snprintf(text, sizeof(text), "-%05u-of-%05u.gguf", number, count);
    return text;
}

} // namespace

base_parts::base_parts(const gguf_file & first) : files{ &first } {
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
        files.push_back(&part);
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
