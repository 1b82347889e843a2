#include "logits.h"

#include "fail.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <limits>

// Loops over a block have no branch and a length that is known, so that the compiler turns them into vector code.

namespace otter {

namespace {

constexpr int32_t block     = 64;
constexpr int32_t n_lanes   = 8; // sums side by side: floating-point addition is not the compiler's to reorder
constexpr float   minus_inf = -std::numeric_limits<float>::infinity();

using block_values = std::array<float, block>;

// A heap of the best so far with the worst on top.
class best_heap {
public:
    explicit best_heap(int32_t k) : size(size_t(k)) { entries.reserve(size); }

    float worst() const { return entries.size() < size ? minus_inf : entries.front().key; }

    // key > worst()
    void push(int32_t token, float key) {
        if (entries.size() == size) {
            std::pop_heap(entries.begin(), entries.end(), better);
            entries.pop_back();
        }
        entries.push_back({ token, key });
        std::push_heap(entries.begin(), entries.end(), better);
    }

    std::vector<candidate> sorted(const float * logits) {
        std::sort_heap(entries.begin(), entries.end(), better);
        std::vector<candidate> result;
        result.reserve(entries.size());
        for (const auto & kept : entries) {
            result.emplace_back(kept.token, logits[kept.token]);
        }
        return result;
    }

private:
    struct entry {
        int32_t token;
        float   key;
    };

    static bool better(const entry & a, const entry & b) { return a.key > b.key || (a.key == b.key && a.token < b.token); }

    const size_t       size;
    std::vector<entry> entries;
};

// Most blocks hold nothing better than the worst kept.
bool any_above(const block_values & values, float limit) {
    int found = 0;
    for (const float value : values) {
        found |= int(value > limit);
    }
    return found != 0;
}

// The values of a block, with minus infinity behind the end.
void read_block(const float * values, int32_t n, block_values & out) {
    if (n >= block) {
        std::memcpy(out.data(), values, sizeof(out));
        return;
    }
    std::copy(values, values + n, out.begin());
    std::fill(out.begin() + n, out.end(), minus_inf);
}

float highest(const float * logits, int32_t n) {
    block_values best;
    block_values values;
    best.fill(minus_inf);
    for (int32_t begin = 0; begin < n; begin += block) {
        read_block(logits + begin, n - begin, values);
        for (size_t i = 0; i < block; ++i) {
            best[i] = values[i] > best[i] ? values[i] : best[i];
        }
    }
    return *std::max_element(best.begin(), best.end());
}

// exp of this adds nothing to a sum that holds exp(0): 2^-127, which the exponent field has as 0.
constexpr float exp_is_zero = -88.0f;

// exp(x) for x from exp_is_zero to 0: 2^n times the Taylor polynomial of degree 7 on the rest, whose own error
// (|rest| <= ln(2)/2) is 5e-9.
inline float exp_of_negative(float x) {
    constexpr float shifter  = 12582912.0f; // 1.5 * 2^23: adding it rounds to an integer, in the low bits
    constexpr float ln2_high = 0.693359375f, ln2_low = -2.12194440e-4f; // high * n is exact

    const float shifted = x * 1.44269504f + shifter;
    const float n       = shifted - shifter;
    const float r       = (x - n * ln2_high) - n * ln2_low;

    const float tail = ((r * (1.0f / 5040.0f) + 1.0f / 720.0f) * r + 1.0f / 120.0f) * r + 1.0f / 24.0f;
    const float sum  = (((tail * r + 1.0f / 6.0f) * r + 0.5f) * r + 1.0f) * r + 1.0f;

    uint32_t bits;
    std::memcpy(&bits, &shifted, sizeof(bits));
    bits = (bits + 127u) << 23; // the exponent field of 2^n; what the shifter left above it falls out
    float power;
    std::memcpy(&power, &bits, sizeof(power));
    return sum * power;
}

struct softmax_sums {
    double shift;    // the highest logit
    double z;        // sum of exp(logit - shift)
    double weighted; // sum of exp(logit - shift) * (logit - shift)
};

softmax_sums sum_softmax(const float * logits, int32_t n) {
    const float shift = highest(logits, n);
    if (shift == minus_inf && std::none_of(logits, logits + n, [](float x) { return std::isnan(x); })) {
        return { shift, 0.0, 0.0 };
    }
    std::array<double, n_lanes> z {};
    std::array<double, n_lanes> weighted {};
    block_values                values;
    block_values                exps;
    for (int32_t begin = 0; begin < n; begin += block) {
        read_block(logits + begin, n - begin, values);
        for (size_t i = 0; i < block; ++i) {
            const float x = values[i] - shift;
            values[i]     = x < exp_is_zero ? exp_is_zero : x; // NaN stays NaN
        }
        for (size_t i = 0; i < block; ++i) {
            exps[i] = exp_of_negative(values[i]);
        }
        for (size_t i = 0; i < block; i += n_lanes) {
            for (size_t j = 0; j < n_lanes; ++j) {
                z[j] += double(exps[i + j]);
                weighted[j] += double(exps[i + j]) * double(values[i + j]);
            }
        }
    }
    softmax_sums sums = { shift, 0.0, 0.0 };
    for (size_t j = 0; j < n_lanes; ++j) {
        sums.z += z[j];
        sums.weighted += weighted[j];
    }
    if (!std::isfinite(sums.z) || !std::isfinite(shift)) {
        throw config_error("the logits hold a NaN or plus infinity");
    }
    return sums;
}

} // namespace

std::vector<candidate> best_tokens(const float * logits, const float * bonus, int32_t n, int32_t k) {
    best_heap    best(k);
    block_values keys;
    block_values extra;
    for (int32_t begin = 0; begin < n; begin += block) {
        read_block(logits + begin, n - begin, keys);
        if (bonus != nullptr) {
            read_block(bonus + begin, n - begin, extra);
            for (size_t i = 0; i < block; ++i) {
                keys[i] += extra[i];
            }
        }
        if (!any_above(keys, best.worst())) {
            continue;
        }
        for (int32_t i = 0; i < block; ++i) {
            if (keys[size_t(i)] > best.worst()) {
                best.push(begin + i, keys[size_t(i)]);
            }
        }
    }
    return best.sorted(logits);
}

void check_k(int32_t k, int32_t n) {
    if (k < 1 || k > n) {
        throw config_error("top_k of " + std::to_string(k) + ", expected 1 to " + std::to_string(n));
    }
}

double log_sum_exp(const float * logits, int32_t n) {
    const auto sums = sum_softmax(logits, n);
    return sums.shift + std::log(sums.z);
}

double entropy(const float * logits, int32_t n) {
    const auto sums = sum_softmax(logits, n);
    if (sums.z == 0.0) {
        throw config_error("the logits are minus infinity, all of them");
    }
    return std::max(0.0, std::log(sums.z) - sums.weighted / sums.z);
}

} // namespace otter
