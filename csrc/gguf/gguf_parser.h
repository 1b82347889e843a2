// Reads a GGUF header into a gguf_file, front to back, every step bounded by the size of the file.

#pragma once

#include "gguf/problem_list.h"

namespace otter {

class gguf_parser {
public:
    explicit gguf_parser(gguf_file & target) : file(target), end(target.size()), problems(target) {}

    void parse();

private:
    gguf_file &    file;
    const uint64_t end;
    uint64_t       pos = 0;
    problem_list   problems; // types and shapes of tensors: all are named in one message

    uint64_t n_tensors = 0;
    uint64_t n_kv      = 0;

    void parse_counts();
    void parse_kvs();
    void parse_alignment();
    void parse_tensor_infos();
    void place_data();

    void parse_kv(uint64_t index);
    void parse_value(kv_entry & kv);
    void skip_strings(const kv_entry & kv);
    void check_bools(const kv_entry & kv);
    void parse_tensor_info(uint64_t index);
    void take_type(tensor_entry & info, uint32_t type) const;

    void             check_count(const char * what, uint64_t n, uint64_t min_bytes, uint64_t limit);
    std::string_view read_name(const std::string & what, uint64_t max_bytes);
    void             need(uint64_t n_bytes, const std::string & what);

    template <typename T>
    T read(const std::string & what) {
        need(sizeof(T), what);
        T value;
        std::memcpy(&value, file.bytes(pos), sizeof(T));
        pos += sizeof(T);
        return value;
    }
};

} // namespace otter
