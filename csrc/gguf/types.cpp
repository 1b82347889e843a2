#include "gguf/types.h"

#include "gguf/checked.h"
#include "gguf/error.h"

namespace otter {

const char * value_type_name(uint32_t type) {
    return type < GGUF_TYPE_COUNT ? gguf_type_name(static_cast<gguf_type>(type)) : nullptr;
}

uint64_t value_type_size(gguf_type type) {
    switch (type) {
        case GGUF_TYPE_UINT8:
        case GGUF_TYPE_INT8:
        case GGUF_TYPE_BOOL:    return 1;
        case GGUF_TYPE_UINT16:
        case GGUF_TYPE_INT16:   return 2;
        case GGUF_TYPE_UINT32:
        case GGUF_TYPE_INT32:
        case GGUF_TYPE_FLOAT32: return 4;
        case GGUF_TYPE_UINT64:
        case GGUF_TYPE_INT64:
        case GGUF_TYPE_FLOAT64: return 8;
        default:                return 0;
    }
}

bool tensor_type_usable(uint32_t type) {
    switch (type) {
        case GGML_TYPE_F32:
        case GGML_TYPE_F16:
        case GGML_TYPE_BF16:
        case GGML_TYPE_Q1_0:
        case GGML_TYPE_Q2_0:
        case GGML_TYPE_Q4_0:
        case GGML_TYPE_Q4_1:
        case GGML_TYPE_Q5_0:
        case GGML_TYPE_Q5_1:
        case GGML_TYPE_Q8_0:
        case GGML_TYPE_Q2_K:
        case GGML_TYPE_Q3_K:
        case GGML_TYPE_Q4_K:
        case GGML_TYPE_Q5_K:
        case GGML_TYPE_Q6_K:
        case GGML_TYPE_IQ1_S:
        case GGML_TYPE_IQ1_M:
        case GGML_TYPE_IQ2_XXS:
        case GGML_TYPE_IQ2_XS:
        case GGML_TYPE_IQ2_S:
        case GGML_TYPE_IQ3_XXS:
        case GGML_TYPE_IQ3_S:
        case GGML_TYPE_IQ4_NL:
        case GGML_TYPE_IQ4_XS:
        case GGML_TYPE_TQ1_0:
        case GGML_TYPE_TQ2_0:
        case GGML_TYPE_MXFP4:
        case GGML_TYPE_NVFP4:   return true;
        default:                return false;
    }
}

std::string tensor_type_name(uint32_t type) {
    if (type >= GGML_TYPE_COUNT || ggml_blck_size(static_cast<ggml_type>(type)) == 0) {
        return cat("type ", type);
    }
    std::string name = ggml_type_name(static_cast<ggml_type>(type));
    for (char & c : name) {
        c = c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c;
    }
    return name;
}

std::optional<ggml_type> tensor_type_from_name(std::string_view name) {
    for (uint32_t type = 0; type < GGML_TYPE_COUNT; ++type) {
        if (tensor_type_usable(type) && tensor_type_name(type) == name) {
            return static_cast<ggml_type>(type);
        }
    }
    return std::nullopt;
}

std::string tensor_size_problem(ggml_type type, const uint64_t * ne, uint32_t n_dims, uint64_t * n_bytes) {
    const auto block_elements = static_cast<uint64_t>(ggml_blck_size(type));
    const auto block_bytes    = static_cast<uint64_t>(ggml_type_size(type));

    uint64_t n_elements = 1;
    for (uint32_t i = 0; i < n_dims; ++i) {
        if (ne[i] == 0) {
            return cat("shape ", shape_text(ne, n_dims), " has a dimension of 0");
        }
        if (!checked_mul(n_elements, ne[i], &n_elements) || n_elements > INT64_MAX) {
            return cat("shape ", shape_text(ne, n_dims), " has 2^63 elements or more");
        }
    }
    if (ne[0] % block_elements != 0) {
        return cat("rows of ", ne[0], " elements, expected a multiple of ", block_elements, " for ", tensor_type_name(type));
    }
    if (!checked_mul(n_elements / block_elements, block_bytes, n_bytes) || *n_bytes > INT64_MAX) {
        return cat("shape ", shape_text(ne, n_dims), " takes 2^63 bytes or more");
    }
    return "";
}

std::string shape_text(const uint64_t * ne, uint32_t n_dims) {
    std::string text = "[";
    for (uint32_t i = 0; i < n_dims; ++i) {
        text += cat(i == 0 ? "" : ", ", ne[i]);
    }
    return text + "]";
}

} // namespace otter
