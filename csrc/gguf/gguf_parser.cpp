#include "gguf/gguf_parser.h"

#include "gguf/checked.h"

#include <algorithm>
#include <numeric>

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#    error "GGUF files are read as they stand in memory: little-endian machines only"
#endif

namespace otter {

namespace {

// ggml's own limits on strings, arrays and names; those on counts are ours: far above any model, and low enough that
// a hostile header cannot make this process hold many times the size of the file.
constexpr uint64_t max_string_bytes   = uint64_t(1) << 30;
constexpr uint64_t max_array_elements = uint64_t(1) << 30;
constexpr uint64_t max_key_bytes      = UINT16_MAX;
constexpr uint64_t max_name_bytes     = GGML_MAX_NAME - 1;
constexpr uint64_t max_kvs            = uint64_t(1) << 16;
constexpr uint64_t max_tensors        = uint64_t(1) << 18;

constexpr uint64_t min_kv_bytes   = 8 + 1 + 4 + 1;         // name length, name, type, value
constexpr uint64_t min_info_bytes = 8 + 1 + 4 + 8 + 4 + 8; // name length, name, dimensions, one of them, type, offset

constexpr uint32_t min_alignment = 8;
constexpr uint32_t max_alignment = 65536;

// Printable ASCII, as the specification demands of keys: a NUL would end the name early in llama.cpp, a line break
// would forge log lines, and any message may quote a name as it is.
bool is_clean_name(std::string_view text) {
    return std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; });
}

// Positions sorted by name, ties by position.
template <typename Name>
std::vector<uint32_t> sorted_by(size_t n, Name name) {
    std::vector<uint32_t> order(n);
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](uint32_t a, uint32_t b) {
        const int c = name(a).compare(name(b));
        return c < 0 || (c == 0 && a < b);
    });
    return order;
}

} // namespace

void gguf_parser::parse() {
    parse_counts();
    parse_kvs();
    parse_alignment();
    parse_tensor_infos();
    place_data();
}

void gguf_parser::need(uint64_t n_bytes, const std::string & what) {
    if (n_bytes > end - pos) {
        file.fail(cat("file ends inside ", what, ": ", n_bytes, " bytes needed at offset ", pos, ", the file has ", end,
            "; it is truncated or damaged"));
    }
}

// A count that the rest of the file cannot hold is refused before anything is allocated for it.
void gguf_parser::check_count(const char * what, uint64_t n, uint64_t min_bytes, uint64_t limit) {
    uint64_t n_bytes = 0;
    if (n > limit || !checked_mul(n, min_bytes, &n_bytes) || n_bytes > end - pos) {
        file.fail(cat("header claims ", n, " ", what, ", at most ", std::min(limit, (end - pos) / min_bytes),
            " are possible in ", end, " bytes"));
    }
}

void gguf_parser::parse_counts() {
    need(4, "magic");
    const std::string_view magic(reinterpret_cast<const char *>(file.bytes(0)), 4);
    if (magic != "GGUF") {
        file.fail(cat("not a GGUF file: starts with ", quoted(magic), ", expected 'GGUF'"));
    }
    pos                 = 4;
    file.header_version = read<uint32_t>("version");
    if (file.header_version != 0 && (file.header_version & 0xffff) == 0) {
        file.unsupported("big-endian GGUF; convert it with gguf-py's gguf_convert_endian.py");
    }
    if (file.header_version < 2 || file.header_version > 3) {
        file.unsupported(cat("GGUF version ", file.header_version, ", expected 2 or 3"));
    }
    n_tensors = read<uint64_t>("tensor count");
    n_kv      = read<uint64_t>("key count");
    check_count("tensors", n_tensors, min_info_bytes, max_tensors);
    check_count("keys", n_kv, min_kv_bytes, max_kvs);
    file.kv_begin = pos;
}

std::string_view gguf_parser::read_name(const std::string & what, uint64_t max_bytes) {
    const auto n = read<uint64_t>(cat("the length of ", what));
    if (n == 0 || n > max_bytes) {
        file.fail(cat(what, " has a name of ", n, " bytes, expected 1 to ", max_bytes));
    }
    need(n, cat("the name of ", what));
    const std::string_view name(reinterpret_cast<const char *>(file.bytes(pos)), static_cast<size_t>(n));
    if (!is_clean_name(name)) {
        file.fail(cat(what, " has the name ", quoted(name), ", expected printable ASCII"));
    }
    pos += n;
    return name;
}

void gguf_parser::parse_kvs() {
    file.kvs.reserve(n_kv);
    for (uint64_t i = 0; i < n_kv; ++i) {
        parse_kv(i);
    }
    file.info_begin = pos;

    file.kv_order = sorted_by(file.kvs.size(), [&](uint32_t i) { return file.kvs[i].key; });
    for (size_t i = 1; i < file.kv_order.size(); ++i) {
        const kv_entry & kv = file.kvs[file.kv_order[i]];
        if (kv.key == file.kvs[file.kv_order[i - 1]].key) {
            file.fail_key(kv.key, "appears twice");
        }
    }
}

void gguf_parser::parse_kv(uint64_t index) {
    kv_entry kv;
    kv.key = read_name(cat("key ", index), max_key_bytes);

    const std::string what = cat("key ", quoted(kv.key));
    auto              type = read<uint32_t>(what);
    kv.value_offset        = pos;
    kv.is_array            = type == GGUF_TYPE_ARRAY;
    if (kv.is_array) {
        type     = read<uint32_t>(what);
        kv.count = read<uint64_t>(what);
    }
    if (value_type_name(type) == nullptr || type == GGUF_TYPE_ARRAY) {
        file.fail_key(kv.key,
            type == GGUF_TYPE_ARRAY ? "is an array of arrays, expected a flat array"
                                    : cat("has the unknown value type ", type));
    }
    kv.type        = static_cast<gguf_type>(type);
    kv.data_offset = pos;
    parse_value(kv);
    kv.end = pos;
    file.kvs.push_back(kv);
}

void gguf_parser::parse_value(kv_entry & kv) {
    if (kv.count > max_array_elements) {
        file.fail_key(kv.key, cat("is an array of ", kv.count, " elements, expected at most ", max_array_elements));
    }
    if (kv.type == GGUF_TYPE_STRING) {
        skip_strings(kv);
        return;
    }
    uint64_t n_bytes = 0;
    if (!checked_mul(kv.count, value_type_size(kv.type), &n_bytes)) {
        file.fail_key(kv.key, cat("is an array of ", kv.count, " elements, more than any file holds"));
    }
    need(n_bytes, cat("key ", quoted(kv.key)));
    pos += n_bytes;
    if (kv.type == GGUF_TYPE_BOOL) {
        check_bools(kv);
    }
}

void gguf_parser::skip_strings(const kv_entry & kv) {
    const std::string what = cat("key ", quoted(kv.key));
    for (uint64_t i = 0; i < kv.count; ++i) {
        const auto n = read<uint64_t>(what);
        if (n > max_string_bytes) {
            file.fail_key(kv.key, cat("holds a string of ", n, " bytes, expected at most ", max_string_bytes));
        }
        need(n, what);
        pos += n;
    }
}

void gguf_parser::check_bools(const kv_entry & kv) {
    for (uint64_t i = 0; i < kv.count; ++i) {
        const uint8_t value = *file.bytes(kv.data_offset + i);
        if (value > 1) {
            file.fail_key(kv.key, cat("holds the bool ", int(value), ", expected 0 or 1"));
        }
    }
}

void gguf_parser::parse_alignment() {
    const auto value = file.get_u32(GGUF_KEY_GENERAL_ALIGNMENT);
    if (!value) {
        return;
    }
    if (*value < min_alignment || *value > max_alignment || (*value & (*value - 1)) != 0) {
        file.fail_key(GGUF_KEY_GENERAL_ALIGNMENT,
            cat("is ", *value, ", expected a power of two from ", min_alignment, " to ", max_alignment));
    }
    file.data_alignment = *value;
}

void gguf_parser::parse_tensor_infos() {
    file.infos.reserve(n_tensors);
    for (uint64_t i = 0; i < n_tensors; ++i) {
        parse_tensor_info(i);
    }
    problems.throw_any();
    file.info_end = pos;

    file.info_order = sorted_by(file.infos.size(), [&](uint32_t i) { return file.infos[i].name; });
    for (size_t i = 1; i < file.info_order.size(); ++i) {
        const tensor_entry & info = file.infos[file.info_order[i]];
        if (info.name == file.infos[file.info_order[i - 1]].name) {
            file.fail_tensor(info.name, "appears twice");
        }
    }
}

void gguf_parser::parse_tensor_info(uint64_t index) {
    tensor_entry info;
    info.name = read_name(cat("tensor ", index), max_name_bytes);

    const std::string what = cat("the entry of tensor ", quoted(info.name));
    info.n_dims            = read<uint32_t>(what);
    if (info.n_dims < 1 || info.n_dims > GGML_MAX_DIMS) {
        file.fail_tensor(info.name, cat("has ", info.n_dims, " dimensions, expected 1 to ", GGML_MAX_DIMS));
    }
    for (uint32_t i = 0; i < info.n_dims; ++i) {
        info.ne[i] = read<uint64_t>(what);
    }
    const auto type = read<uint32_t>(what);
    info.offset     = read<uint64_t>(what);
    problems.attempt([&] { take_type(info, type); });
    file.infos.push_back(info);
}

void gguf_parser::take_type(tensor_entry & info, uint32_t type) const {
    if (!tensor_type_usable(type)) {
        file.fail_tensor(info.name, cat("has ", tensor_type_name(type), ", expected a float or quantized type"));
    }
    info.type = static_cast<ggml_type>(type);

    const std::string problem = tensor_size_problem(info.type, info.ne.data(), info.n_dims, &info.n_bytes);
    if (!problem.empty()) {
        file.fail_tensor(info.name, problem);
    }
}

// ggml demands each tensor right behind the padded end of the one before, in file order: no holes, no overlap.
void gguf_parser::place_data() {
    file.data_begin = pos;
    if (n_tensors == 0) {
        return;
    }
    if (!checked_pad(pos, file.data_alignment, &file.data_begin) || file.data_begin > end) {
        file.fail(cat("file ends before the tensor data at the next multiple of ", file.data_alignment, " behind offset ", pos,
            ", the file has ", end, " bytes; it is truncated or damaged"));
    }
    uint64_t expected = 0; // from the start of the data
    for (tensor_entry & info : file.infos) {
        if (info.offset != expected) {
            file.fail_tensor(info.name, cat("starts at data offset ", info.offset, ", expected ", expected));
        }
        uint64_t last = 0;
        if (!checked_add(file.data_begin, expected, &info.offset) || !checked_add(info.offset, info.n_bytes, &last) ||
            last > end) {
            file.fail_tensor(info.name,
                cat("needs ", info.n_bytes, " bytes at data offset ", expected, ", the file has ", end,
                    " bytes; it is truncated or damaged"));
        }
        if (!checked_pad(last - file.data_begin, file.data_alignment, &expected)) {
            file.fail_tensor(info.name, "ends behind the largest offset");
        }
    }
}

} // namespace otter
