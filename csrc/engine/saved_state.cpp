#include "saved_state.h"

#include "fail.h"

#include <algorithm>
#include <cstring>

namespace otter {

namespace {

constexpr char magic[8] = { 'O', 'T', 'T', 'E', 'R', 'S', 'Q', '1' }; // ends with the version of the layout

struct header {
    char     magic[8];
    uint64_t geometry;
    uint64_t size;     // of the payload
    uint64_t checksum; // of the payload
};

static_assert(sizeof(header) == state_header_size, "the header has no padding");

// FNV-1a over words of eight bytes (http://www.isthe.com/chongo/tech/comp/fnv), which a change of one word never leaves
// as it was: both steps can be undone.
uint64_t hash(const void * data, size_t size) {
    constexpr uint64_t prime = 0x100000001b3ull;

    const auto * bytes  = static_cast<const uint8_t *>(data);
    uint64_t     result = 0xcbf29ce484222325ull ^ size;
    for (size_t i = 0; i < size; i += sizeof(uint64_t)) {
        uint64_t word = 0;
        std::memcpy(&word, bytes + i, std::min(sizeof(word), size - i));
        result = (result ^ word) * prime;
    }
    return result;
}

} // namespace

void write_state_header(std::vector<uint8_t> & data, const std::string & geometry) {
    const size_t size = data.size() - state_header_size;

    header head;
    std::memcpy(head.magic, magic, sizeof(magic));
    head.geometry = hash(geometry.data(), geometry.size());
    head.size     = size;
    head.checksum = hash(data.data() + state_header_size, size);
    std::memcpy(data.data(), &head, sizeof(head));
}

void check_state_header(const uint8_t * data, size_t size, const std::string & geometry) {
    header head;
    if (size < sizeof(head) || std::memcmp(data, magic, sizeof(magic)) != 0) {
        throw config_error("this is no saved state of a sequence");
    }
    std::memcpy(&head, data, sizeof(head));
    if (head.size != size - sizeof(head)) {
        throw config_error("the saved state has " + std::to_string(size - sizeof(head)) +
            " bytes behind its header, expected " + std::to_string(head.size) + ": it was cut");
    }
    if (head.checksum != hash(data + sizeof(head), size - sizeof(head))) {
        throw config_error("the saved state is damaged: its checksum is another");
    }
    if (head.geometry != hash(geometry.data(), geometry.size())) {
        throw config_error("the saved state belongs to another model, insertion or cache type");
    }
}

} // namespace otter
