// Sampler for Python.

#include "bindings.h"
#include "convert.h"

namespace py = pybind11;

namespace otter {

namespace {

std::unique_ptr<py_sampler> make_sampler(const py_model & owner, float temperature, int32_t top_k, float top_p,
        float min_p, float repeat_penalty, int32_t repeat_last_n, float frequency_penalty, float presence_penalty,
        int64_t seed) {
    sampler_options options;
    options.temperature       = temperature;
    options.top_k             = top_k;
    options.top_p             = top_p;
    options.min_p             = min_p;
    options.repeat_penalty    = repeat_penalty;
    options.repeat_last_n     = repeat_last_n;
    options.frequency_penalty = frequency_penalty;
    options.presence_penalty  = presence_penalty;
    options.seed              = seed < 0 ? LLAMA_DEFAULT_SEED : uint32_t(seed);
    return std::make_unique<py_sampler>(std::make_shared<sampler>(owner.get(), options));
}

} // namespace

void register_sampler(py::module_ & module) {
    py::class_<py_sampler>(module, "Sampler")
        .def(py::init(&make_sampler), py::arg("model"), py::kw_only(), py::arg("temperature") = 0.8f,
            py::arg("top_k") = 40, py::arg("top_p") = 0.95f, py::arg("min_p") = 0.05f, py::arg("repeat_penalty") = 1.0f,
            py::arg("repeat_last_n") = 64, py::arg("frequency_penalty") = 0.0f, py::arg("presence_penalty") = 0.0f,
            py::arg("seed") = -1)
        .def("sample", [](const py_sampler & self, const py_context & ctx, int32_t row) {
            const auto & chain  = *self.get();
            const auto   source = ctx.get();
            const py::gil_scoped_release release;
            return const_cast<sampler &>(chain).sample(*source, row);
        }, py::arg("context"), py::arg("row"))
        .def("accept", [](const py_sampler & self, llama_token token) { self.get()->accept(token); }, py::arg("token"))
        .def("reset",  [](const py_sampler & self) { self.get()->reset(); });
}

} // namespace otter
