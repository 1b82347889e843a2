// What the samplers and the guidance ask of a row of logits, in one or two passes and without a copy of it.

#pragma once

#include <cstdint>
#include <utility>
#include <vector>

namespace otter {

using candidate = std::pair<int32_t, float>; // token, logit

// The k best of n tokens by logit, or by logit + bonus (n, or null); best first, equal ones: lower token first. Minus
// infinity and NaN are never among them. The logits are without the bonus.
std::vector<candidate> best_tokens(const float * logits, const float * bonus, int32_t n, int32_t k);

// ConfigError unless 1 <= k <= n.
void check_k(int32_t k, int32_t n);

// ln of the sum of exp(logits); minus infinity if all are. ConfigError on NaN or plus infinity.
double log_sum_exp(const float * logits, int32_t n);

// Of softmax(logits), in nats. ConfigError also if all logits are minus infinity.
double entropy(const float * logits, int32_t n);

} // namespace otter
