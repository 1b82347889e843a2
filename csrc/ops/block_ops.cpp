#include "block_ops.h"

#include "bridge/repacked.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace otter {

namespace {

// The share of one thread of n rows or tokens, in whole groups.
struct row_range {
    int64_t begin;
    int64_t end;

    row_range(int64_t n, int ith, int nth, int64_t group = 1) :
        begin(n / group * ith / nth * group),
        end(ith + 1 == nth ? n : n / group * (ith + 1) / nth * group) {}
};

const float * column(const ggml_tensor * t, int64_t i) {
    return (const float *) ((const char *) t->data + i * t->nb[1]);
}

float * column(ggml_tensor * t, int64_t i) {
    return (float *) ((char *) t->data + i * t->nb[1]);
}

// The mean of value(h[i]). Several sums at once: one would wait for itself at every step.
template <class function>
float mean_of(const float * h, int64_t n, function value) {
    constexpr int64_t n_sums = 16;

    float   sums[n_sums] = {};
    int64_t i            = 0;
    for (; i + n_sums <= n; i += n_sums) {
        for (int64_t j = 0; j < n_sums; ++j) {
            sums[j] += value(h[i + j]);
        }
    }
    double sum = 0.0;
    for (const float part : sums) {
        sum += double(part);
    }
    for (; i < n; ++i) {
        sum += double(value(h[i]));
    }
    return float(sum / double(n));
}

// What a norm subtracts and multiplies with: 0 and 1/rms(h), or mean(h) and 1/std(h).
struct norm_statistic {
    float mean;
    float scale;

    norm_statistic(const float * h, int64_t n, const norm_params & norm) :
        mean(norm.layer_norm ? mean_of(h, n, [](float x) { return x; }) : 0.0f),
        scale(1.0f / sqrtf(mean_of(h, n, [m = mean](float x) { return (x - m) * (x - m); }) + norm.eps)) {}
};

// `bias` null: RMSNorm
void norm_inserted(float * dst, const ggml_tensor * h, const ggml_tensor * h_ins, const ggml_tensor * weight,
    const ggml_tensor * bias, int64_t i, const norm_params & norm) {
    const norm_statistic of(column(h, i), h->ne[0], norm);

    const float * x = column(h_ins, i);
    const float * w = (const float *) weight->data;
    for (int64_t j = 0; j < h_ins->ne[0]; ++j) {
        dst[j] = (x[j] - of.mean) * of.scale * w[j];
    }
    if (bias != nullptr) {
        const float * b = (const float *) bias->data;
        for (int64_t j = 0; j < h_ins->ne[0]; ++j) {
            dst[j] += b[j];
        }
    }
}

// The input columns of a product in the type its dot product wants. Every thread packs them for itself: that is
// cheaper than a barrier.
class packed_input {
public:
    packed_input(const ggml_tensor * weight, int64_t n_tokens) :
        type(ggml_get_type_traits_cpu(weight->type)->vec_dot_type),
        block(ggml_blck_size(type)),
        from_float(ggml_get_type_traits_cpu(type)->from_float),
        row_size(ggml_row_size(type, weight->ne[0])) {
        thread_local std::vector<char> storage;
        if (storage.size() < row_size * size_t(n_tokens)) {
            storage.resize(row_size * size_t(n_tokens));
        }
        data = storage.data();
    }

    // Pack [a, b] as column i; b may be null and empty, which ggml's conversion would hand to memcpy.
    void pack(int64_t i, const float * a, int64_t n_a, const float * b, int64_t n_b) {
        char * dst = data + size_t(i) * row_size;
        if (n_a % block == 0 && n_b % block == 0) {
            from_float(a, dst, n_a);
            if (n_b > 0) {
                from_float(b, dst + ggml_row_size(type, n_a), n_b);
            }
            return;
        }
        thread_local std::vector<float> joined;
        joined.resize(size_t(n_a + n_b));
        std::copy(a, a + n_a, joined.begin());
        std::copy(b, b + n_b, joined.begin() + n_a);
        from_float(joined.data(), dst, n_a + n_b);
    }

    const char * operator[](int64_t i) const { return data + size_t(i) * row_size; }

private:
    const ggml_type         type;
    const int64_t           block;
    const ggml_from_float_t from_float;
    const size_t            row_size;

    char * data;
};

// Rows of a weight that a thread takes for itself.
row_range thread_rows(const ggml_tensor * weight, int64_t n, int ith, int nth) {
    return row_range(n, ith, nth, is_repacked(weight) ? repacked_group : 1);
}

// out[i] = row (begin + i) of the weight times a packed column
void multiply(const ggml_tensor * weight, int64_t begin, int64_t end, const char * input, float * out) {
    if (is_repacked(weight)) {
        repacked_product(weight, begin, end, input, out);
        return;
    }
    const auto vec_dot = ggml_get_type_traits_cpu(weight->type)->vec_dot;
    for (int64_t row = begin; row < end; ++row) {
        vec_dot(int(weight->ne[0]), out + (row - begin), 0, (const char *) weight->data + size_t(row) * weight->nb[1], 0, input,
            0, 1);
    }
}

packed_input pack_norm_input(const ggml_tensor * dst, const block_weight & weight) {
    const ggml_tensor * y     = dst->src[0];
    const ggml_tensor * h_ins = dst->src[1];
    const ggml_tensor * h     = dst->src[2]; // null without a norm

    thread_local std::vector<float> y_ins;
    y_ins.resize(size_t(h_ins->ne[0]));

    packed_input input(weight.tensor, dst->ne[1]);
    for (int64_t i = 0; i < dst->ne[1]; ++i) {
        if (h != nullptr) {
            norm_inserted(y_ins.data(), h, h_ins, dst->src[3], dst->src[4], i, weight.norm);
        }
        input.pack(i, column(y, i), y->ne[0], h == nullptr ? column(h_ins, i) : y_ins.data(), h_ins->ne[0]);
    }
    return input;
}

void compute_partial_norm(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const row_range tokens(dst->ne[1], ith, nth);
    for (int64_t i = tokens.begin; i < tokens.end; ++i) {
        norm_inserted(
            column(dst, i), dst->src[0], dst->src[1], dst->src[2], dst->src[3], i, *static_cast<const norm_params *>(userdata));
    }
}

void compute_norm_mul_mat(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const auto &        block  = *static_cast<const block_weight *>(userdata);
    const ggml_tensor * weight = block.tensor;
    const packed_input  input  = pack_norm_input(dst, block);

    const row_range rows = thread_rows(weight, weight->ne[1], ith, nth);
    for (int64_t i = 0; i < dst->ne[1]; ++i) {
        multiply(weight, rows.begin, rows.end, input[i], column(dst, i) + rows.begin);
    }
}

float silu(float x) {
    return x / (1.0f + expf(-x));
}

// The tanh form (Hendrycks and Gimpel, arXiv 1606.08415), rounded as ggml's own on the CPU, which looks it up in a table
// of F16: the same for a few tokens as for many.
float gelu(float x) {
    if (x <= -10.0f || x >= 10.0f) {
        return x < 0.0f ? 0.0f : x;
    }
    constexpr float sqrt_2_over_pi = 0.79788456080286535587989211986876f;
    const float     rounded        = ggml_fp16_to_fp32(ggml_fp32_to_fp16(x));
    const float     inner          = sqrt_2_over_pi * rounded * (1.0f + 0.044715f * rounded * rounded);
    return ggml_fp16_to_fp32(ggml_fp32_to_fp16(0.5f * rounded * (1.0f + tanhf(inner))));
}

void compute_norm_act(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const auto &        block  = *static_cast<const block_weight *>(userdata);
    const ggml_tensor * weight = block.tensor;
    const packed_input  input  = pack_norm_input(dst, block);

    const int64_t   n    = dst->ne[0];
    const row_range rows = thread_rows(weight, n, ith, nth);

    thread_local std::vector<float> up;
    up.assign(size_t(rows.end - rows.begin), 1.0f);
    for (int64_t i = 0; i < dst->ne[1]; ++i) {
        float * out = column(dst, i) + rows.begin;
        multiply(weight, rows.begin, rows.end, input[i], out);
        if (!block.ungated) {
            multiply(weight, rows.begin + n, rows.end + n, input[i], up.data());
        }
        for (size_t j = 0; j < up.size(); ++j) {
            out[j] = (block.gelu_ffn ? gelu(out[j]) : silu(out[j])) * up[j];
        }
    }
}

void compute_mul_mat_add(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const auto &        block    = *static_cast<const block_weight *>(userdata);
    const ggml_tensor * weight   = block.tensor;
    const ggml_tensor * residual = dst->src[0];
    const ggml_tensor * a        = dst->src[1];
    const ggml_tensor * b        = dst->src[2]; // or null
    const float *       bias     = block.bias != nullptr ? (const float *) block.bias->data : nullptr;
    const ggml_tensor * o        = dst->src[3]; // null without a norm before the sum
    const float *       w        = o == nullptr ? nullptr : (const float *) dst->src[4]->data;

    packed_input input(weight, dst->ne[1]);
    for (int64_t i = 0; i < dst->ne[1]; ++i) {
        if (b == nullptr) {
            input.pack(i, column(a, i), a->ne[0], nullptr, 0);
        } else {
            input.pack(i, column(a, i), a->ne[0], column(b, i), b->ne[0]);
        }
    }

    const row_range rows = thread_rows(weight, weight->ne[1], ith, nth);
    for (int64_t i = 0; i < dst->ne[1]; ++i) {
        float *     out   = column(dst, i);
        const float scale = o == nullptr ? block.scale : block.scale * norm_statistic(column(o, i), o->ne[0], block.norm).scale;
        multiply(weight, rows.begin, rows.end, input[i], out + rows.begin);
        for (int64_t row = rows.begin; row < rows.end; ++row) {
            const float product = bias != nullptr ? out[row] + bias[row] : out[row];
            const float factor  = w == nullptr ? scale : scale * w[row];
            out[row]            = factor * product + column(residual, i)[row];
        }
    }
}

void compute_concat(ggml_tensor * dst, int ith, int nth, void *) {
    const ggml_tensor * a = dst->src[0];
    const ggml_tensor * b = dst->src[1];

    const row_range tokens(dst->ne[1], ith, nth);
    for (int64_t i = tokens.begin; i < tokens.end; ++i) {
        memcpy(column(dst, i), column(a, i), size_t(a->ne[0]) * sizeof(float));
        memcpy(column(dst, i) + a->ne[0], column(b, i), size_t(b->ne[0]) * sizeof(float));
    }
}

ggml_tensor * custom(ggml_context * ctx, int64_t rows, int64_t n_tokens, ggml_tensor ** args, int n_args, ggml_custom_op_t fun,
    const void * userdata) {
    return ggml_custom_4d(
        ctx, GGML_TYPE_F32, rows, n_tokens, 1, 1, args, n_args, fun, GGML_N_TASKS_MAX, const_cast<void *>(userdata));
}

ggml_tensor * custom_normed(
    ggml_context * ctx, int64_t rows, const block_weight & weight, const norm_input & in, ggml_custom_op_t fun) {
    ggml_tensor * args[] = { in.y, in.h_ins, in.h, in.ins.weight, in.ins.bias };
    const int     n_args = in.ins.weight == nullptr ? 2 : in.ins.bias == nullptr ? 4 : 5;
    return custom(ctx, rows, in.y->ne[1], args, n_args, fun, &weight);
}

} // namespace

ggml_tensor * cpu_partial_norm(ggml_context * ctx, const norm_input & in, const norm_params & norm) {
    ggml_tensor * args[] = { in.h, in.h_ins, in.ins.weight, in.ins.bias };
    return custom(ctx, in.h_ins->ne[0], in.h->ne[1], args, in.ins.bias == nullptr ? 3 : 4, compute_partial_norm, &norm);
}

ggml_tensor * cpu_norm_mul_mat(ggml_context * ctx, const block_weight & weight, const norm_input & in) {
    return custom_normed(ctx, weight.tensor->ne[1], weight, in, compute_norm_mul_mat);
}

ggml_tensor * cpu_norm_act(ggml_context * ctx, const block_weight & weight, const norm_input & in) {
    return custom_normed(ctx, weight.tensor->ne[1] / (weight.ungated ? 1 : 2), weight, in, compute_norm_act);
}

ggml_tensor * cpu_mul_mat_add(
    ggml_context * ctx, const block_weight & weight, ggml_tensor * a, ggml_tensor * b, const residual_input & to) {
    GGML_ASSERT(to.w_ins == nullptr || (b != nullptr && !weight.norm.layer_norm)); // no base norms otherwise before the sum
    ggml_tensor * args[] = { to.h_ins, a, b, to.o, to.w_ins };
    const int     n_args = to.w_ins != nullptr ? 5 : b != nullptr ? 3 : 2;
    return custom(ctx, weight.tensor->ne[1], a->ne[1], args, n_args, compute_mul_mat_add, &weight);
}

ggml_tensor * cpu_concat(ggml_context * ctx, ggml_tensor * a, ggml_tensor * b) {
    ggml_tensor * args[] = { a, b };
    return custom(ctx, a->ne[0] + b->ne[0], a->ne[1], args, 2, compute_concat, nullptr);
}

bool cpu_readable(const ggml_tensor * weight) {
    return weight->buffer != nullptr && ggml_backend_buffer_is_host(weight->buffer);
}

bool cpu_multipliable(const ggml_tensor * weight, int64_t parts) {
    if (is_repacked(weight)) {
        return weight->ne[1] % (parts * repacked_group) == 0;
    }
    return cpu_readable(weight) && ggml_get_type_traits_cpu(weight->type)->vec_dot != nullptr;
}

} // namespace otter
