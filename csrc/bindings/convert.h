// What the bindings share: options by name, and objects that Python may close.

#pragma once

#include "gil.h"

#include "engine/context.h"
#include "engine/fail.h"
#include "engine/sampler.h"

#include <pybind11/pybind11.h>

#include <memory>
#include <string>
#include <utility>

namespace otter {

template <class value_type, size_t n>
value_type by_name(const char * what, const std::string & name, const std::pair<const char *, value_type> (&choices)[n]) {
    std::string known;
    for (const auto & [choice, value] : choices) {
        if (name == choice) {
            return value;
        }
        known += std::string(known.empty() ? "" : ", ") + choice;
    }
    throw config_error(std::string(what) + " '" + name + "', expected one of " + known);
}

// Asks Python for a pending signal, Ctrl-C above all; what its handler raises waits for `unless_interrupted`.
inline bool python_interrupts() {
    const gil_acquire gil;
    return PyErr_CheckSignals() != 0;
}

// The result of a call, or what the handler of a signal raised in the middle of it. Holds the GIL at both ends.
template <class function>
auto unless_interrupted(const function & call) {
    try {
        return call();
    } catch (const interrupt &) {
        throw pybind11::error_already_set();
    }
}

// A Python object whose native part can be closed before the object dies.
template <class native>
class closable {
public:
    explicit closable(std::shared_ptr<native> what) : object(std::move(what)) {}

    // Shared: in the middle of a call a finalizer of Python may close the object, or another thread.
    std::shared_ptr<native> get() const {
        if (!object) {
            throw engine_error("this object has been closed");
        }
        return object;
    }

    // The object is given up while the GIL is held, for get() reads it, and freed without: that may take long.
    void close() {
        std::shared_ptr<native> last = std::move(object);
        const gil_release       release;
        last.reset();
    }

private:
    std::shared_ptr<native> object;
};

using py_model   = closable<model>;
using py_context = closable<context>;
using py_sampler = closable<sampler>;

} // namespace otter
