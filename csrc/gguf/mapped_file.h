// A regular, non-empty file, readable as bytes.

#pragma once

#include "gguf/live.h"

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace otter {

// Throws otter_error(file) on an empty name, which llama.cpp takes for a model in memory, and on a NUL, where C would end
// the name and open another file.
void check_path(const std::string & path);

// Memory-mapped read only where there is mmap, read into memory elsewhere. Shared by everything that points into it.
class mapped_file {
public:
    // Throws otter_error(file) on anything but a regular file with at least one byte.
    static std::shared_ptr<const mapped_file> open(const std::string & path);

    // Bytes in memory, taken for those of a file; `path` is their name in errors. Throws otter_error(file) if there are
    // none.
    static std::shared_ptr<const mapped_file> of(const std::string & path, std::vector<uint8_t> content);

    mapped_file(const mapped_file &)             = delete;
    mapped_file & operator=(const mapped_file &) = delete;
    ~mapped_file();

    const uint8_t * data() const { return bytes; }
    uint64_t        size() const { return n_bytes; }

private:
    mapped_file() = default;

    const uint8_t *      bytes   = nullptr;
    uint64_t             n_bytes = 0;
    std::vector<uint8_t> buffer; // owns the bytes that are not mapped

    const live_count<mapped_file> counted;
};

} // namespace otter
