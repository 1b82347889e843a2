// What libFuzzer calls with one input after the other: any bytes, taken for a GGUF file, end in a file whose every
// value and tensor can be read, or in an otter_error of one clean line. `make fuzz-validator` runs it.

#include "gguf/check_base.h"
#include "gguf/finite.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>

namespace {

using namespace otter;

// The name of the first part of a split base: an input that says it is one is checked with the second part in the
// working folder (tests/gguf/corpus.py writes it), or without.
const std::string path = "fuzz-00001-of-00002.gguf";

void require(bool holds, const char * what) {
    if (!holds) {
        std::fprintf(stderr, "broken promise: %s\n", what);
        std::abort();
    }
}

void check_message(const std::string & text) {
    require(text.find("fuzz-0000") == 0, "an error names its file first");
    require(std::all_of(text.begin(), text.end(), [](char c) { return c >= 0x20 && c < 0x7f; }),
        "an error is one line of printable ASCII");
    require(text.size() < 16384, "an error is short");
}

// The sizes a second time, in 128 bits: nothing has wrapped, nothing lies outside, nothing overlaps.
void check_layout(const gguf_file & file) {
    require(file.path() == path && (file.version() == 2 || file.version() == 3), "the file is what it says");
    const std::array<uint64_t, 5> places = { file.kv_offset(), file.tensor_info_offset(), file.tensor_info_end(),
        file.data_offset(), file.size() };
    require(std::is_sorted(places.begin(), places.end()), "the parts of a file follow each other");
    unsigned __int128 last = file.data_offset();
    for (const tensor_entry & info : file.tensors()) {
        unsigned __int128 n_elements = 1;
        for (const uint64_t n : info.ne) {
            n_elements *= n;
            require(n_elements > 0 && n_elements <= INT64_MAX, "a tensor has 1 to 2^63 - 1 elements");
        }
        const auto block   = static_cast<uint64_t>(ggml_blck_size(info.type));
        const auto n_bytes = n_elements / block * ggml_type_size(info.type);
        require(n_bytes == info.n_bytes, "a tensor has the bytes of its shape");
        require(info.offset >= last && info.offset % file.alignment() == 0, "tensors stand one behind the other");
        last = info.offset + n_bytes;
        require(last <= file.size(), "a tensor lies inside the file");
    }
}

// Every byte that a user of the file can reach; AddressSanitizer sees a step beside it.
void read_everything(const gguf_file & file) {
    size_t n_bytes = 0;
    for (const kv_entry & kv : file.entries()) {
        require(file.find(kv.key) == &kv, "a key is found by its name");
        require(!kv.type_name().empty(), "a type has a name");
        if (kv.type == GGUF_TYPE_STRING) {
            for (const std::string_view text : file.strings(kv)) {
                n_bytes += std::count(text.begin(), text.end(), 'a');
            }
        } else {
            n_bytes += *file.mapped()->data() + *file.bytes(kv.end - 1);
        }
    }
    std::vector<std::string> names;
    for (const tensor_entry & info : file.tensors()) {
        require(file.find_tensor(info.name) == &info, "a tensor is found by its name");
        const int64_t place = first_non_finite(info.type, file.bytes(info.offset), info.n_bytes);
        require(place < int64_t(info.n_bytes), "what is not finite stands inside the tensor");
        names.emplace_back(info.name);
    }
    require(n_bytes < SIZE_MAX, "the bytes were read"); // which the compiler must not leave out
    try {
        check_finite(file, names);
    } catch (const otter_error & error) {
        check_message(error.what());
    }
}

} // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t * data, size_t size) {
    try {
        const gguf_file file(path, mapped_file::of(path, std::vector<uint8_t>(data, data + size)));
        check_layout(file);
        read_everything(file);
        check_base(file);
    } catch (const otter_error & error) {
        check_message(error.what());
    }
    return 0;
}
