// Files: TensorInfo, GgufFile, check_base, check_finite, tensor_nbytes, quantize, dequantize.

#include "bindings/bindings.h"
#include "bindings/gil.h"

#include "architectures.h"
#include "gguf/check_base.h"
#include "gguf/finite.h"
#include "gguf/quantize.h"

#include <pybind11/numpy.h>
#include <pybind11/stl.h>

namespace py = pybind11;

namespace otter {

namespace {

// What Python sees of a tensor: a copy, so that it outlives the file.
struct tensor_info {
    std::string name;
    std::string type;
    py::tuple   shape;
    uint64_t    offset;
    uint64_t    n_bytes;
};

// Bytes of the mapping, exported through the buffer protocol; holds the mapping for as long as a memoryview exists.
struct file_bytes {
    std::shared_ptr<const mapped_file> mapping;
    const uint8_t *                    data;
    uint64_t                           size;
};

py::str decode(std::string_view text) {
    PyObject * object = PyUnicode_DecodeUTF8(text.data(), Py_ssize_t(text.size()), "surrogateescape");
    if (object == nullptr) {
        throw py::error_already_set();
    }
    return py::reinterpret_steal<py::str>(object);
}

// str, bytes or os.PathLike, as the file system spells it.
std::string path_bytes(const py::object & path) {
    PyObject * encoded = nullptr;
    if (PyUnicode_FSConverter(path.ptr(), &encoded) == 0) {
        throw py::error_already_set();
    }
    return py::reinterpret_steal<py::bytes>(encoded);
}

class py_gguf_file {
public:
    explicit py_gguf_file(const py::object & location) : path(path_bytes(location)) {
        const gil_release unlocked;
        file = std::make_shared<const gguf_file>(path);
    }

    // Shared, and to be held while anything of the file is read: another thread may close it where a call does without
    // the GIL, and a finalizer wherever an object of Python is made.
    std::shared_ptr<const gguf_file> open() const {
        if (!file) {
            throw otter_error(error_kind::file, cat(path, ": the file is closed"));
        }
        return file;
    }

    void close() { file.reset(); }

    py::str path_text() const {
        return py::reinterpret_steal<py::str>(PyUnicode_DecodeFSDefaultAndSize(path.data(), Py_ssize_t(path.size())));
    }

    py::list keys() const {
        const auto held = open();
        py::list   out;
        for (const kv_entry & kv : held->entries()) {
            out.append(decode(kv.key));
        }
        return out;
    }

    std::vector<tensor_info> tensors() const {
        const auto               held = open();
        std::vector<tensor_info> out;
        for (const tensor_entry & info : held->tensors()) {
            py::tuple shape(info.n_dims);
            for (uint32_t i = 0; i < info.n_dims; ++i) {
                shape[i] = info.ne[i];
            }
            out.push_back({ std::string(info.name), tensor_type_name(info.type), shape, info.offset, info.n_bytes });
        }
        return out;
    }

    static const kv_entry & entry(const gguf_file & held, const std::string & key) {
        const kv_entry * kv = held.find(key);
        if (kv == nullptr) {
            throw py::key_error(key);
        }
        return *kv;
    }

    static const tensor_entry & tensor(const gguf_file & held, const std::string & name) {
        const tensor_entry * info = held.find_tensor(name);
        if (info == nullptr) {
            throw py::key_error(name);
        }
        return *info;
    }

    py::object value(const std::string & key) const;

    uint64_t array_length(const std::string & key) const {
        const auto       held = open();
        const kv_entry & kv   = entry(*held, key);
        if (!kv.is_array) {
            held->fail_key(key, cat("has type ", kv.type_name(), ", expected an array"));
        }
        return kv.count;
    }

    py::memoryview raw_value(const std::string & key) const {
        const auto       held = open();
        const kv_entry & kv   = entry(*held, key);
        return view(held, kv.value_offset, kv.end - kv.value_offset);
    }

    py::memoryview tensor_data(const std::string & name) const {
        const auto           held = open();
        const tensor_entry & info = tensor(*held, name);
        return view(held, info.offset, info.n_bytes);
    }

    int64_t non_finite(const std::string & name) const {
        const auto           held = open();
        const tensor_entry & info = tensor(*held, name);
        const gil_release    unlocked;
        return first_non_finite(info.type, held->bytes(info.offset), info.n_bytes);
    }

private:
    std::string                      path;
    std::shared_ptr<const gguf_file> file;

    static py::memoryview view(const std::shared_ptr<const gguf_file> & held, uint64_t offset, uint64_t n_bytes) {
        return py::memoryview(py::cast(file_bytes { held->mapped(), held->bytes(offset), n_bytes }));
    }
};

template <typename T>
py::object numbers(const gguf_file & file, const kv_entry & kv) {
    if (!kv.is_array) {
        return py::cast(file.element<T>(kv, 0));
    }
    py::list out(kv.count);
    for (uint64_t i = 0; i < kv.count; ++i) {
        out[i] = py::cast(file.element<T>(kv, i));
    }
    return out;
}

py::object texts(const gguf_file & file, const kv_entry & kv) {
    const auto strings = file.strings(kv);
    if (!kv.is_array) {
        return decode(strings.front());
    }
    py::list out(strings.size());
    for (size_t i = 0; i < strings.size(); ++i) {
        out[i] = decode(strings[i]);
    }
    return out;
}

py::object py_gguf_file::value(const std::string & key) const {
    const auto       held = open();
    const kv_entry & kv   = entry(*held, key);
    switch (kv.type) {
        case GGUF_TYPE_UINT8:   return numbers<uint8_t>(*held, kv);
        case GGUF_TYPE_INT8:    return numbers<int8_t>(*held, kv);
        case GGUF_TYPE_UINT16:  return numbers<uint16_t>(*held, kv);
        case GGUF_TYPE_INT16:   return numbers<int16_t>(*held, kv);
        case GGUF_TYPE_UINT32:  return numbers<uint32_t>(*held, kv);
        case GGUF_TYPE_INT32:   return numbers<int32_t>(*held, kv);
        case GGUF_TYPE_FLOAT32: return numbers<float>(*held, kv);
        case GGUF_TYPE_BOOL:    return numbers<bool>(*held, kv); // 0 or 1: the parser has looked
        case GGUF_TYPE_UINT64:  return numbers<uint64_t>(*held, kv);
        case GGUF_TYPE_INT64:   return numbers<int64_t>(*held, kv);
        case GGUF_TYPE_FLOAT64: return numbers<double>(*held, kv);
        default:                return texts(*held, kv);
    }
}

// Python integers of any size; what does not fit is a size that no tensor can have.
std::vector<uint64_t> shape_of(const py::sequence & shape) {
    std::vector<uint64_t> out;
    for (size_t i = 0; i < shape.size(); ++i) {
        const py::object item   = shape[i]; // held: an array makes its items as they are asked for
        const py::int_   number = item;
        const uint64_t   n      = PyLong_AsUnsignedLongLong(number.ptr());
        if (n == UINT64_MAX && PyErr_Occurred() != nullptr) {
            PyErr_Clear();
            throw otter_error(error_kind::file,
                cat("tensor with a dimension of ", std::string(py::str(py::handle(number))), ", expected 1 to 2^63"));
        }
        out.push_back(n);
    }
    return out;
}

py::bytes quantize(const py::array_t<float, py::array::c_style | py::array::forcecast> & values, const std::string & type) {
    if (values.ndim() != 2 || values.size() == 0) {
        throw otter_error(error_kind::config,
            cat("quantize expects values of shape (rows, columns), found ", values.ndim(), " dimensions and ", values.size(),
                " values"));
    }
    const ggml_type      parsed = parse_tensor_type(type);
    const auto           rows   = uint64_t(values.shape(0));
    const auto           cols   = uint64_t(values.shape(1));
    const float *        data   = values.data();
    std::vector<uint8_t> out;
    {
        const gil_release unlocked;
        out = quantize_rows(parsed, data, rows, cols);
    }
    return { reinterpret_cast<const char *>(out.data()), out.size() };
}

py::array_t<float> dequantize(const py::buffer & data, const std::string & type, uint64_t n_columns) {
    const ggml_type       parsed    = parse_tensor_type(type);
    const uint64_t        row_bytes = tensor_nbytes(type, { n_columns });
    const py::buffer_info info      = data.request();
    const auto            n_bytes   = uint64_t(info.size) * uint64_t(info.itemsize);
    if (PyBuffer_IsContiguous(info.view(), 'C') == 0 || n_bytes % row_bytes != 0) {
        throw otter_error(error_kind::config,
            cat("dequantize expects contiguous bytes in rows of ", row_bytes, ", found ", n_bytes, " bytes"));
    }
    const uint64_t     n_rows = n_bytes / row_bytes;
    py::array_t<float> out({ py::ssize_t(n_rows), py::ssize_t(n_columns) });
    float *            values = out.mutable_data();
    {
        const gil_release unlocked;
        dequantize_rows(parsed, static_cast<const uint8_t *>(info.ptr), n_rows, n_columns, values);
    }
    return out;
}

void register_file(py::module_ & m) {
    const auto header = [](auto getter) { return [getter](const py_gguf_file & self) { return ((*self.open()).*getter)(); }; };
    py::class_<py_gguf_file>(m, "GgufFile", py::is_final())
        .def(py::init<const py::object &>(), py::arg("path"))
        .def_property_readonly("path", &py_gguf_file::path_text)
        .def_property_readonly("version", header(&gguf_file::version))
        .def_property_readonly("alignment", header(&gguf_file::alignment))
        .def_property_readonly("size", header(&gguf_file::size))
        .def_property_readonly("kv_offset", header(&gguf_file::kv_offset))
        .def_property_readonly("tensor_info_offset", header(&gguf_file::tensor_info_offset))
        .def_property_readonly("tensor_info_end", header(&gguf_file::tensor_info_end))
        .def_property_readonly("data_offset", header(&gguf_file::data_offset))
        .def_property_readonly("keys", &py_gguf_file::keys)
        .def_property_readonly("tensors", &py_gguf_file::tensors)
        .def(
            "key_type",
            [](const py_gguf_file & self, const std::string & key) {
                const auto held = self.open();
                return py_gguf_file::entry(*held, key).type_name();
            },
            py::arg("key"))
        .def("value", &py_gguf_file::value, py::arg("key"))
        .def("raw_value", &py_gguf_file::raw_value, py::arg("key"))
        .def("array_length", &py_gguf_file::array_length, py::arg("key"))
        .def("tensor_data", &py_gguf_file::tensor_data, py::arg("name"))
        .def("non_finite", &py_gguf_file::non_finite, py::arg("name"))
        .def("close", &py_gguf_file::close)
        .def("__enter__",
            [](const py::object & self) {
                self.cast<py_gguf_file &>().open();
                return self;
            })
        .def("__exit__", [](py_gguf_file & self, const py::args &) { self.close(); });
}

} // namespace

// The features of each architecture by their names, which a test compares with otter_gguf/architectures.
static py::dict architecture_features() {
#define OTTER_NAMED(name) { name, #name },
    static constexpr std::pair<feature, const char *> names[] = { OTTER_FEATURES(OTTER_NAMED) };
#undef OTTER_NAMED
    py::dict   result;
    const auto add = [&](const char * architecture, feature_set features) {
        py::list of_it;
        for (const auto & [which, name] : names) {
            if (features.has(which)) {
                of_it.append(name);
            }
        }
        result[architecture] = py::tuple(of_it);
    };
#define OTTER_ADD(name, class_name, features) add(name, { features });
    OTTER_ARCHITECTURES(OTTER_ADD)
#undef OTTER_ADD
    return result;
}

void register_gguf(py::module_ & m) {
    m.attr("ARCHITECTURE_FEATURES") = architecture_features();

    py::class_<file_bytes>(m, "_FileBytes", py::buffer_protocol()).def_buffer([](const file_bytes & self) {
        return py::buffer_info(const_cast<uint8_t *>(self.data), 1, py::format_descriptor<uint8_t>::format(), 1,
            { py::ssize_t(self.size) }, { py::ssize_t(1) }, /*readonly=*/true);
    });
    py::class_<tensor_info>(m, "TensorInfo", py::is_final())
        .def_readonly("name", &tensor_info::name)
        .def_readonly("type", &tensor_info::type)
        .def_readonly("shape", &tensor_info::shape)
        .def_readonly("offset", &tensor_info::offset)
        .def_readonly("n_bytes", &tensor_info::n_bytes)
        .def("__repr__", [](const tensor_info & self) {
            return py::str("TensorInfo(name={!r}, type={!r}, shape={})").format(self.name, self.type, self.shape);
        });
    register_file(m);

    m.def(
        "check_base",
        [](const py_gguf_file & file) {
            const auto        held = file.open();
            const gil_release unlocked;
            check_base(*held);
        },
        py::arg("file"));
    m.def(
        "check_finite",
        [](const py_gguf_file & file, const std::vector<std::string> & names) {
            const auto        held = file.open();
            const gil_release unlocked;
            check_finite(*held, names);
        },
        py::arg("file"), py::arg("names"));
    m.def(
        "tensor_nbytes",
        [](const std::string & type, const py::sequence & shape) { return tensor_nbytes(type, shape_of(shape)); },
        py::arg("type"), py::arg("shape"));
    m.def("quantize", &quantize, py::arg("values"), py::arg("type"));
    m.def("dequantize", &dequantize, py::arg("data"), py::arg("type"), py::arg("n_columns"));
}

} // namespace otter
