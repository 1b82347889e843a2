#include "json_schema.h"

#include "engine/fail.h"

#include "json-schema-to-grammar.h"

#include <algorithm>

namespace otter {

namespace {

// llama.cpp's converter calls itself for each level, and std::regex itself for each character of a property's name. The
// stack of a thread may be no more than half a megabyte.
constexpr int    max_nesting = 64;
constexpr size_t max_name    = 512;
constexpr size_t max_bytes   = size_t(1) << 20;

otter_error refuse(const std::string & reason) {
    return config_error("the JSON schema is wrong: " + reason);
}

// Depth and names, before any parser runs. Up to the first mistake this reads the text as a JSON parser does.
void check_shape(const std::string & text) {
    if (text.size() > max_bytes) {
        throw refuse(std::to_string(text.size()) + " bytes, at most " + std::to_string(max_bytes) + " are taken");
    }
    int depth = 0;
    for (size_t i = 0; i < text.size(); ++i) {
        const char c = text[i];
        if (c == '"') {
            const size_t begin = i;
            for (++i; i < text.size() && text[i] != '"'; ++i) { // to its end
                i += text[i] == '\\';
            }
            const size_t behind = text.find_first_not_of(" \t\r\n", i + 1);
            if (i - begin > max_name && behind != std::string::npos && text[behind] == ':') {
                throw refuse("a property's name of more than " + std::to_string(max_name) + " bytes");
            }
        }
        depth += (c == '{' || c == '[') - (c == '}' || c == ']');
        if (depth > max_nesting) {
            throw refuse("more than " + std::to_string(max_nesting) + " levels deep");
        }
    }
}

// llama.cpp's reason without its heading, in one line.
std::string one_line(std::string reason) {
    const std::string heading = "JSON schema conversion failed:\n";
    if (reason.compare(0, heading.size(), heading) == 0) {
        reason.erase(0, heading.size());
    }
    const std::string promise = ", accepting any string"; // strings.cpp keeps it from being kept
    for (size_t at; (at = reason.find(promise)) != std::string::npos;) {
        reason.erase(at, promise.size());
    }
    std::replace(reason.begin(), reason.end(), '\n', ' ');
    return reason;
}

} // namespace

std::string json_schema_to_grammar(const std::string & schema) {
    check_shape(schema);
    try {
        return ::json_schema_to_grammar(common_json::parse(schema), true);
    } catch (const std::exception & error) {
        throw refuse(one_line(error.what()));
    }
}

} // namespace otter
