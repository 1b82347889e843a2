// The files of a base: one, or the parts that llama.cpp's gguf-split made of it and llama.cpp opens by itself.

#pragma once

#include "gguf/gguf_file.h"

namespace otter {

class base_parts {
public:
    // Opens the parts that `first` names beside itself, and checks their split.* keys: llama.cpp aborts on one of
    // another type. Throws otter_error(file).
    explicit base_parts(const gguf_file & first);

    const gguf_file & head() const { return *files.front(); } // holds the metadata

    const std::vector<const gguf_file *> & all() const { return files; }

    const tensor_entry * find_tensor(std::string_view name) const; // nullptr if absent

private:
    void check_number_of_tensors() const;

    std::vector<std::unique_ptr<const gguf_file>> opened;
    std::vector<const gguf_file *>                files;
};

} // namespace otter
