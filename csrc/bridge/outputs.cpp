#include "bridge/outputs.h"

#include "llama-context.h"
#include "llama-model.h"

#include <algorithm>

namespace otter {

// llama_context::buf_output is private, and access is not checked where a template is instantiated explicitly.
template <ggml_backend_buffer_ptr llama_context::* member>
struct private_member {
    friend ggml_backend_buffer_ptr & output_memory(llama_context & ctx) { return ctx.*member; }
};
template struct private_member<&llama_context::buf_output>;
ggml_backend_buffer_ptr & output_memory(llama_context & ctx);

// As llama_context::output_reserve counts.
static size_t output_bytes(const llama_context & ctx, int32_t n_outputs, reward_mode mode) {
    const auto & model  = ctx.get_model();
    const size_t n_rows = std::max(size_t(n_outputs), size_t(ctx.n_seq_max()));

    size_t n_values = model.vocab.n_tokens() * n_rows;
    if (mode != reward_mode::off) {
        n_values += model.hparams.n_embd_out() * (mode == reward_mode::all ? size_t(ctx.n_batch()) : n_rows);
    }
    return n_values * sizeof(float);
}

std::shared_ptr<void> take_outputs(llama_context * ctx, int32_t n_outputs, reward_mode mode) {
    auto & memory = output_memory(*ctx);
    if (!memory || ggml_backend_buffer_get_size(memory.get()) >= output_bytes(*ctx, n_outputs, mode)) {
        return nullptr;
    }
    ctx->synchronize();
    return std::make_shared<ggml_backend_buffer_ptr>(std::move(memory)); // where there is none, llama.cpp takes a new one
}

} // namespace otter
