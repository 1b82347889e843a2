// Kinds of heads: the one list of this side. The other is otter_gguf/heads, one file a kind.

#pragma once

#include <cstdint>

namespace otter {

// What becomes of the outputs outside the graph, with the head's calibration.
enum class head_output {
    rewards, // of the token, one a label
    scores,  // of every next token, with its row of the table
};

// Every head is a product with the final state in the graph; its outputs are a part of the rows that leave it.
struct head_kind {
    const char * name;   // as HeadKind.native in Python
    head_output  output;
    const char * table;  // its token table, `cls.<table>.{name}.otter.weight` [rank, V], is in no graph; null = none

    int32_t (*n_outputs)(int32_t n_labels, int32_t rank);
};

constexpr int32_t one_a_label(int32_t n_labels, int32_t /* rank */) {
    return n_labels;
}

// A query: the raw score of a token is <query[0 .. rank - 1], its row of the table> + query[rank].
constexpr int32_t one_query(int32_t /* n_labels */, int32_t rank) {
    return rank + 1;
}

inline constexpr head_kind head_kinds[] = {
    { "value", head_output::rewards, nullptr, one_a_label },
    { "vocabulary", head_output::scores, "table", one_query },
};

} // namespace otter
