// Saving and restoring a sequence of the KV cache.

#include "context.h"

#include "fail.h"
#include "log.h"
#include "saved_state.h"

#include <algorithm>

namespace otter {

std::string saved_geometry(const model & owner, ggml_type type_k, ggml_type type_v) {
    const llama_model * handle = owner.get();

    std::string text = OTTER_LLAMA_CPP_COMMIT + std::string(" ") + owner.description();
    const auto  add  = [&text](uint64_t number) { text += " " + std::to_string(number); };
    add(llama_model_n_params(handle));
    add(llama_model_size(handle));
    add(uint64_t(llama_vocab_n_tokens(owner.vocab())));
    add(uint64_t(type_k));
    add(uint64_t(type_v));
    if (owner.inserted) {
        const auto & spec = owner.inserted->spec;
        add(uint64_t(spec.width));
        add(uint64_t(spec.state_table));
        add(uint64_t(spec.state_offset));
        std::for_each(spec.n_head_kv.begin(), spec.n_head_kv.end(), add);
        std::for_each(spec.n_ff.begin(), spec.n_ff.end(), add);
    }
    return text;
}

std::vector<uint8_t> context::save_sequence(int32_t sequence) {
    const exclusive claimed = claim();
    check_sequence(sequence);
    const log_errors     errors;
    std::vector<uint8_t> data(state_header_size + llama_state_seq_get_size(get(), sequence));
    const size_t         size = data.size() - state_header_size;
    if (size == 0 || llama_state_seq_get_data(get(), data.data() + state_header_size, size, sequence) != size) {
        throw engine_error("llama.cpp cannot save sequence " + std::to_string(sequence) + ": " + errors.text());
    }
    write_state_header(data, geometry);
    return data;
}

void context::load_sequence(const uint8_t * data, size_t size, int32_t sequence) {
    const exclusive claimed = claim();
    check_sequence(sequence);
    const auto memory = llama_get_memory(get());
    llama_memory_seq_rm(memory, sequence, -1, -1);
    note_if_empty(sequence);
    check_state_header(data, size, geometry);

    const log_errors errors;
    size -= state_header_size;
    const size_t n_read = llama_state_seq_set_data(get(), data + state_header_size, size, sequence);
    if (n_read == size && llama_memory_seq_pos_max(memory, sequence) < int32_t(llama_n_ctx(get()))) {
        return;
    }
    llama_memory_seq_rm(memory, sequence, -1, -1);
    const std::string log = errors.text();
    if (n_read == size || log.find("cells in kv cache") != std::string::npos) {
        throw context_full_error("the context of " + std::to_string(llama_n_ctx(get())) +
            " tokens has no room for the saved sequence: raise n_ctx (-c)");
    }
    throw config_error("llama.cpp cannot load the saved state: " + log);
}

} // namespace otter
