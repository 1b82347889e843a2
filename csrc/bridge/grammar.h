// What llama.cpp does not check of a grammar, or tells nobody but the terminal.

#pragma once

#include "llama.h"

#include <string>

namespace otter {

// ConfigError, with the reason, unless llama.cpp's grammar sampler takes this text (GBNF with a rule `root`) and can
// work with it.
void check_grammar(const llama_vocab * vocab, const std::string & text);

} // namespace otter
