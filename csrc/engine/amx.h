// Intel's AMX between ggml and other libraries of the process.

#pragma once

namespace otter {

// Around ggml's work in the thread that calls it. ggml configures the tiles once a thread; another library may release
// them there (PyTorch's oneDNN does so after each kernel), and ggml's next tile instruction would be SIGILL. The tiles
// are given back as ggml left them in this thread. Nothing where there is no AMX.
class amx_tiles {
public:
    amx_tiles();
    ~amx_tiles();

    amx_tiles(const amx_tiles &)             = delete;
    amx_tiles & operator=(const amx_tiles &) = delete;
};

} // namespace otter
