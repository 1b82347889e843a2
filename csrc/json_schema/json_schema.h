// From a JSON schema to a grammar, by llama.cpp's own code.

#pragma once

#include <string>

namespace otter {

// The grammar (GBNF) of the JSON texts that fit the schema. ConfigError on text that is no JSON, and on a schema that
// llama.cpp's converter refuses.
std::string json_schema_to_grammar(const std::string & schema);

} // namespace otter
