// Context for Python. Shapes are (rows, columns), C order.

#include "bindings.h"
#include "convert.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <algorithm>

namespace py = pybind11;

namespace otter {

namespace {

using int_array   = py::array_t<int32_t, py::array::c_style>;
using bool_array  = py::array_t<bool, py::array::c_style>;
using float_array = py::array_t<float, py::array::c_style>;

ggml_type to_cache_type(const std::string & name) {
    static const std::pair<const char *, ggml_type> choices[] = {
        { "f32", GGML_TYPE_F32 },
        { "f16", GGML_TYPE_F16 },
        { "bf16", GGML_TYPE_BF16 },
        { "q8_0", GGML_TYPE_Q8_0 },
        { "q5_1", GGML_TYPE_Q5_1 },
        { "q5_0", GGML_TYPE_Q5_0 },
        { "q4_1", GGML_TYPE_Q4_1 },
        { "q4_0", GGML_TYPE_Q4_0 },
        { "iq4_nl", GGML_TYPE_IQ4_NL },
    };
    return by_name("cache type", name, choices);
}

llama_flash_attn_type to_flash_attn(const std::string & name) {
    static const std::pair<const char *, llama_flash_attn_type> choices[] = {
        { "auto", LLAMA_FLASH_ATTN_TYPE_AUTO },
        { "on", LLAMA_FLASH_ATTN_TYPE_ENABLED },
        { "off", LLAMA_FLASH_ATTN_TYPE_DISABLED },
    };
    return by_name("flash_attn", name, choices);
}

std::unique_ptr<py_context> make_context(const py_model & owner, uint32_t n_ctx, uint32_t n_batch, uint32_t n_ubatch,
    uint32_t n_seq_max, uint32_t n_outputs_max, int32_t n_threads, int32_t n_threads_batch, const std::string & type_k,
    const std::string & type_v, const std::string & flash_attn, bool offload_kqv, bool rewards) {
    context_options options;
    options.n_ctx                 = n_ctx;
    options.n_batch               = n_batch;
    options.n_ubatch              = n_ubatch;
    options.n_seq_max             = n_seq_max;
    options.n_outputs_max         = n_outputs_max;
    options.n_threads             = n_threads;
    options.n_threads_batch       = n_threads_batch;
    options.type_k                = to_cache_type(type_k);
    options.type_v                = to_cache_type(type_v);
    options.flash_attn            = to_flash_attn(flash_attn);
    options.offload_kqv           = offload_kqv;
    options.rewards               = rewards;
    options.interrupted           = python_interrupts;
    const auto        model_owner = owner.get(); // shared: another thread may close the model meanwhile
    const gil_release release;
    return std::make_unique<py_context>(std::make_shared<context>(model_owner, options));
}

int32_t checked_length(const int_array & tokens) {
    if (tokens.ndim() != 1 || tokens.size() > INT32_MAX) {
        throw config_error("tokens must be a 1-D array of int32");
    }
    return int32_t(tokens.size());
}

int32_t checked_length(const int_array & tokens, std::initializer_list<const py::array *> others) {
    const int32_t n = checked_length(tokens);
    for (const py::array * other : others) {
        if (other->ndim() != 1 || other->size() != n) {
            throw config_error("tokens, positions, sequences and outputs must be 1-D arrays of one length");
        }
    }
    return n;
}

void decode(const py_context & self, const int_array & tokens, const int_array & positions, const int_array & sequences,
    const bool_array & outputs, bool rewards) {
    const int32_t     n     = checked_length(tokens, { &positions, &sequences, &outputs });
    const token_batch batch = { tokens.data(), positions.data(), sequences.data(), outputs.data(), n };
    const auto        ctx   = self.get();
    unless_interrupted([&] {
        const gil_release release;
        ctx->decode(batch, rewards);
    });
}

float_array matrix(size_t n_rows, size_t n_columns) {
    return float_array(std::vector<py::ssize_t> { py::ssize_t(n_rows), py::ssize_t(n_columns) });
}

float_array to_array(const std::vector<float> & values, size_t n_columns) {
    float_array result = matrix(n_columns == 0 ? 0 : values.size() / n_columns, n_columns);
    std::copy(values.begin(), values.end(), result.mutable_data());
    return result;
}

float_array decode_rewards(
    const py_context & self, const int_array & tokens, const int_array & positions, const int_array & sequences) {
    const int32_t     n     = checked_length(tokens, { &positions, &sequences });
    const token_batch batch = { tokens.data(), positions.data(), sequences.data(), nullptr, n };
    const auto        ctx   = self.get();

    const auto rewards = unless_interrupted([&] {
        const gil_release release;
        return ctx->decode_rewards(batch);
    });
    return to_array(rewards, size_t(ctx->owner->n_rewards()));
}

float_array score(const py_context & self, const int_array & tokens, int32_t sequence, int32_t position) {
    const int32_t n   = checked_length(tokens);
    const auto    ctx = self.get();

    const auto rewards = unless_interrupted([&] {
        const gil_release release;
        return ctx->score(tokens.data(), n, sequence, position);
    });
    return to_array(rewards, size_t(ctx->owner->n_rewards()));
}

float_array log_probabilities(const py_context & self, const int_array & tokens, int32_t sequence, int32_t position) {
    const int32_t n   = checked_length(tokens);
    const auto    ctx = self.get();

    const auto result = unless_interrupted([&] {
        const gil_release release;
        return ctx->log_probabilities(tokens.data(), n, sequence, position);
    });
    return float_array(py::ssize_t(result.size()), result.data());
}

void sequence_shift(const py_context & self, int32_t sequence, int32_t begin, int32_t end, int32_t delta) {
    const auto        ctx = self.get();
    const gil_release release;
    ctx->sequence_shift(sequence, begin, end, delta);
}

py::bytes save_state(const py_context & self, int32_t sequence) {
    const auto ctx = self.get();

    std::vector<uint8_t> data;
    {
        const gil_release release;
        data = ctx->save_sequence(sequence);
    }
    return py::bytes(reinterpret_cast<const char *>(data.data()), data.size());
}

size_t load_state(const py_context & self, const py::bytes & data, int32_t sequence) {
    const auto             ctx   = self.get();
    const std::string_view bytes = data;
    const gil_release      release;
    ctx->load_sequence(reinterpret_cast<const uint8_t *>(bytes.data()), bytes.size(), sequence);
    return bytes.size();
}

// A view, which holds the memory that it reads, and the context with it.
py::array logits(const py::object & self) {
    const auto & ctx     = self.cast<const py_context &>().get();
    const auto   claimed = ctx->claim();

    const int32_t n_rows  = ctx->n_outputs();
    const int32_t n_vocab = llama_vocab_n_tokens(ctx->owner->vocab());
    if (n_rows == 0) {
        return matrix(0, size_t(n_vocab));
    }
    using holder                 = std::shared_ptr<const void>;
    auto * const      keep_alive = new holder(ctx->view());
    const py::capsule owner(keep_alive, [](void * p) { delete static_cast<holder *>(p); });

    py::array result = float_array(std::vector<py::ssize_t> { n_rows, n_vocab }, ctx->logits(), owner);
    py::detail::array_proxy(result.ptr())->flags &= ~py::detail::npy_api::NPY_ARRAY_WRITEABLE_;
    return result;
}

std::pair<float_array, float_array> hidden_states(const py_context & self) {
    const auto   held    = self.get();
    const auto & ctx     = *held;
    const auto & owner   = *ctx.owner;
    const auto   claimed = ctx.claim();
    if (!owner.inserted || !owner.inserted->spec.hidden_states || (ctx.n_outputs() > 0 && ctx.rows() == nullptr)) {
        throw config_error("no hidden states: open the model with hidden_states=True and decode with rewards");
    }
    const size_t n   = size_t(ctx.n_outputs());
    const size_t d   = size_t(llama_model_n_embd(owner.get()));
    const size_t row = size_t(owner.row_size());
    const size_t n_h = size_t(owner.inserted->spec.n_head_outputs());
    const size_t e   = row - d - n_h;

    float_array base     = matrix(n, d);
    float_array inserted = matrix(n, e);
    for (size_t i = 0; i < n; ++i) {
        const float * source = ctx.rows() + i * row + n_h;
        std::copy(source, source + e, inserted.mutable_data() + i * e);
        std::copy(source + e, source + e + d, base.mutable_data() + i * d);
    }
    return { base, inserted };
}

float_array queries(const py_context & self, int32_t head) {
    const auto ctx = self.get();
    return to_array(ctx->queries(head), size_t(ctx->owner->vocabulary(head).rank()) + 1);
}

float_array vocabulary_scores(const py_context & self, int32_t head, int32_t row, const std::optional<int_array> & candidates) {
    const int32_t   n      = candidates ? checked_length(*candidates) : 0;
    const int32_t * tokens = candidates ? candidates->data() : nullptr;
    const auto      ctx    = self.get();

    std::vector<float> scores;
    {
        const gil_release release;
        scores = ctx->vocabulary_scores(head, row, tokens, n);
    }
    return float_array(py::ssize_t(scores.size()), scores.data());
}

std::pair<int_array, float_array> top_k(const py_context & self, int32_t row, int32_t k) {
    const auto best = self.get()->top_k(row, k);

    int_array   tokens(py::ssize_t(best.size()));
    float_array logits(py::ssize_t(best.size()));
    for (size_t i = 0; i < best.size(); ++i) {
        tokens.mutable_data()[i] = best[i].first;
        logits.mutable_data()[i] = best[i].second;
    }
    return { tokens, logits };
}

} // namespace

void register_context(py::module_ & module) {
    const auto            native = [](const py_context & self) { return self.get()->get(); };
    const context_options defaults;

    py::class_<py_context>(module, "Context")
        .def(py::init(&make_context), py::arg("model"), py::kw_only(), py::arg("n_ctx") = defaults.n_ctx,
            py::arg("n_batch") = defaults.n_batch, py::arg("n_ubatch") = defaults.n_ubatch,
            py::arg("n_seq_max") = defaults.n_seq_max, py::arg("n_outputs_max") = defaults.n_outputs_max,
            py::arg("n_threads") = defaults.n_threads, py::arg("n_threads_batch") = defaults.n_threads_batch,
            py::arg("type_k") = "f16", py::arg("type_v") = "f16", py::arg("flash_attn") = "auto",
            py::arg("offload_kqv") = defaults.offload_kqv, py::arg("rewards") = defaults.rewards)
        .def_property_readonly("n_ctx", [=](const py_context & self) { return llama_n_ctx(native(self)); })
        .def_property_readonly("n_batch", [=](const py_context & self) { return llama_n_batch(native(self)); })
        .def_property_readonly("n_ubatch", [=](const py_context & self) { return llama_n_ubatch(native(self)); })
        .def_property_readonly("n_seq_max", [=](const py_context & self) { return llama_n_seq_max(native(self)); })
        .def("decode", &decode, py::arg("tokens"), py::arg("positions"), py::arg("sequences"), py::arg("outputs"),
            py::kw_only(), py::arg("rewards") = true)
        .def("decode_rewards", &decode_rewards, py::arg("tokens"), py::arg("positions"), py::arg("sequences"))
        .def("logits", &logits)
        .def("rewards",
            [](const py_context & self) { return to_array(self.get()->rewards(), size_t(self.get()->owner->n_rewards())); })
        .def("hidden_states", &hidden_states)
        .def("queries", &queries, py::arg("head"))
        .def("vocabulary_scores", &vocabulary_scores, py::arg("head"), py::arg("row"), py::arg("candidates") = py::none())
        .def("score", &score, py::arg("tokens"), py::kw_only(), py::arg("sequence") = 0, py::arg("position") = 0)
        .def("log_probabilities", &log_probabilities, py::arg("tokens"), py::kw_only(), py::arg("sequence") = 0,
            py::arg("position") = 0)
        .def(
            "sequence_copy",
            [](const py_context & self, int32_t source, int32_t target, int32_t begin, int32_t end) {
                self.get()->sequence_copy(source, target, begin, end);
            },
            py::arg("source"), py::arg("target"), py::arg("begin") = -1, py::arg("end") = -1)
        .def(
            "sequence_remove",
            [](const py_context & self, int32_t sequence, int32_t begin, int32_t end) {
                return self.get()->sequence_remove(sequence, begin, end);
            },
            py::arg("sequence"), py::arg("begin") = -1, py::arg("end") = -1)
        .def(
            "sequence_keep", [](const py_context & self, int32_t sequence) { self.get()->sequence_keep(sequence); },
            py::arg("sequence"))
        .def(
            "sequence_max_position",
            [](const py_context & self, int32_t sequence) { return self.get()->sequence_max_position(sequence); },
            py::arg("sequence"))
        .def_property_readonly("can_shift", [](const py_context & self) { return self.get()->can_shift(); })
        .def("sequence_shift", &sequence_shift, py::arg("sequence"), py::arg("begin"), py::arg("end"), py::arg("delta"))
        .def("state", &save_state, py::arg("sequence") = 0)
        .def("load_state", &load_state, py::arg("data"), py::arg("sequence") = 0)
        .def("clear", [](const py_context & self) { self.get()->clear(); })
        .def("top_k", &top_k, py::arg("row"), py::arg("k"))
        .def("timing",
            [](const py_context & self) {
                py::dict result;
                result["seconds"] = self.get()->seconds;
                result["calls"]   = self.get()->n_calls;
                result["tokens"]  = self.get()->n_fed;
                return result;
            })
        .def("close", &py_context::close);
}

} // namespace otter
