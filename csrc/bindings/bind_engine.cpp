// llama.cpp as a whole for Python: its log, its devices, its quantizer, its version.

#include "bindings.h"
#include "convert.h"

#include "engine/log.h"

#include "ggml-backend.h"

#include <pybind11/functional.h>
#include <pybind11/stl.h>

namespace py = pybind11;

namespace otter {

namespace {

void set_log_callback(const std::optional<std::function<void(const std::string &, const std::string &)>> & callback) {
    if (!callback) {
        set_log_listener(nullptr);
        return;
    }
    set_log_listener([callback](const char * level, const std::string & line) {
        if (!Py_IsInitialized()) {
            return;
        }
        const py::gil_scoped_acquire gil;
        try {
            (*callback)(level, line);
        } catch (py::error_already_set & error) { // a listener's failure must not unwind llama.cpp
            error.discard_as_unraisable("otter_gguf log callback");
        }
    });
}

py::list devices() {
    static const char * const types[] = { "cpu", "gpu", "igpu", "accel", "meta" };

    py::list result;
    for (size_t i = 0; i < ggml_backend_dev_count(); ++i) {
        ggml_backend_dev_props props;
        ggml_backend_dev_get_props(ggml_backend_dev_get(i), &props);

        py::dict device;
        device["name"]         = props.name;
        device["description"]  = props.description;
        device["type"]         = size_t(props.type) < std::size(types) ? types[props.type] : "other";
        device["memory_free"]  = props.memory_free;
        device["memory_total"] = props.memory_total;
        result.append(device);
    }
    return result;
}

llama_ftype to_file_type(const std::string & name) {
    static const std::pair<const char *, llama_ftype> choices[] = {
        { "F32",    LLAMA_FTYPE_ALL_F32         }, { "F16",    LLAMA_FTYPE_MOSTLY_F16    }, { "BF16",   LLAMA_FTYPE_MOSTLY_BF16   },
        { "Q8_0",   LLAMA_FTYPE_MOSTLY_Q8_0     }, { "Q6_K",   LLAMA_FTYPE_MOSTLY_Q6_K   }, { "Q5_K_M", LLAMA_FTYPE_MOSTLY_Q5_K_M },
        { "Q5_K_S", LLAMA_FTYPE_MOSTLY_Q5_K_S   }, { "Q5_0",   LLAMA_FTYPE_MOSTLY_Q5_0   }, { "Q5_1",   LLAMA_FTYPE_MOSTLY_Q5_1   },
        { "Q4_K_M", LLAMA_FTYPE_MOSTLY_Q4_K_M   }, { "Q4_K_S", LLAMA_FTYPE_MOSTLY_Q4_K_S }, { "Q4_0",   LLAMA_FTYPE_MOSTLY_Q4_0   },
        { "Q4_1",   LLAMA_FTYPE_MOSTLY_Q4_1     }, { "Q3_K_M", LLAMA_FTYPE_MOSTLY_Q3_K_M }, { "Q3_K_S", LLAMA_FTYPE_MOSTLY_Q3_K_S },
        { "Q3_K_L", LLAMA_FTYPE_MOSTLY_Q3_K_L   }, { "Q2_K",   LLAMA_FTYPE_MOSTLY_Q2_K   }, { "IQ4_XS", LLAMA_FTYPE_MOSTLY_IQ4_XS },
        { "IQ4_NL", LLAMA_FTYPE_MOSTLY_IQ4_NL   }, { "IQ3_S",  LLAMA_FTYPE_MOSTLY_IQ3_S  },
    };
    return by_name("file type", name, choices);
}

void model_quantize(const std::string & source, const std::string & target, const std::string & type, int32_t n_threads) {
    llama_model_quantize_params params = llama_model_quantize_default_params();
    params.ftype   = to_file_type(type);
    params.nthread = n_threads;

    const py::gil_scoped_release release;
    take_log_errors();
    if (llama_model_quantize(source.c_str(), target.c_str(), &params) != 0) {
        throw engine_error("llama.cpp cannot quantize " + source + " to " + type + ": " + take_log_errors());
    }
}

} // namespace

void register_engine(py::module_ & module) {
    install_log();
    llama_backend_init();

    module.attr("LLAMA_CPP_COMMIT")  = OTTER_LLAMA_CPP_COMMIT;
    module.attr("LLAMA_CPP_VERSION") = llama_version();

    module.def("set_log_callback", &set_log_callback, py::arg("callback"));
    module.def("devices", &devices);
    module.def("model_quantize", &model_quantize, py::arg("source"), py::arg("target"), py::arg("type"),
            py::arg("n_threads") = 0);

    // a listener left set must not outlive the interpreter
    py::module_::import("atexit").attr("register")(py::cpp_function([] { set_log_listener(nullptr); }));
}

} // namespace otter
