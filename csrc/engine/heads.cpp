#include "heads.h"

#include "ggml-cpu.h"

#include <algorithm>
#include <cmath>
#include <future>

namespace otter {

// exp(raw - max) over its sum
static void softmax(const float * raw, size_t n, float * out) {
    const float highest = *std::max_element(raw, raw + n);
    float       sum     = 0.0f;
    for (size_t i = 0; i < n; ++i) {
        out[i] = expf(raw[i] - highest);
        sum += out[i];
    }
    for (size_t i = 0; i < n; ++i) {
        out[i] /= sum;
    }
}

void calibration::apply(const float * raw, float * rewards) const {
    const size_t n = scale.size();
    switch (activation) {
        case activation::none:    std::copy(raw, raw + n, rewards); break;
        case activation::softmax: softmax(raw, n, rewards); break;
        case activation::tanh:    std::transform(raw, raw + n, rewards, tanhf); break;
        case activation::sigmoid:
            std::transform(raw, raw + n, rewards, [](float x) { return 1.0f / (1.0f + expf(-x)); });
            break;
    }
    for (size_t i = 0; i < n; ++i) {
        rewards[i] = scale[i] * rewards[i] + shift[i];
    }
}

void insertion::rewards(const float * row, float * rewards) const {
    for (size_t i = 0; i < spec.heads.size(); ++i) {
        const auto & head = spec.heads[i];
        if (head.kind->output == head_output::rewards) {
            calibrations[i].apply(row, rewards);
            rewards += head.n_rewards();
        }
        row += head.n_outputs();
    }
}

// A row of a tensor as floats: in place, or in the buffer.
static const float * read_row(const ggml_tensor * tensor, const char * row, std::vector<float> & buffer) {
    switch (tensor->type) {
        case GGML_TYPE_F32: return (const float *) row;
        case GGML_TYPE_F16: // with the processor's instruction; the traits' function has none
            ggml_cpu_fp16_to_fp32((const ggml_fp16_t *) row, buffer.data(), tensor->ne[0]);
            break;
        default: ggml_get_type_traits(tensor->type)->to_float(row, buffer.data(), tensor->ne[0]);
    }
    return buffer.data();
}

void vocabulary_head::scores(const float * row, const int32_t * candidates, int64_t n, int32_t n_threads, float * out) const {
    constexpr int64_t min_values = 1 << 19; // of the table for each thread; starting one costs as much as some 100,000

    const float * query   = row + first;
    const int64_t n_rank  = rank();
    const auto    vec_dot = ggml_get_type_traits_cpu(GGML_TYPE_F32)->vec_dot;

    const auto score_range = [&](int64_t begin, int64_t end) {
        std::vector<float> buffer(static_cast<size_t>(n_rank));
        for (int64_t i = begin; i < end; ++i) {
            const int64_t token  = candidates ? candidates[i] : i;
            const float * values = read_row(table, (const char *) table->data + size_t(token) * table->nb[1], buffer);

            float raw = 0.0f;
            vec_dot(int(n_rank), &raw, 0, values, 0, query, 0, 1);
            raw += query[n_rank];
            calibrated->apply(&raw, out + i);
        }
    };

    const int64_t n_parts = std::max<int64_t>(1, std::min<int64_t>(n_threads, n * n_rank / min_values));

    std::vector<std::future<void>> parts;
    for (int64_t i = 1; i < n_parts; ++i) {
        parts.push_back(std::async(std::launch::async, score_range, n * i / n_parts, n * (i + 1) / n_parts));
    }
    score_range(0, n / n_parts);
    for (auto & part : parts) {
        part.get();
    }
}

} // namespace otter
