#include "amx.h"

#if defined(__x86_64__) && defined(__GNUC__) && __has_include(<amxtileintrin.h>)
#    include <cpuid.h>
#    include <immintrin.h>
#    include <cstdint>

namespace otter {

namespace {

struct alignas(64) tile_config {
    uint8_t palette; // 0 = released
    uint8_t rest[63];
};

thread_local tile_config as_ggml_left_it = {};

// By processor and system: without the latter's part of XCR0 the instructions do not exist.
bool find_amx() {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || (ecx & bit_OSXSAVE) == 0) {
        return false;
    }
    constexpr unsigned bit_amx_tile = 1u << 24;
    if (!__get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) || (edx & bit_amx_tile) == 0) {
        return false;
    }
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    constexpr unsigned tile_states = 3u << 17;
    return (low & tile_states) == tile_states;
}

const bool has_amx = find_amx();

__attribute__((target("amx-tile"))) void load(const tile_config & config) {
    _tile_loadconfig(&config);
}

__attribute__((target("amx-tile"))) void store(tile_config & config) {
    _tile_storeconfig(&config);
}

} // namespace

amx_tiles::amx_tiles() {
    if (as_ggml_left_it.palette != 0) {
        load(as_ggml_left_it);
    }
}

amx_tiles::~amx_tiles() {
    if (has_amx) {
        store(as_ggml_left_it);
    }
}

} // namespace otter

#else

namespace otter {

amx_tiles::amx_tiles() {}
amx_tiles::~amx_tiles() {}

} // namespace otter

#endif
