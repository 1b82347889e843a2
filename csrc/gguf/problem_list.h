// What is wrong with a file, collected so that one message names all of it.

#pragma once

#include "gguf/gguf_file.h"

namespace otter {

class problem_list {
public:
    explicit problem_list(const gguf_file & of) : file(of) {}

    // Run a check. False if it found something, which is kept; what rests on it is then skipped by the caller.
    template <typename Check>
    bool attempt(const Check & check) {
        try {
            check();
            return true;
        } catch (const otter_error & error) {
            add(error);
            return false;
        }
    }

    // Throw one otter_error if there were any: `unsupported` if that is all that is wrong, else `file`.
    void throw_any() const;

private:
    const gguf_file &        file;
    std::vector<std::string> shown; // each once: two checks may read the same key
    size_t                   n_more  = 0;
    bool                     damaged = false;

    void add(const otter_error & error);
};

} // namespace otter
