// A GGUF file whose header is read and checked as a whole before anything uses it.

#pragma once

#include "gguf/error.h"
#include "gguf/mapped_file.h"
#include "gguf/types.h"

#include <array>
#include <cstring>
#include <optional>
#include <vector>

namespace otter {

// One metadata entry. Offsets are from the start of the file.
struct kv_entry {
    std::string_view key;

    gguf_type type     = GGUF_TYPE_COUNT; // of the elements, in an array
    bool      is_array = false;
    uint64_t  count    = 1;

    uint64_t value_offset = 0; // behind the type tag
    uint64_t data_offset  = 0; // of the first element: behind element type and count in an array, else value_offset
    uint64_t end          = 0;

    // "u32", "arr[str]" ...
    std::string type_name() const;
};

struct tensor_entry {
    std::string_view name;

    ggml_type               type   = GGML_TYPE_COUNT;
    uint32_t                n_dims = 0;
    std::array<uint64_t, 4> ne     = { 1, 1, 1, 1 }; // columns first

    uint64_t offset  = 0; // from the start of the file
    uint64_t n_bytes = 0;
};

// Checked: magic and version; counts against the size of the file; keys and tensor names (printable ASCII, not empty,
// unique, bounded); value types, flat arrays, strings inside the file; tensor types, shapes and sizes; alignment;
// offsets one behind the other as ggml demands; data inside the file. Anything else throws otter_error: `file`, or
// `unsupported` for another version or byte order.
class gguf_file {
public:
    explicit gguf_file(const std::string & path);
    gguf_file(const std::string & path, std::shared_ptr<const mapped_file> content); // `path`: its name in errors

    const std::string & path() const { return file_path; }
    uint32_t            version() const { return header_version; }
    uint64_t            alignment() const { return data_alignment; }
    uint64_t            size() const { return mapping->size(); }
    uint64_t            kv_offset() const { return kv_begin; }
    uint64_t            tensor_info_offset() const { return info_begin; }
    uint64_t            tensor_info_end() const { return info_end; }
    uint64_t            data_offset() const { return data_begin; }

    const std::vector<kv_entry> &     entries() const { return kvs; }   // in file order
    const std::vector<tensor_entry> & tensors() const { return infos; } // in file order

    // nullptr if absent
    const kv_entry *     find(std::string_view key) const;
    const tensor_entry * find_tensor(std::string_view name) const;

    const uint8_t * bytes(uint64_t offset) const { return mapping->data() + offset; }

    // Keeps the bytes valid after this object is gone.
    std::shared_ptr<const mapped_file> mapped() const { return mapping; }

    // Typed values: nullopt if the key is absent, otter_error(file) if it has another type.
    std::optional<uint32_t>         get_u32(std::string_view key) const;
    std::optional<float>            get_f32(std::string_view key) const;
    std::optional<bool>             get_bool(std::string_view key) const;
    std::optional<std::string_view> get_str(std::string_view key) const;
    const kv_entry *                get_array(std::string_view key, gguf_type type) const;

    // Element i of an entry whose type is known to have the size of T.
    template <typename T>
    T element(const kv_entry & kv, uint64_t i) const {
        T value;
        std::memcpy(&value, bytes(kv.data_offset + i * sizeof(T)), sizeof(T));
        return value;
    }

    // The strings of a `str` entry or of an array of them.
    std::vector<std::string_view> strings(const kv_entry & kv) const;

    [[noreturn]] void fail(const std::string & what) const;
    [[noreturn]] void fail_key(std::string_view key, const std::string & what) const;
    [[noreturn]] void fail_tensor(std::string_view name, const std::string & what) const;
    [[noreturn]] void unsupported(const std::string & what) const;

private:
    friend class gguf_parser;

    std::string                        file_path;
    std::shared_ptr<const mapped_file> mapping;

    uint32_t header_version = 0;
    uint64_t data_alignment = GGUF_DEFAULT_ALIGNMENT;
    uint64_t kv_begin       = 0;
    uint64_t info_begin     = 0;
    uint64_t info_end       = 0;
    uint64_t data_begin     = 0;

    std::vector<kv_entry>     kvs;
    std::vector<tensor_entry> infos;

    // positions in kvs and infos, sorted by name: no hash that a file could be made to collide in
    std::vector<uint32_t> kv_order;
    std::vector<uint32_t> info_order;

    const kv_entry * get_scalar(std::string_view key, gguf_type type) const;
};

} // namespace otter
