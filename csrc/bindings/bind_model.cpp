// HeadSpec, InsertionSpec and Model for Python.

#include "bindings.h"
#include "convert.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <cstring>

namespace py = pybind11;

namespace otter {

namespace {

head_input to_head_input(const std::string & name) {
    static const std::pair<const char *, head_input> choices[] = {
        { "inserted", head_input::inserted },
        { "base", head_input::base },
        { "both", head_input::both },
    };
    return by_name("head input", name, choices);
}

activation to_activation(const std::string & name) {
    static const std::pair<const char *, activation> choices[] = {
        { "none", activation::none },
        { "sigmoid", activation::sigmoid },
        { "tanh", activation::tanh },
        { "softmax", activation::softmax },
    };
    return by_name("activation", name, choices);
}

llama_split_mode to_split_mode(const std::string & name) {
    static const std::pair<const char *, llama_split_mode> choices[] = {
        { "none", LLAMA_SPLIT_MODE_NONE },
        { "layer", LLAMA_SPLIT_MODE_LAYER },
    };
    return by_name("split_mode", name, choices);
}

struct head_spec {
    inserted_head head;
    calibration   calibrated;
};

const head_kind * to_head_kind(const std::string & head, const std::string & name) {
    std::string known;
    for (const auto & kind : head_kinds) {
        if (name == kind.name) {
            return &kind;
        }
        known += std::string(known.empty() ? "" : ", ") + kind.name;
    }
    throw config_error("head " + head + ": kind '" + name + "', expected one of " + known);
}

head_spec make_head(const std::string & name, const std::string & kind_name, const std::string & input, const std::string & act,
    const std::vector<float> & scale, const std::vector<float> & shift, int32_t rank) {
    const head_kind * kind = to_head_kind(name, kind_name);
    if (scale.empty() || scale.size() != shift.size()) {
        throw config_error("head " + name + ": scale and shift need one number a label");
    }
    if (kind->table == nullptr ? rank != 0 : rank < 1 || scale.size() != 1) {
        const char * expected = kind->table == nullptr ? "rank 0" : "one label and a rank of at least 1";
        throw config_error("head " + name + ": a " + kind_name + " head has " + expected);
    }
    return { { name, kind, to_head_input(input), int32_t(scale.size()), rank }, { to_activation(act), scale, shift } };
}

insertion make_insertion(int32_t width, const std::vector<int32_t> & n_head_kv, const std::vector<int32_t> & n_ff,
    const std::string & state_source, int32_t state_offset, const std::vector<head_spec> & heads) {
    static const std::pair<const char *, bool> sources[] = { { "slice", false }, { "table", true } };

    insertion result;
    result.spec.width        = width;
    result.spec.n_head_kv    = n_head_kv;
    result.spec.n_ff         = n_ff;
    result.spec.state_table  = by_name("state source", state_source, sources);
    result.spec.state_offset = state_offset;
    for (const auto & head : heads) {
        result.spec.heads.push_back(head.head);
        result.calibrations.push_back(head.calibrated);
    }
    return result;
}

std::unique_ptr<py_model> make_model(const std::string & path, const std::string & sidecar, std::optional<insertion> inserted,
    int32_t n_gpu_layers, const std::string & split_mode, int32_t main_gpu, const std::vector<float> & tensor_split,
    bool use_mmap, bool use_mlock, bool check_tensors, bool vocab_only, bool hidden_states,
    const std::optional<std::function<bool(float)>> & progress) {
    model_options options;
    options.sidecar       = sidecar;
    options.n_gpu_layers  = n_gpu_layers;
    options.split_mode    = to_split_mode(split_mode);
    options.main_gpu      = main_gpu;
    options.tensor_split  = tensor_split;
    options.use_mmap      = use_mmap;
    options.use_mlock     = use_mlock;
    options.check_tensors = check_tensors;
    options.vocab_only    = vocab_only;

    // a Python error in the callback, Ctrl-C included, stops the load and is raised when llama.cpp has cleaned up
    bool python_error = false;
    options.progress  = [&](float done) {
        const gil_acquire gil;
        try {
            python_error = PyErr_CheckSignals() != 0;
            return !python_error && (!progress || (*progress)(done));
        } catch (py::error_already_set & error) {
            error.restore();
            python_error = true;
            return false;
        }
    };
    if (inserted) {
        inserted->spec.hidden_states = hidden_states;
    }
    try {
        const gil_release release;
        return std::make_unique<py_model>(std::make_shared<model>(path, options, std::move(inserted)));
    } catch (const otter_error &) {
        if (python_error) {
            throw py::error_already_set();
        }
        throw;
    }
}

} // namespace

void register_model(py::module_ & module) {
    py::class_<head_spec>(module, "HeadSpec")
        .def(py::init(&make_head), py::kw_only(), py::arg("name"), py::arg("kind"), py::arg("input"), py::arg("activation"),
            py::arg("scale"), py::arg("shift"), py::arg("rank") = 0);

    py::class_<insertion>(module, "InsertionSpec")
        .def(py::init(&make_insertion), py::kw_only(), py::arg("width"), py::arg("n_head_kv"), py::arg("n_ff"),
            py::arg("state_source"), py::arg("state_offset"), py::arg("heads"));

    const auto native = [](const py_model & self) { return self.get()->get(); };
    const auto vocab  = [](const py_model & self) { return self.get()->vocab(); };

    py::class_<py_model>(module, "Model")
        .def(py::init(&make_model), py::arg("path"), py::kw_only(), py::arg("sidecar") = "", py::arg("insertion") = py::none(),
            py::arg("n_gpu_layers") = -1, py::arg("split_mode") = "layer", py::arg("main_gpu") = 0,
            py::arg("tensor_split") = py::tuple(), py::arg("use_mmap") = true, py::arg("use_mlock") = false,
            py::arg("check_tensors") = false, py::arg("vocab_only") = false, py::arg("hidden_states") = false,
            py::arg("progress") = py::none())
        .def_property_readonly("n_vocab", [=](const py_model & self) { return llama_vocab_n_tokens(vocab(self)); })
        .def_property_readonly("n_ctx_train", [=](const py_model & self) { return llama_model_n_ctx_train(native(self)); })
        .def_property_readonly("n_embd", [=](const py_model & self) { return llama_model_n_embd(native(self)); })
        .def_property_readonly("n_layer", [](const py_model & self) { return self.get()->n_layer(); })
        .def_property_readonly("n_rewards", [](const py_model & self) { return self.get()->n_rewards(); })
        .def_property_readonly("n_params", [=](const py_model & self) { return llama_model_n_params(native(self)); })
        .def_property_readonly("n_bytes", [=](const py_model & self) { return llama_model_size(native(self)); })
        .def_property_readonly("description", [](const py_model & self) { return self.get()->description(); })
        .def_property_readonly("bos_token", [=](const py_model & self) { return llama_vocab_bos(vocab(self)); })
        .def_property_readonly("eos_token", [=](const py_model & self) { return llama_vocab_eos(vocab(self)); })
        .def_property_readonly("add_bos", [=](const py_model & self) { return llama_vocab_get_add_bos(vocab(self)); })
        .def(
            "is_eog",
            [=](const py_model & self, llama_token token) {
                self.get()->check_token(token);
                return llama_vocab_is_eog(vocab(self), token);
            },
            py::arg("token"))
        .def("chat_template",
            [=](const py_model & self) -> std::optional<py::object> { // any bytes: the file's
                const char * text = llama_model_chat_template(native(self), nullptr);
                if (text == nullptr) {
                    return std::nullopt;
                }
                PyObject * object = PyUnicode_DecodeUTF8(text, Py_ssize_t(std::strlen(text)), "surrogateescape");
                if (object == nullptr) {
                    throw py::error_already_set();
                }
                return py::reinterpret_steal<py::object>(object);
            })
        .def(
            "tokenize",
            [](const py_model & self, const py::bytes & text, bool add_special, bool parse_special) {
                const std::string copy  = text;
                const auto        owner = self.get(); // shared: another thread may close the model meanwhile
                return unless_interrupted([&] {
                    const gil_release release;
                    return owner->tokenize(copy, add_special, parse_special, python_interrupts);
                });
            },
            py::arg("text"), py::arg("add_special") = true, py::arg("parse_special") = false)
        .def(
            "detokenize",
            [](const py_model & self, const std::vector<llama_token> & tokens, bool special) {
                return py::bytes(self.get()->detokenize(tokens, special));
            },
            py::arg("tokens"), py::arg("special") = false)
        .def(
            "token_bytes",
            [](const py_model & self, llama_token token, bool special) {
                return py::bytes(self.get()->token_text(token, special));
            },
            py::arg("token"), py::arg("special") = false)
        .def("close", &py_model::close);
}

} // namespace otter
