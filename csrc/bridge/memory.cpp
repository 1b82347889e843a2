#include "bridge/memory.h"

#include "llama-context.h"
#include "llama-kv-cache-iswa.h"
#include "llama-model.h"

#include "engine/fail.h"

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <string>

namespace otter {

// llama.cpp keeps layers with a window apart from the others, and reads through a null pointer where there are no others.
static bool only_windows(const llama_hparams & hparams) {
    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        if (!hparams.is_swa(il)) {
            return false;
        }
    }
    return hparams.swa_type != LLAMA_SWA_TYPE_NONE;
}

void check_cache_types(const llama_model * model, ggml_type type_k, ggml_type type_v) {
    const auto check = [](const char * option, ggml_type type, const char * what, uint32_t n_embd_head) {
        if (n_embd_head % uint32_t(ggml_blck_size(type)) != 0) {
            throw config_error(std::string(option) + " is " + ggml_type_name(type) + ", in blocks of " +
                std::to_string(ggml_blck_size(type)) + " values; this model's " + what + " of " + std::to_string(n_embd_head) +
                " are no whole blocks: expected f16, bf16 or f32");
        }
    };
    const auto & hparams = model->hparams;
    for (uint32_t il = 0; il < hparams.n_layer_all; ++il) {
        check("type_k", type_k, "keys", hparams.n_embd_head_k(il));
        check("type_v", type_v, "values", hparams.n_embd_head_v(il));
    }
}

// How llama.cpp rotates keys where they lie: as they are, or quantized ones through F32, in the mixed form alone.
static bool can_rotate(const llama_hparams & hparams, ggml_type type_k) {
    if (!ggml_is_quantized(type_k)) {
        return type_k == GGML_TYPE_F32 || type_k == GGML_TYPE_F16;
    }
    const char * off = std::getenv("LLAMA_ATTN_ROT_DISABLE");
    return (off == nullptr || std::atoi(off) == 0) && hparams.n_embd_head_k() % 64 == 0;
}

bool can_shift(llama_context * ctx, ggml_type type_k) {
    const auto & hparams = ctx->get_model().hparams;
    return llama_memory_can_shift(llama_get_memory(ctx)) && can_rotate(hparams, type_k) &&
        hparams.rope_type != LLAMA_ROPE_TYPE_NONE && !only_windows(hparams);
}

int32_t n_learned_positions(const llama_model * model) {
    return model->pos_embd == nullptr ? INT32_MAX : int32_t(model->pos_embd->ne[1]);
}

bool window_lost(llama_context * ctx, llama_seq_id sequence, llama_pos begin) {
    const auto * cache = dynamic_cast<const llama_kv_cache_iswa *>(llama_get_memory(ctx));
    if (cache == nullptr) {
        return false;
    }
    const llama_pos first = begin - llama_pos(ctx->get_model().hparams.n_swa) + 1;
    return cache->get_swa()->seq_pos_min(sequence) > std::max(first, cache->get_base()->seq_pos_min(sequence));
}

void apply_shift(llama_context * ctx) {
    ctx->memory_update(false);
    ctx->synchronize();
}

} // namespace otter
