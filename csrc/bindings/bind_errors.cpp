// otter_error -> the class of otter_gguf.errors with the same name.

#include "bindings/bindings.h"

#include "gguf/error.h"

namespace py = pybind11;

namespace otter {

namespace {

// Messages hold paths and names of files, so any bytes: backslashes for what is not UTF-8.
void raise(const otter_error & error) {
    const std::string text = error.what();
    const auto        name = error_class_names[size_t(error.kind)];
    const py::object  type = py::module_::import("otter_gguf.errors").attr(name);
    const auto        message =
        py::reinterpret_steal<py::object>(PyUnicode_DecodeUTF8(text.data(), Py_ssize_t(text.size()), "backslashreplace"));
    if (message) {
        PyErr_SetObject(type.ptr(), message.ptr());
    }
}

} // namespace

void register_errors(py::module_ & m) {
    py::tuple names(error_class_names.size());
    for (size_t i = 0; i < error_class_names.size(); ++i) {
        names[i] = error_class_names[i];
    }
    m.attr("ERROR_CLASSES") = names; // compared with otter_gguf.errors by a test

    py::register_local_exception_translator([](std::exception_ptr pointer) {
        try {
            if (pointer) {
                std::rethrow_exception(pointer);
            }
        } catch (const otter_error & error) {
            raise(error);
        }
    });
}

} // namespace otter
