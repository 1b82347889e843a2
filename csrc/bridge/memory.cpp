#include "bridge/memory.h"

#include "llama-context.h"
#include "llama-model.h"

#include <cstdint>
#include <cstdlib>

namespace otter {

bool can_shift(llama_context * ctx, ggml_type type_k) {
    const char * off   = std::getenv("LLAMA_ATTN_ROT_DISABLE");
    const bool   mixed = (off == nullptr || std::atoi(off) == 0) && ctx->get_model().hparams.n_embd_head_k() % 64 == 0;
    return llama_memory_can_shift(llama_get_memory(ctx)) && (mixed || !ggml_is_quantized(type_k)) &&
        ctx->get_model().hparams.rope_type != LLAMA_ROPE_TYPE_NONE;
}

int32_t n_learned_positions(const llama_model * model) {
    return model->pos_embd == nullptr ? INT32_MAX : int32_t(model->pos_embd->ne[1]);
}

void apply_shift(llama_context * ctx) {
    ctx->memory_update(false);
    ctx->synchronize();
}

} // namespace otter
