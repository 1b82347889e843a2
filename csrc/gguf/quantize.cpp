#include "gguf/quantize.h"

#include "gguf/error.h"
#include "gguf/finite.h"

#include <cstring>

namespace otter {

ggml_type parse_tensor_type(const std::string & name) {
    const auto type = tensor_type_from_name(name);
    if (!type) {
        throw otter_error(error_kind::file,
            cat("tensor type ", quoted(name),
                " is unknown or cannot be computed with, expected a name such as F32, F16, Q8_0 or Q4_K"));
    }
    return *type;
}

uint64_t tensor_nbytes(const std::string & type, const std::vector<uint64_t> & shape) {
    const ggml_type parsed = parse_tensor_type(type);
    if (shape.empty() || shape.size() > GGML_MAX_DIMS) {
        throw otter_error(error_kind::file, cat("tensor of ", shape.size(), " dimensions, expected 1 to ", GGML_MAX_DIMS));
    }
    uint64_t          n_bytes = 0;
    const std::string problem = tensor_size_problem(parsed, shape.data(), uint32_t(shape.size()), &n_bytes);
    if (!problem.empty()) {
        throw otter_error(error_kind::file, cat("tensor of type ", type, ": ", problem));
    }
    return n_bytes;
}

std::vector<uint8_t> quantize_rows(ggml_type type, const float * values, uint64_t n_rows, uint64_t n_columns) {
    const std::string name = tensor_type_name(type);
    if (ggml_quantize_requires_imatrix(type)) {
        throw otter_error(error_kind::config, cat("type ", name, " needs an importance matrix, choose another one"));
    }
    std::vector<uint8_t> out(tensor_nbytes(name, { n_columns, n_rows }));

    // some quantizers abort on NaN
    const uint64_t n_values = n_rows * n_columns; // fits: tensor_nbytes has multiplied them
    const int64_t  bad = first_non_finite(GGML_TYPE_F32, reinterpret_cast<const uint8_t *>(values), n_values * sizeof(float));
    if (bad >= 0) {
        throw otter_error(error_kind::file,
            cat("value in row ", uint64_t(bad) / n_columns, ", column ", uint64_t(bad) % n_columns,
                " is NaN or infinite and cannot become ", name));
    }
    ggml_quantize_chunk(type, values, out.data(), 0, int64_t(n_rows), int64_t(n_columns), nullptr);

    const int64_t overflow = first_non_finite(type, out.data(), out.size());
    if (overflow >= 0) {
        const uint64_t first = uint64_t(overflow) * uint64_t(ggml_blck_size(type));
        throw otter_error(error_kind::file,
            cat("values in row ", first / n_columns, " near column ", first % n_columns, " are too large for ", name));
    }
    return out;
}

void dequantize_rows(ggml_type type, const uint8_t * data, uint64_t n_rows, uint64_t n_columns, float * values) {
    const size_t row_bytes = ggml_row_size(type, int64_t(n_columns));
    if (type == GGML_TYPE_F32) {
        std::memcpy(values, data, row_bytes * n_rows);
        return;
    }
    const ggml_to_float_t to_float = ggml_get_type_traits(type)->to_float;
    std::vector<uint8_t>  row(row_bytes); // ggml reads blocks at their alignment, the caller's bytes may have none
    for (uint64_t i = 0; i < n_rows; ++i) {
        std::memcpy(row.data(), data + i * row_bytes, row_bytes);
        to_float(row.data(), values + i * n_columns, int64_t(n_columns));
    }
}

} // namespace otter
