// From the raw outputs of heads to rewards and scores.

#pragma once

#include "bridge/insertion.h"

#include "ggml.h"

#include <cstdint>
#include <vector>

namespace otter {

enum class activation { none, sigmoid, tanh, softmax };

// What turns a head's raw scalars into rewards: scale * activation(raw) + shift, one entry a label.
struct calibration {
    otter::activation  activation = otter::activation::none;
    std::vector<float> scale;
    std::vector<float> shift;

    void apply(const float * raw, float * rewards) const;
};

struct insertion {
    insertion_spec           spec;
    std::vector<calibration> calibrations; // of each head

    // Calibrated rewards, from a row of raw outputs.
    void rewards(const float * row, float * rewards) const;
};

// Scores every next token from the query of a row (see head_kinds.h).
struct vocabulary_head {
    const ggml_tensor * table;      // [rank, V]
    const calibration * calibrated; // of its one label
    int32_t             first;      // of the query in a row

    int32_t rank() const { return int32_t(table->ne[0]); }

    // Calibrated scores of n candidates, or of the whole vocabulary (null: n is its size).
    void scores(const float * row, const int32_t * candidates, int64_t n, int32_t n_threads, float * out) const;
};

} // namespace otter
