// Which sequences of a KV cache may share cells: copies, and copies of copies.

#pragma once

#include <algorithm>
#include <cstdint>
#include <numeric>
#include <vector>

namespace otter {

class cell_sharing {
public:
    explicit cell_sharing(size_t n_sequences) : family(n_sequences) { reset(); }

    // No sequence shares anything.
    void reset() {
        std::iota(family.begin(), family.end(), 0);
        n_families = int64_t(family.size());
    }

    void copied(int32_t source, int32_t target) {
        const int64_t former = family[size_t(target)];
        std::replace(family.begin(), family.end(), former, int64_t(family[size_t(source)]));
    }

    void emptied(int32_t sequence) { family[size_t(sequence)] = n_families++; }

    bool shared(int32_t a, int32_t b) const { return family[size_t(a)] == family[size_t(b)]; }

private:
    std::vector<int64_t> family; // sequences of one number may share
    int64_t              n_families = 0;
};

} // namespace otter
