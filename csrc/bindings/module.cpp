// The Python module otter_gguf._native.

#include "bindings.h"

PYBIND11_MODULE(_native, module) {
    module.doc() = "GGUF validator, llama.cpp with inserted blocks, samplers";

    otter::register_errors(module);
    otter::register_gguf(module);
    otter::register_model(module);
    otter::register_context(module);
    otter::register_sampler(module);
    otter::register_engine(module);
}
