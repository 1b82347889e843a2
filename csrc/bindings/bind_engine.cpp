// llama.cpp as a whole for Python: its log, its devices, its quantizer, its version.

#include "bindings.h"
#include "convert.h"

#include "engine/log.h"
#include "engine/quantizer.h"
#include "gguf/mapped_file.h"
#include "gguf/quantize.h"

#include "ggml-backend.h"

#include <pybind11/functional.h>
#include <pybind11/numpy.h>
#include <pybind11/stl.h>

namespace py = pybind11;

namespace otter {

namespace {

void set_log_callback(const std::optional<std::function<void(const std::string &, const std::string &)>> & callback) {
    // shared: a copy of a Python callback takes the GIL, and the log copies its listener
    const auto shared = std::make_shared<const std::decay_t<decltype(callback)>>(callback);
    set_log_listener([shared](const char * level, const std::string & line) {
        const auto & listener = *shared;
        watch_quantizer(line);
        if (!listener || !Py_IsInitialized()) {
            return;
        }
        const gil_acquire     gil;
        const py::error_scope pending; // of another callback, to be raised when llama.cpp has cleaned up
        try {
            (*listener)(level, line);
        } catch (py::error_already_set & error) { // a listener's failure must not unwind llama.cpp
            error.discard_as_unraisable("otter_gguf log callback");
        }
    });
}

// What is held by an object of Python that has been closed or is gone is not alive.
py::dict live_objects() {
    py::dict result;
    result["files"]    = live_count<mapped_file>::count();
    result["models"]   = live_count<model>::count();
    result["contexts"] = live_count<context>::count();
    result["samplers"] = live_count<sampler>::count();
    return result;
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

// Names as llama-quantize has them.
constexpr std::pair<const char *, llama_ftype> file_types[] = {
    // clang-format off
    { "F32",     LLAMA_FTYPE_ALL_F32        }, { "F16",     LLAMA_FTYPE_MOSTLY_F16     }, { "BF16",       LLAMA_FTYPE_MOSTLY_BF16       },
    { "Q8_0",    LLAMA_FTYPE_MOSTLY_Q8_0    }, { "Q6_K",    LLAMA_FTYPE_MOSTLY_Q6_K    }, { "Q5_K_M",     LLAMA_FTYPE_MOSTLY_Q5_K_M     },
    { "Q5_K_S",  LLAMA_FTYPE_MOSTLY_Q5_K_S  }, { "Q5_1",    LLAMA_FTYPE_MOSTLY_Q5_1    }, { "Q5_0",       LLAMA_FTYPE_MOSTLY_Q5_0       },
    { "Q4_K_M",  LLAMA_FTYPE_MOSTLY_Q4_K_M  }, { "Q4_K_S",  LLAMA_FTYPE_MOSTLY_Q4_K_S  }, { "Q4_1",       LLAMA_FTYPE_MOSTLY_Q4_1       },
    { "Q4_0",    LLAMA_FTYPE_MOSTLY_Q4_0    }, { "IQ4_NL",  LLAMA_FTYPE_MOSTLY_IQ4_NL  }, { "IQ4_XS",     LLAMA_FTYPE_MOSTLY_IQ4_XS     },
    { "Q3_K_L",  LLAMA_FTYPE_MOSTLY_Q3_K_L  }, { "Q3_K_M",  LLAMA_FTYPE_MOSTLY_Q3_K_M  }, { "Q3_K_S",     LLAMA_FTYPE_MOSTLY_Q3_K_S     },
    { "IQ3_M",   LLAMA_FTYPE_MOSTLY_IQ3_M   }, { "IQ3_S",   LLAMA_FTYPE_MOSTLY_IQ3_S   }, { "IQ3_XS",     LLAMA_FTYPE_MOSTLY_IQ3_XS     },
    { "IQ3_XXS", LLAMA_FTYPE_MOSTLY_IQ3_XXS }, { "Q2_K",    LLAMA_FTYPE_MOSTLY_Q2_K    }, { "Q2_K_S",     LLAMA_FTYPE_MOSTLY_Q2_K_S     },
    { "IQ2_M",   LLAMA_FTYPE_MOSTLY_IQ2_M   }, { "IQ2_S",   LLAMA_FTYPE_MOSTLY_IQ2_S   }, { "IQ2_XS",     LLAMA_FTYPE_MOSTLY_IQ2_XS     },
    { "IQ2_XXS", LLAMA_FTYPE_MOSTLY_IQ2_XXS }, { "IQ1_M",   LLAMA_FTYPE_MOSTLY_IQ1_M   }, { "IQ1_S",      LLAMA_FTYPE_MOSTLY_IQ1_S      },
    { "TQ2_0",   LLAMA_FTYPE_MOSTLY_TQ2_0   }, { "TQ1_0",   LLAMA_FTYPE_MOSTLY_TQ1_0   }, { "MXFP4_MOE",  LLAMA_FTYPE_MOSTLY_MXFP4_MOE  },
    // clang-format on
};
constexpr const char * copy_type = "COPY"; // every tensor in the type that it has

py::tuple file_type_names() {
    py::list names;
    for (const auto & [name, type] : file_types) {
        names.append(name);
    }
    names.append(copy_type);
    return names;
}

ggml_type to_tensor_type(const std::optional<std::string> & name) {
    return name ? parse_tensor_type(*name) : GGML_TYPE_COUNT;
}

using importance_values = std::map<std::string, py::array_t<float, py::array::c_style | py::array::forcecast>>;

quantize_report model_quantize(const std::string & source, const std::string & target, const std::string & type,
    int32_t n_threads, bool pure, bool keep_split, bool dry_run, const std::optional<std::string> & output_tensor_type,
    const std::optional<std::string> & token_embedding_type, const importance_values & importance,
    std::map<std::string, std::variant<int64_t, std::string>>                            metadata,
    const std::optional<std::function<void(const std::string &, const std::string &)>> & progress) {
    quantize_options options;
    options.only_copy            = type == copy_type;
    options.file_type            = options.only_copy ? options.file_type : by_name("file type", type, file_types);
    options.n_threads            = n_threads;
    options.pure                 = pure;
    options.keep_split           = keep_split;
    options.dry_run              = dry_run;
    options.output_tensor_type   = to_tensor_type(output_tensor_type);
    options.token_embedding_type = to_tensor_type(token_embedding_type);
    options.metadata             = std::move(metadata);
    for (const auto & [name, values] : importance) {
        options.importance[name].assign(values.data(), values.data() + values.size());
    }

    // a Python error in the callback, Ctrl-C included, is raised when llama.cpp has closed its files
    bool python_error = false;
    options.progress  = [&](const std::string & tensor, ggml_type tensor_type) {
        const gil_acquire gil;
        try {
            python_error = PyErr_CheckSignals() != 0;
            if (!python_error && progress) {
                (*progress)(tensor, tensor_type_name(tensor_type));
            }
        } catch (py::error_already_set & error) {
            error.restore();
            python_error = true;
        }
        return !python_error;
    };
    try {
        const gil_release release;
        return quantize_model(source, target, options);
    } catch (const otter_error &) {
        if (python_error) {
            throw py::error_already_set();
        }
        throw;
    }
}

py::dict type_names(const quantize_report & report) {
    py::dict names;
    for (const auto & [tensor, type] : report.types) {
        names[py::str(tensor)] = tensor_type_name(type);
    }
    return names;
}

void register_quantizer(py::module_ & module) {
    py::class_<quantize_report>(module, "QuantizeReport")
        .def_property_readonly("types", &type_names)
        .def_readonly("fallbacks", &quantize_report::fallbacks)
        .def_readonly("needs_importance", &quantize_report::needs_importance);

    module.attr("QUANTIZE_TYPES") = file_type_names();
    module.def("model_quantize", &model_quantize, py::arg("source"), py::arg("target"), py::arg("type"),
        py::arg("n_threads") = 0, py::kw_only(), py::arg("pure") = false, py::arg("keep_split") = false,
        py::arg("dry_run") = false, py::arg("output_tensor_type") = py::none(), py::arg("token_embedding_type") = py::none(),
        py::arg("importance") = py::dict(), py::arg("metadata") = py::dict(), py::arg("progress") = py::none());
}

// An assertion of llama.cpp's that fails would start a debugger, from PATH, to print where it stands.
void keep_debuggers_out() {
#ifndef _WIN32
    setenv("GGML_NO_BACKTRACE", "1", /*overwrite=*/0);
#endif
}

} // namespace

void register_engine(py::module_ & module) {
    keep_debuggers_out();
    install_log();
    set_log_callback(std::nullopt);
    llama_backend_init();

    module.attr("LLAMA_CPP_COMMIT")  = OTTER_LLAMA_CPP_COMMIT;
    module.attr("LLAMA_CPP_VERSION") = llama_version();

    module.def("set_log_callback", &set_log_callback, py::arg("callback"));
    module.def("devices", &devices);
    module.def("live_objects", &live_objects);
    register_quantizer(module);

    // neither a listener left set nor a thread that computes must outlive the interpreter
    py::module_::import("atexit").attr("register")(py::cpp_function([] {
        set_log_listener(nullptr);
        park_other_threads();
    }));
    const py::object os = py::module_::import("os");
    if (py::hasattr(os, "register_at_fork")) {
        os.attr("register_at_fork")(py::arg("after_in_child") = py::cpp_function(&forget_other_threads));
    }
}

} // namespace otter
