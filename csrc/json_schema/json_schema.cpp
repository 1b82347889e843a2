#include "json_schema.h"

#include "engine/fail.h"
#include "limits.h"

#include "json-schema-to-grammar.h"

#include <algorithm>

namespace otter {

namespace {

// llama.cpp's converter calls itself for each level and each link of a chain of references, some 3 kB a time, and
// std::regex itself for each character of a name. limits.h bounds the rest.
constexpr int    max_nesting   = 64;
constexpr size_t max_name      = 512;
constexpr size_t max_bytes     = size_t(1) << 20;
constexpr size_t n_stack_bytes = size_t(64) << 20; // of address space; what is used is memory

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

// llama.cpp's reason without its heading, in one line, and no longer than a reader reads: it repeats names and patterns.
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
    constexpr size_t enough = 300;
    if (reason.size() > enough) {
        const auto begins = [](char c) { return (uint8_t(c) & 0xc0) != 0x80; };
        reason.erase(std::find_if(reason.begin() + enough, reason.end(), begins), reason.end());
        reason += " ...";
    }
    return reason;
}

} // namespace

static std::string convert(const std::string & text) {
    const common_json schema = common_json::parse(text);
    check_numbers(schema);
    check_size(schema);
    const common_chat_schema_document document = common_chat_schema_from_json(schema);
    check_nodes(document);
    return ::json_schema_to_grammar(document);
}

std::string json_schema_to_grammar(const std::string & schema, const stop_function & stop) {
    check_shape(schema);
    std::string grammar;
    try {
        run_on_stack(n_stack_bytes, [&](const stop_function &) { grammar = convert(schema); }, stop);
    } catch (const otter_error &) {
        throw;
    } catch (const std::exception & error) {
        throw refuse(one_line(error.what()));
    }
    return grammar;
}

} // namespace otter
