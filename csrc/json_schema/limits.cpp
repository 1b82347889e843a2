#include "limits.h"

#include "gguf/error.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_set>
#include <vector>

namespace otter {

namespace {

constexpr size_t  max_nodes        = 16384;
constexpr size_t  max_references   = 1024; // a chain of them is followed link by link
constexpr size_t  max_optional     = 256;  // of one object: 2,000 take 10 seconds, 4,000 eight times as long
constexpr size_t  max_all_optional = 4096; // of all: 5 seconds, where names are alike
constexpr size_t  max_alike        = 1024; // names that a rule's name does not tell apart, which are numbered one by one
constexpr int64_t max_half_bounded = 1000000000000000; // llama.cpp writes numbers of at most 16 digits
constexpr double  two_to_63        = 9223372036854775808.0;

[[noreturn]] void fail(const std::string & reason) {
    throw std::runtime_error(reason);
}

// Keys whose values are data, whatever they look like.
bool is_data(std::string_view key) {
    return key == "const" || key == "enum" || key == "default" || key == "examples";
}

bool has_type(const common_json & node, const std::string & name) {
    if (!node.contains("type")) {
        return false;
    }
    const common_json & type = node.at("type");
    if (!type.is_array()) {
        return type == name;
    }
    for (const auto & alternative : type) {
        if (alternative == name) {
            return true;
        }
    }
    return false;
}

// llama.cpp would write a repetition that it reads otherwise than it is meant.
void check_order(const common_json & node, const char * least, const char * most) {
    const auto has = [&](const char * key) { return node.contains(key) && node.at(key).is_number(); };
    if (has(least) && has(most) && node.at(least).get<double>() > node.at(most).get<double>()) {
        fail(cat(least, " is ", node.at(least).dump(), ", above ", most, ", which is ", node.at(most).dump()));
    }
}

void check_count(const common_json & node, const char * key) {
    if (!node.contains(key) || !node.at(key).is_number()) {
        return;
    }
    const common_json & value = node.at(key);
    if (!value.is_number_integer() || value.get<double>() < 0.0 || value.get<double>() > double(INT32_MAX)) {
        fail(cat(key, " is ", value.dump(), ", expected a whole number from 0 to ", INT32_MAX));
    }
}

// `beyond`: what an exclusive bound may not be, for the next number is no number of 64 bits.
void check_bound(const common_json & node, const char * key, std::optional<int64_t> beyond = std::nullopt) {
    if (!node.contains(key) || !node.at(key).is_number()) {
        return;
    }
    const common_json & value = node.at(key);
    const double        about = value.get<double>();
    const bool fits = value.is_number_integer() ? (value.get<int64_t>() < 0) == (about < 0) : std::abs(about) < two_to_63;
    if (!fits || (value.is_number_integer() && beyond == value.get<int64_t>())) {
        fail(cat(key, " is ", value.dump(), ", expected a number of 64 bits"));
    }
}

const common_json * resolve(const common_json & root, const std::string & reference) {
    const common_json * target = &root;
    size_t              begin  = reference.find('/');
    while (target != nullptr && begin != std::string::npos) {
        const size_t      end  = reference.find('/', begin + 1);
        const std::string part = reference.substr(begin + 1, end == std::string::npos ? end : end - begin - 1);
        if (target->is_object()) {
            target = target->contains(part) ? &target->at(part) : nullptr;
        } else if (target->is_array() && part.size() < 10 && part.find_first_not_of("0123456789") == std::string::npos) {
            const size_t index = part.empty() ? 0 : std::stoul(part);
            target             = index < target->size() ? &target->at(index) : nullptr;
        } else {
            target = nullptr;
        }
        begin = end;
    }
    return target; // null: llama.cpp has words for it
}

// Each alternative of a list of types is a copy of its node, with all that lies in it.
class node_count {
public:
    void run(const common_json & root) {
        add(count(root));
        while (!open.empty()) {
            const std::string   reference = open.back();
            const common_json * target    = resolve(root, reference);
            open.pop_back();
            add(target == nullptr ? 0 : count(*target));
        }
    }

private:
    std::set<std::string>    seen;
    std::vector<std::string> open;
    size_t                   n_nodes = 0;

    void add(size_t n) {
        n_nodes += n;
        if (n_nodes > max_nodes) {
            fail(cat("more than ", max_nodes, " nodes"));
        }
    }

    size_t count(const common_json & node) {
        size_t n = 0;
        if (node.is_array()) {
            for (const auto & item : node) {
                n += count(item);
            }
        } else if (node.is_object()) {
            n = count_object(node);
        }
        if (n > max_nodes) {
            fail(cat("more than ", max_nodes, " nodes"));
        }
        return n;
    }

    size_t count_object(const common_json & node) {
        size_t n = 1;
        for (const auto & [key, value] : node.items()) {
            if (key == "$ref" && value.is_string()) {
                add_reference(value.get<std::string>());
            } else if (!is_data(key) && key != "$defs" && key != "definitions") {
                n += count(value);
            }
        }
        return node.contains("type") && node.at("type").is_array() ? n * std::max(size_t(1), node.at("type").size()) : n;
    }

    void add_reference(const std::string & reference) {
        if (seen.insert(reference).second) {
            open.push_back(reference);
        }
        if (seen.size() > max_references) {
            fail(cat("more than ", max_references, " values of $ref"));
        }
    }
};

// What becomes of a property's name in the name of a rule.
std::string rule_name(const std::string & property) {
    std::string name;
    for (const char c : property) {
        const bool kept = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || c == '-';
        if (kept) {
            name += c;
        } else if (name.empty() || name.back() != '_') { // a mark that no name keeps
            name += '_';
        }
    }
    std::replace(name.begin(), name.end(), '_', '-');
    return name;
}

// Walks as the converter does: into a reference once, into the objects of an allOf each time.
class document_check {
public:
    void visit(const common_chat_schema & node) {
        if (++n_visits > max_nodes) {
            fail(cat("more than ", max_nodes, " nodes with those that allOf repeats"));
        }
        switch (node.kind()) {
            case common_chat_schema::KIND_REF:     return visit_reference(as<common_chat_schema_ref>(node));
            case common_chat_schema::KIND_ANY_OF:  return visit_all(as<common_chat_schema_any_of>(node).children);
            case common_chat_schema::KIND_TUPLE:   return visit_all(as<common_chat_schema_tuple>(node).items);
            case common_chat_schema::KIND_ARRAY:   return visit(*as<common_chat_schema_array>(node).items);
            case common_chat_schema::KIND_OBJECT:  return visit_object(as<common_chat_schema_object>(node));
            case common_chat_schema::KIND_ALL_OF:  return visit_all_of(as<common_chat_schema_all_of>(node));
            case common_chat_schema::KIND_INTEGER: return check_integer(as<common_chat_schema_integer>(node));
            default:                               return;
        }
    }

private:
    std::unordered_set<std::string> seen;
    size_t                          n_visits       = 0;
    size_t                          n_all_optional = 0;
    size_t                          n_alike        = 0;

    template <class kind>
    static const kind & as(const common_chat_schema & node) {
        return static_cast<const kind &>(node);
    }

    void visit_all(const std::vector<common_chat_schema_ptr> & nodes) {
        for (const auto & node : nodes) {
            visit(*node);
        }
    }

    void visit_reference(const common_chat_schema_ref & node) {
        if (node.target != nullptr && seen.insert(node.ref).second) {
            visit(*node.target);
        }
    }

    void visit_object(const common_chat_schema_object & node) {
        size_t n_optional = node.additional_properties != nullptr;
        for (const auto & property : node.properties) {
            n_optional += !property.required;
        }
        check_optional(n_optional);
        visit_properties(node);
        if (node.additional_properties != nullptr) {
            visit(*node.additional_properties);
        }
    }

    // Its objects become one, whose properties are optional where they come from an anyOf.
    void visit_all_of(const common_chat_schema_all_of & node) {
        size_t n_optional = 0;
        for (const auto & child : node.children) {
            if (child->kind() == common_chat_schema::KIND_ANY_OF) {
                for (const auto & alternative : as<common_chat_schema_any_of>(*child).children) {
                    n_optional += visit_part(*alternative);
                }
            } else {
                visit_part(*child);
            }
        }
        check_optional(n_optional);
    }

    // An object or a reference to one; how many properties it has.
    size_t visit_part(const common_chat_schema & part) {
        const common_chat_schema * node = &part;
        for (size_t n = 0; node != nullptr && node->kind() == common_chat_schema::KIND_REF; ++n) {
            if (n > max_references) {
                fail("a $ref in allOf leads back to itself");
            }
            node = as<common_chat_schema_ref>(*node).target;
        }
        if (node == nullptr || node->kind() != common_chat_schema::KIND_OBJECT) {
            return 0;
        }
        visit_properties(as<common_chat_schema_object>(*node));
        return as<common_chat_schema_object>(*node).properties.size();
    }

    void visit_properties(const common_chat_schema_object & node) {
        std::unordered_set<std::string> names;
        for (const auto & property : node.properties) {
            n_alike += !names.insert(rule_name(property.name)).second;
            visit(*property.schema);
        }
        if (n_alike > max_alike) {
            fail(cat("more than ", max_alike, " names of properties with the same letters a-z and digits"));
        }
    }

    void check_optional(size_t n_optional) {
        if (n_optional > max_optional) {
            fail(cat("an object of ", n_optional, " optional properties, expected at most ", max_optional,
                ": name others in required"));
        }
        n_all_optional += n_optional;
        if (n_all_optional > max_all_optional) {
            fail(cat("more than ", max_all_optional, " optional properties: name others in required"));
        }
    }

    static void check_integer(const common_chat_schema_integer & node) {
        if (node.maximum == INT64_MAX && node.minimum >= max_half_bounded) {
            fail(cat("minimum is ", node.minimum, " and there is no maximum, expected a minimum below ", max_half_bounded));
        }
        if (node.minimum == INT64_MIN && node.maximum <= -max_half_bounded) {
            fail(cat("maximum is ", node.maximum, " and there is no minimum, expected a maximum above ", -max_half_bounded));
        }
    }
};

} // namespace

void check_numbers(const common_json & schema) {
    if (!schema.is_object() && !schema.is_array()) {
        return;
    }
    if (schema.is_array()) {
        for (const auto & item : schema) {
            check_numbers(item);
        }
        return;
    }
    for (const char * key : { "minItems", "maxItems", "minLength", "maxLength" }) {
        check_count(schema, key);
    }
    check_order(schema, "minItems", "maxItems");
    check_order(schema, "minLength", "maxLength");
    if (has_type(schema, "integer")) {
        check_bound(schema, "minimum");
        check_bound(schema, "maximum");
        check_bound(schema, "exclusiveMinimum", INT64_MAX);
        check_bound(schema, "exclusiveMaximum", INT64_MIN);
    }
    for (const auto & [key, value] : schema.items()) {
        if (!is_data(key)) {
            check_numbers(value);
        }
    }
}

void check_size(const common_json & schema) {
    node_count().run(schema);
}

void check_nodes(const common_chat_schema_document & document) {
    document_check().visit(*document.root);
}

} // namespace otter
