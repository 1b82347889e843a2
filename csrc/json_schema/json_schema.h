// From a JSON schema to a grammar, by llama.cpp's own code.

#pragma once

#include "engine/watch.h"

#include <string>

namespace otter {

// The grammar (GBNF) of the JSON texts that fit the schema. ConfigError on text that is no JSON, on a schema that llama.cpp's
// converter refuses, and on one that it would not survive (limits.h).
std::string json_schema_to_grammar(const std::string & schema, const stop_function & stop);

} // namespace otter
