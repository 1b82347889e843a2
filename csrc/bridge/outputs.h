// The memory that llama.cpp writes logits and rows of rewards into.

#pragma once

#include "bridge/insertion.h"

#include "llama.h"

#include <memory>

namespace otter {

// To be called before a decode, by who still has a view of the last one's logits. Where the decode needs more room than
// there is, llama.cpp would free the memory: it is returned instead, and lives as long as what is returned; else null.
std::shared_ptr<void> take_outputs(llama_context * ctx, int32_t n_outputs, reward_mode mode);

} // namespace otter
