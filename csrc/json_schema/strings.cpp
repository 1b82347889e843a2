// What llama.cpp's JSON schema code calls of llama.cpp's common.cpp, which would bring much else along.

#include "common.h"

#include <stdexcept>

std::string string_join(const std::vector<std::string> & values, const std::string & separator) {
    std::string joined;
    for (size_t i = 0; i < values.size(); ++i) {
        joined += (i > 0 ? separator : "") + values[i];
    }
    // Only the list of what a grammar leaves out of its schema is joined so. llama.cpp would print it and go on with a
    // grammar that accepts texts which the schema does not.
    if (separator == "; ") {
        throw std::invalid_argument(joined);
    }
    return joined;
}

std::vector<std::string> string_split(const std::string & text, const std::string & delimiter) {
    std::vector<std::string> parts;
    size_t                   begin = 0;
    for (size_t end; (end = text.find(delimiter, begin)) != std::string::npos; begin = end + delimiter.size()) {
        parts.push_back(text.substr(begin, end - begin));
    }
    parts.push_back(text.substr(begin));
    return parts;
}

std::string string_repeat(const std::string & text, size_t n) {
    std::string repeated;
    for (size_t i = 0; i < n; ++i) {
        repeated += text;
    }
    return repeated;
}
