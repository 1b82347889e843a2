// How large a JSON schema may be, so that llama.cpp's converter needs neither an hour nor more stack than it is given.

#pragma once

#include "json-schema.h"

namespace otter {

// All throw std::runtime_error with the reason. Before llama.cpp reads the schema: counts and bounds that it would cut off,
// and how many nodes it would build.
void check_numbers(const common_json & schema);
void check_size(const common_json & schema);

// Behind that: objects with many optional properties, which take it the third power of time.
void check_nodes(const common_chat_schema_document & document);

} // namespace otter
