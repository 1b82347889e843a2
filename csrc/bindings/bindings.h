// Every part of the Python module _native registers itself through one function. Bindings hold no logic.

#pragma once

#include <pybind11/pybind11.h>

namespace otter {

void register_errors(pybind11::module_ & m); // first: the others throw
void register_gguf(pybind11::module_ & m);
void register_model(pybind11::module_ & m);
void register_context(pybind11::module_ & m);
void register_sampler(pybind11::module_ & m);
void register_engine(pybind11::module_ & m); // log, devices, quantizer, versions

} // namespace otter
