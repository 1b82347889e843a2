#include "repacked.h"

#include "ggml-backend.h"
#include "ggml-cpu.h"
#include "ggml-cpu/repack.h"

#include <cstring>

namespace otter {

bool is_repacked(const ggml_tensor * weight) {
    return weight->type == GGML_TYPE_Q4_0 && weight->ne[1] % repacked_group == 0 && ggml_cpu_has_avx2() &&
        weight->buffer != nullptr && strcmp(ggml_backend_buffer_name(weight->buffer), "CPU_REPACK") == 0;
}

void repacked_product(const ggml_tensor * weight, int64_t begin, int64_t end, const void * input, float * out) {
    if (begin < end) {
        ggml_gemv_q4_0_8x8_q8_0(int(weight->ne[0]), out, size_t(weight->ne[1]),
            (const char *) weight->data + size_t(begin) * weight->nb[1], input, 1, int(end - begin));
    }
}

} // namespace otter
