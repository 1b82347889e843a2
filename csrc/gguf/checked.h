// The only arithmetic that sizes, counts and offsets of a file may go through. Four rounds of advisories on llama.cpp's
// own reader came from single additions and multiplications beside such helpers.

#pragma once

#include <cstdint>

namespace otter {

// *sum = a + b; false, and *sum untouched, if it does not fit.
[[nodiscard]] inline bool checked_add(uint64_t a, uint64_t b, uint64_t * sum) {
    if (b > UINT64_MAX - a) {
        return false;
    }
    *sum = a + b;
    return true;
}

// *product = a * b; false, and *product untouched, if it does not fit.
[[nodiscard]] inline bool checked_mul(uint64_t a, uint64_t b, uint64_t * product) {
    if (a != 0 && b > UINT64_MAX / a) {
        return false;
    }
    *product = a * b;
    return true;
}

// *padded = n rounded up to a multiple of alignment, a power of two.
[[nodiscard]] inline bool checked_pad(uint64_t n, uint64_t alignment, uint64_t * padded) {
    uint64_t sum = 0;
    if (!checked_add(n, alignment - 1, &sum)) {
        return false;
    }
    *padded = sum & ~(alignment - 1);
    return true;
}

} // namespace otter
