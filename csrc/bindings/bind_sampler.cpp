// Sampler and functions of logits for Python. Arrays are 1-D.

#include "bindings.h"
#include "convert.h"

#include "json_schema/json_schema.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

#include <optional>

namespace py = pybind11;

namespace otter {

namespace {

using int_array   = py::array_t<int32_t, py::array::c_style>;
using float_array = py::array_t<float, py::array::c_style>;

using candidate_arrays = std::pair<int_array, float_array>;

uint32_t to_seed(int64_t seed) {
    return seed < 0 ? LLAMA_DEFAULT_SEED : uint32_t(seed);
}

std::unique_ptr<py_sampler> make_sampler(const py_model & owner, float temperature, int32_t top_k, float top_p, float min_p,
    float repeat_penalty, int32_t repeat_last_n, float frequency_penalty, float presence_penalty, int64_t seed,
    const std::vector<std::pair<int32_t, float>> & logit_bias, const std::string & grammar) {
    sampler_options options = { temperature, top_k, top_p, min_p, repeat_penalty, repeat_last_n, frequency_penalty,
        presence_penalty, to_seed(seed), {}, grammar, python_interrupts };
    for (const auto & [token, bias] : logit_bias) {
        options.logit_bias.push_back({ token, bias });
    }
    const auto model_owner = owner.get(); // shared: another thread may close the model meanwhile
    return unless_interrupted([&] {
        const gil_release release;
        return std::make_unique<py_sampler>(std::make_shared<sampler>(model_owner, options));
    });
}

int32_t checked_size(const py::array & values, const char * what) {
    if (values.ndim() != 1 || values.size() < 1 || values.size() > INT32_MAX) {
        throw config_error(std::string(what) + " must be a 1-D array of at least one value");
    }
    return int32_t(values.size());
}

void check_same_size(const py::array & values, const char * what, int32_t n) {
    if (checked_size(values, what) != n) {
        throw config_error(
            std::string(what) + " has " + std::to_string(values.size()) + " values, expected " + std::to_string(n));
    }
}

const float * checked_bonus(const std::optional<float_array> & bonus, int32_t n) {
    if (!bonus) {
        return nullptr;
    }
    check_same_size(*bonus, "bonus", n);
    return bonus->data();
}

const float * checked_row(const sampler & owner, const float_array & logits) {
    check_same_size(logits, "logits", llama_vocab_n_tokens(owner.owner->vocab()));
    return logits.data();
}

candidate_arrays to_arrays(const std::vector<candidate> & best) {
    int_array   tokens(py::ssize_t(best.size()));
    float_array logits(py::ssize_t(best.size()));
    for (size_t i = 0; i < best.size(); ++i) {
        tokens.mutable_data()[i] = best[i].first;
        logits.mutable_data()[i] = best[i].second;
    }
    return { tokens, logits };
}

llama_token sample(const py_sampler & self, const float_array & logits) {
    const auto    chains = self.get();
    const float * row    = checked_row(*chains, logits);
    return unless_interrupted([&] {
        const gil_release release;
        return chains->sample(row);
    });
}

candidate_arrays candidates(
    const py_sampler & self, const float_array & logits, int32_t k, const std::optional<float_array> & bonus) {
    const auto    chains = self.get();
    const float * row    = checked_row(*chains, logits);
    const float * extra  = checked_bonus(bonus, int32_t(logits.size()));

    return to_arrays(unless_interrupted([&] {
        const gil_release release;
        return chains->candidates(row, extra, k);
    }));
}

int32_t choose(const py_sampler & self, const int_array & tokens, const float_array & scores) {
    const int32_t n = checked_size(tokens, "tokens");
    check_same_size(scores, "scores", n);
    return self.get()->choose(scores.data(), n);
}

candidate_arrays top_k(const float_array & logits, int32_t k, const std::optional<float_array> & bonus) {
    const int32_t n     = checked_size(logits, "logits");
    const float * extra = checked_bonus(bonus, n);
    check_k(k, n);

    std::vector<candidate> best;
    {
        const gil_release release;
        best = best_tokens(logits.data(), extra, n, k);
    }
    if (best.empty()) {
        throw config_error("no token is left: all logits are minus infinity");
    }
    return to_arrays(best);
}

template <double (*function)(const float *, int32_t)>
double of_row(const float_array & logits) {
    const int32_t     n      = checked_size(logits, "logits");
    const float *     values = logits.data();
    const gil_release release;
    return function(values, n);
}

void define_sampler(py::module_ & module) {
    py::class_<sampler_state>(module, "SamplerState");

    py::class_<py_sampler>(module, "Sampler")
        .def(py::init(&make_sampler), py::arg("model"), py::kw_only(), py::arg("temperature"), py::arg("top_k"),
            py::arg("top_p"), py::arg("min_p"), py::arg("repeat_penalty"), py::arg("repeat_last_n"),
            py::arg("frequency_penalty"), py::arg("presence_penalty"), py::arg("seed"), py::arg("logit_bias"),
            py::arg("grammar"))
        .def_property_readonly("has_history", [](const py_sampler & self) { return self.get()->has_history(); })
        .def("sample", &sample, py::arg("logits"))
        .def("candidates", &candidates, py::arg("logits"), py::arg("k"), py::arg("bonus") = py::none())
        .def("choose", &choose, py::arg("tokens"), py::arg("scores"))
        .def(
            "accept",
            [](const py_sampler & self, llama_token token, bool prompt) {
                const auto chains = self.get();
                unless_interrupted([&] {
                    const gil_release release;
                    chains->accept(token, prompt);
                });
            },
            py::arg("token"), py::kw_only(), py::arg("prompt") = false)
        .def("save", [](const py_sampler & self) { return self.get()->save(); })
        .def(
            "restore", [](const py_sampler & self, const sampler_state & state) { self.get()->restore(state); },
            py::arg("state"))
        .def(
            "clone",
            [](const py_sampler & self, int64_t seed) {
                return std::make_unique<py_sampler>(self.get()->clone(to_seed(seed)));
            },
            py::arg("seed"))
        .def("reset", [](const py_sampler & self) { unless_interrupted([&] { self.get()->reset(); }); });
}

} // namespace

void register_sampler(py::module_ & module) {
    define_sampler(module);
    module.def("log_sum_exp", &of_row<log_sum_exp>, py::arg("logits"));
    module.def("entropy", &of_row<entropy>, py::arg("logits"));
    module.def("top_k", &top_k, py::arg("logits"), py::arg("k"), py::arg("bonus") = py::none());
    module.def(
        "json_schema_to_grammar",
        [](const std::string & schema) {
            return unless_interrupted([&] {
                const gil_release release;
                return json_schema_to_grammar(schema, python_interrupts);
            });
        },
        py::arg("schema"));
}

} // namespace otter
