// Kinds of heads: the one list of this side. The other is otter_gguf/heads, one file a kind.

#pragma once

#include <cstdint>

namespace otter {

// Every head is a product with the final state in the graph; its outputs are a part of the rows that leave it.
struct head_kind {
    const char * name;          // as HeadKind.native in Python
    const char * table;         // its token table, `cls.<table>.{name}.otter.weight` [rank, V], is in no graph; null = none
    bool         gives_rewards; // its outputs, calibrated, are rewards of the token, one a label

    int32_t (*n_outputs)(int32_t n_labels, int32_t rank);
};

constexpr int32_t one_a_label(int32_t n_labels, int32_t /* rank */) {
    return n_labels;
}

// A query, from which every next token is scored with its row of the table: <query[0 .. rank - 1], row> + query[rank].
constexpr int32_t one_query(int32_t /* n_labels */, int32_t rank) {
    return rank + 1;
}

inline constexpr head_kind head_kinds[] = {
    { "value", nullptr, true, one_a_label },
    { "vocabulary", "table", false, one_query },
};

} // namespace otter
