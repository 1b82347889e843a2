#include "gguf/gguf_file.h"

#include "gguf/gguf_parser.h"

#include <algorithm>

namespace otter {

namespace {

// Binary search in positions sorted by name.
template <typename Entry, typename Name>
const Entry * find_sorted(
    const std::vector<Entry> & entries, const std::vector<uint32_t> & order, std::string_view wanted, Name name) {
    const auto it = std::lower_bound(
        order.begin(), order.end(), wanted, [&](uint32_t i, std::string_view text) { return name(entries[i]) < text; });
    return it != order.end() && name(entries[*it]) == wanted ? &entries[*it] : nullptr;
}

} // namespace

std::string kv_entry::type_name() const {
    const char * name = value_type_name(type);
    return is_array ? cat("arr[", name, "]") : name;
}

gguf_file::gguf_file(const std::string & path) : gguf_file(path, mapped_file::open(path)) {}

gguf_file::gguf_file(const std::string & path, std::shared_ptr<const mapped_file> content) :
    file_path(path),
    mapping(std::move(content)) {
    gguf_parser(*this).parse();
}

const kv_entry * gguf_file::find(std::string_view key) const {
    return find_sorted(kvs, kv_order, key, [](const kv_entry & kv) { return kv.key; });
}

const tensor_entry * gguf_file::find_tensor(std::string_view name) const {
    return find_sorted(infos, info_order, name, [](const tensor_entry & info) { return info.name; });
}

const kv_entry * gguf_file::get_scalar(std::string_view key, gguf_type type) const {
    const kv_entry * kv = find(key);
    if (kv != nullptr && (kv->is_array || kv->type != type)) {
        fail_key(key, cat("has type ", kv->type_name(), ", expected ", value_type_name(type)));
    }
    return kv;
}

std::optional<uint32_t> gguf_file::get_u32(std::string_view key) const {
    const kv_entry * kv = get_scalar(key, GGUF_TYPE_UINT32);
    return kv != nullptr ? std::optional(element<uint32_t>(*kv, 0)) : std::nullopt;
}

std::optional<float> gguf_file::get_f32(std::string_view key) const {
    const kv_entry * kv = get_scalar(key, GGUF_TYPE_FLOAT32);
    return kv != nullptr ? std::optional(element<float>(*kv, 0)) : std::nullopt;
}

std::optional<bool> gguf_file::get_bool(std::string_view key) const {
    const kv_entry * kv = get_scalar(key, GGUF_TYPE_BOOL);
    return kv != nullptr ? std::optional(element<uint8_t>(*kv, 0) != 0) : std::nullopt;
}

std::optional<std::string_view> gguf_file::get_str(std::string_view key) const {
    const kv_entry * kv = get_scalar(key, GGUF_TYPE_STRING);
    if (kv == nullptr) {
        return std::nullopt;
    }
    const std::string_view text = strings(*kv).front();
    if (text.find('\0') != std::string_view::npos) {
        fail_key(key, cat("is ", quoted(text), ", expected a text without NUL, where llama.cpp would end it"));
    }
    return text;
}

const kv_entry * gguf_file::get_array(std::string_view key, gguf_type type) const {
    const kv_entry * kv = find(key);
    if (kv != nullptr && (!kv->is_array || kv->type != type)) {
        fail_key(key, cat("has type ", kv->type_name(), ", expected arr[", value_type_name(type), "]"));
    }
    return kv;
}

std::vector<std::string_view> gguf_file::strings(const kv_entry & kv) const {
    std::vector<std::string_view> out;
    out.reserve(kv.count);
    uint64_t pos = kv.data_offset;
    for (uint64_t i = 0; i < kv.count; ++i) {
        uint64_t n = 0;
        std::memcpy(&n, bytes(pos), sizeof(n));
        out.emplace_back(reinterpret_cast<const char *>(bytes(pos + sizeof(n))), static_cast<size_t>(n));
        pos += sizeof(n) + n; // the parser walked here
    }
    return out;
}

void gguf_file::fail(const std::string & what) const {
    throw otter_error(error_kind::file, cat(file_path, ": ", what));
}

void gguf_file::fail_key(std::string_view key, const std::string & what) const {
    fail(cat("key ", quoted(key), " ", what));
}

void gguf_file::fail_tensor(std::string_view name, const std::string & what) const {
    fail(cat("tensor ", quoted(name), " ", what));
}

void gguf_file::unsupported(const std::string & what) const {
    throw otter_error(error_kind::unsupported, cat(file_path, ": ", what));
}

} // namespace otter
