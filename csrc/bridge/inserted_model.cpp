// Each supported architecture is llama.cpp's own model class with three virtual functions extended.

#include "inserted_graph.h"

#include "gguf/error.h"

#include "ggml-cpp.h"
#include "gguf.h"
#include "llama-ext.h"
#include "llama-model-loader.h"
#include "models/models.h"

#include <algorithm>
#include <cstdint>
#include <memory>
#include <stdexcept>

namespace otter {

namespace {

template <class base_class>
class inserted_model final : public base_class {
public:
    inserted_model(const llama_model_params & load_params, const insertion_spec & spec, feature_set features) :
        base_class(load_params),
        part(spec, features) {}

    void load_arch_hparams(llama_model_loader & loader) override {
        base_class::load_arch_hparams(loader);
        part.extend_hparams(this->hparams);
    }

    void load_arch_tensors(llama_model_loader & loader) override {
        const uint32_t n_layer_all = this->hparams.n_layer_all;

        this->hparams.n_layer_all = uint32_t(part.n_layer);
        base_class::load_arch_tensors(loader);
        this->hparams.n_layer_all = n_layer_all;

        part.create_tensors(*this, loader);
    }

    std::unique_ptr<llm_graph_context> build_arch_graph(const llm_graph_params & graph_params) const override {
        inserted_graph inserted(*this, part, graph_params);

        // the base's graph is built for the base's layers; the KV cache was made for all
        llm_graph_params base_params    = graph_params;
        base_params.hparams.n_layer_all = uint32_t(part.n_layer);
        if (mode_of(graph_params.cparams) == reward_mode::all) {
            base_params.n_outputs = graph_params.ubatch.n_tokens;
        }
        base_params.cb = [&](const llama_ubatch & ubatch, ggml_tensor * cur, const char * tensor_name, int il) {
            graph_params.cb(ubatch, cur, tensor_name, il);
            inserted.tap(cur, tensor_name, il);
        };
        base_class::build_arch_graph(base_params);
        inserted.finish();

        // llama.cpp goes on with a builder over the parameters it gave, which also decide on reuse of the graph
        return std::make_unique<llm_graph_context>(graph_params);
    }

private:
    inserted_part part;
};

template <class base_class>
std::unique_ptr<llama_model_base> create(const llama_model_params & params, const insertion_spec & spec, feature_set features) {
    return std::make_unique<inserted_model<base_class>>(params, spec, features);
}

#define OTTER_MODEL(name, class_name, features) { name, create<llama_model_##class_name>, { features } },
constexpr struct {
    const char *                         name;
    decltype(&create<llama_model_llama>) create;
    feature_set                          features;
} architectures[] = { OTTER_ARCHITECTURES(OTTER_MODEL) };
#undef OTTER_MODEL

std::unique_ptr<llama_model_base> create_inserted_model(
    llm_arch arch, const llama_model_params & params, const insertion_spec & spec) {
    for (const auto & known : architectures) {
        if (llm_arch_from_string(known.name) == arch) {
            auto model  = known.create(params, spec, known.features);
            model->arch = arch;
            return model;
        }
    }
    throw otter_error(error_kind::unsupported,
        std::string("architecture '") + llm_arch_name(arch) +
            "' cannot be widened; otter-gguf info --architectures lists those that can");
}

// Let the loader see the sidecar as one more file of the model, as it does with the shards of a split model.
void append_sidecar(llama_model_loader & ml, const std::string & path) {
    ggml_context *         ctx = nullptr;
    const gguf_context_ptr gguf { gguf_init_from_file(path.c_str(), { /*.no_alloc =*/true, /*.ctx =*/&ctx }) };
    if (!gguf) {
        throw std::runtime_error("cannot read " + path);
    }
    ml.files.emplace_back(new llama_file(path.c_str(), "rb", ml.use_direct_io));
    ml.contexts.emplace_back(ctx);

    const auto idx = uint16_t(ml.files.size() - 1);
    for (ggml_tensor * cur = ggml_get_first_tensor(ctx); cur != nullptr; cur = ggml_get_next_tensor(ctx, cur)) {
        if (ml.weights_map.count(cur->name) > 0) {
            throw std::runtime_error(std::string("tensor ") + cur->name + " stands in the base and in the sidecar");
        }
        ml.n_elements += uint64_t(ggml_nelements(cur));
        ml.n_bytes += ggml_nbytes(cur);
        ml.size_data += ggml_nbytes(cur);
        ml.n_tensors += 1;
        ml.weights_map.emplace(cur->name, llama_model_loader::llama_tensor_weight(ml.files.back().get(), idx, gguf.get(), cur));
    }
}

// The devices that llama.cpp itself would choose: read off a vocabulary-only model without a vocabulary.
std::vector<llama_device> choose_devices(llama_model_params params) {
    const gguf_context_ptr metadata { gguf_init_empty() };
    gguf_set_val_str(metadata.get(), "general.architecture", "llama");
    gguf_set_val_str(metadata.get(), "tokenizer.ggml.model", "none");

    params.vocab_only        = true;
    params.progress_callback = nullptr;

    const std::unique_ptr<llama_model, decltype(&llama_model_free)> probe(
        llama_model_init_from_user(metadata.get(), nullptr, nullptr, params), llama_model_free);
    if (!probe) {
        throw std::runtime_error("no usable device");
    }
    return probe->devices;
}

// llama.cpp counts the inserted cache layers as layers: keep the split between CPU and GPU where the user put it.
int32_t extended_gpu_layers(int32_t n_gpu_layers, const insertion_spec & spec) {
    const int64_t extended = int64_t(n_gpu_layers) + spec.n_cache_layers();
    return n_gpu_layers > 0 ? int32_t(std::min<int64_t>(extended, INT32_MAX)) : n_gpu_layers;
}

} // namespace

llama_model * load_inserted_model(
    const std::string & path, const std::string & sidecar, const insertion_spec & spec, llama_model_params params) {
    std::vector<std::string> splits;
    llama_model_loader       ml(nullptr, nullptr, nullptr, path, splits, nullptr, params.load_mode, params.check_tensors,
        params.no_alloc, params.load_mtp, params.kv_overrides, params.tensor_buft_overrides);
    ml.lazy.mode = params.lazy_mode;
    if (!sidecar.empty()) {
        append_sidecar(ml, sidecar);
    }

    params.n_gpu_layers = extended_gpu_layers(params.n_gpu_layers, spec);

    auto model                = create_inserted_model(ml.get_arch(), params, spec);
    model->devices            = choose_devices(params);
    model->hparams.vocab_only = params.vocab_only;
    model->hparams.no_alloc   = params.no_alloc;
    model->load_hparams(ml);
    model->load_vocab(ml);
    model->load_stats(ml);
    model->print_info();
    if (!params.vocab_only && !model->load_tensors(ml)) {
        throw std::runtime_error("loading was cancelled");
    }
    return model.release();
}

void set_reward_mode(llama_context * ctx, reward_mode mode) {
    llama_set_embeddings_nextn(ctx, mode != reward_mode::off, mode == reward_mode::marked);
}

const float * reward_rows(llama_context * ctx) {
    return llama_get_embeddings_nextn(ctx);
}

int32_t base_n_layer(const llama_model * model, const insertion_spec & spec) {
    return llama_model_n_layer(model) - spec.n_cache_layers();
}

} // namespace otter
