#include "gguf/finite.h"

#include <algorithm>

namespace otter {

namespace {

constexpr uint16_t f16_exponent  = 0x7c00;
constexpr uint16_t bf16_exponent = 0x7f80;
constexpr uint32_t f32_exponent  = 0x7f800000;
constexpr uint8_t  e8m0_nan      = 0xff;

template <typename Bits>
Bits load(const uint8_t * p) {
    Bits bits;
    std::memcpy(&bits, p, sizeof(bits));
    return bits;
}

// NaN and infinity have all exponent bits set. Chunks without a branch inside, so that the compiler uses vectors.
template <typename Bits>
int64_t first_value(const uint8_t * data, uint64_t n, Bits exponent) {
    constexpr uint64_t chunk = 1024;
    for (uint64_t begin = 0; begin < n; begin += chunk) {
        const uint64_t end = std::min(n, begin + chunk);
        Bits           bad = 0;
        for (uint64_t i = begin; i < end; ++i) {
            const Bits bits = load<Bits>(data + i * sizeof(Bits));
            bad |= Bits((bits & exponent) == exponent);
        }
        for (uint64_t i = begin; bad != 0 && i < end; ++i) {
            const Bits bits = load<Bits>(data + i * sizeof(Bits));
            if ((bits & exponent) == exponent) {
                return int64_t(i);
            }
        }
    }
    return -1;
}

// Where the F16 scales of a block stand: `count` of them from byte `offset`.
struct block_scales {
    uint32_t offset;
    uint32_t count;
};

// As in the block_* structs of ggml-common.h, which only ggml's own sources may include.
block_scales scales_of(ggml_type type) {
    switch (type) {
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q4_K:
        case GGML_TYPE_Q5_K:  return { 0, 2 };
        case GGML_TYPE_Q2_K:  return { 80, 2 }; // behind scales[16], qs[64]
        case GGML_TYPE_Q3_K:  return { 108, 1 }; // behind hmask[32], qs[64], scales[12]
        case GGML_TYPE_Q6_K:  return { 208, 1 }; // behind ql[128], qh[64], scales[16]
        case GGML_TYPE_TQ1_0: return { 52, 1 }; // behind qs[48], qh[4]
        case GGML_TYPE_TQ2_0: return { 64, 1 }; // behind qs[64]
        default:              return { 0, 1 };
    }
}

bool bad_f16(const uint8_t * p) {
    return (load<uint16_t>(p) & f16_exponent) == f16_exponent;
}

int64_t first_scale(ggml_type type, const uint8_t * data, uint64_t n_blocks) {
    const block_scales scales = scales_of(type);
    const uint64_t     stride = ggml_type_size(type);
    for (uint64_t i = 0; i < n_blocks; ++i) {
        const uint8_t * scale = data + i * stride + scales.offset;
        if (bad_f16(scale) || (scales.count == 2 && bad_f16(scale + sizeof(uint16_t)))) {
            return int64_t(i);
        }
    }
    return -1;
}

// IQ1_M spreads its F16 scale over the top four bits of the four 16-bit words behind qs[32], qh[16].
int64_t first_iq1_m(const uint8_t * data, uint64_t n_blocks) {
    const uint64_t stride = ggml_type_size(GGML_TYPE_IQ1_M);
    for (uint64_t i = 0; i < n_blocks; ++i) {
        const uint8_t * words = data + i * stride + 48;
        uint32_t        scale = 0;
        for (uint32_t j = 0; j < 4; ++j) {
            scale |= uint32_t(load<uint16_t>(words + 2 * j) >> 12) << (4 * j);
        }
        if ((scale & f16_exponent) == f16_exponent) {
            return int64_t(i);
        }
    }
    return -1;
}

int64_t first_mxfp4(const uint8_t * data, uint64_t n_blocks) {
    const uint64_t stride = ggml_type_size(GGML_TYPE_MXFP4);
    for (uint64_t i = 0; i < n_blocks; ++i) {
        if (data[i * stride] == e8m0_nan) {
            return int64_t(i);
        }
    }
    return -1;
}

} // namespace

int64_t first_non_finite(ggml_type type, const uint8_t * data, uint64_t n_bytes) {
    const uint64_t n_blocks = n_bytes / ggml_type_size(type);
    switch (type) {
        case GGML_TYPE_F32:   return first_value<uint32_t>(data, n_blocks, f32_exponent);
        case GGML_TYPE_F16:   return first_value<uint16_t>(data, n_blocks, f16_exponent);
        case GGML_TYPE_BF16:  return first_value<uint16_t>(data, n_blocks, bf16_exponent);
        case GGML_TYPE_IQ1_M: return first_iq1_m(data, n_blocks);
        case GGML_TYPE_MXFP4: return first_mxfp4(data, n_blocks);
        case GGML_TYPE_NVFP4: return -1; // every byte is a finite scale to ggml
        default:              return first_scale(type, data, n_blocks);
    }
}

void check_finite(const gguf_file & file, const std::vector<std::string> & names) {
    for (const std::string & name : names) {
        const tensor_entry * info = file.find_tensor(name);
        if (info == nullptr) {
            file.fail_tensor(name, "is missing");
        }
        const int64_t i = first_non_finite(info->type, file.bytes(info->offset), info->n_bytes);
        if (i >= 0) {
            file.fail_tensor(
                name, cat("holds NaN or infinity, first in ", ggml_is_quantized(info->type) ? "block " : "value ", i));
        }
    }
}

} // namespace otter
