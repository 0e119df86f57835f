// What a row kernel of any backend computes once per row.
#pragma once

#include "row_problem.h"
#include "scalar_math.h"

namespace fastdistill {

/// By a stored logit z, dx/dz = scale/T (1 - tanh^2), tanh = x T / softcap. The constant part
/// multiplies the upstream gradients of the row.
FD_INLINE double by_stored_logit(const RowProblem& problem, double upstream) {
  return upstream * problem.student.scale / problem.temperature;
}

/// log-probability of each unlisted token under kZero and kUniform, of `listed` listed ones.
FD_INLINE double unlisted_log_prob(const RowProblem& problem, int64_t row, int64_t listed) {
  if (problem.top_k.tail == Tail::kZero || listed == problem.vocab) return -__builtin_inf();
  return problem.top_k.tail_log_prob[row] - log(static_cast<double>(problem.vocab - listed));
}

/// The value for a teacher as it was given. The normalised form adds balance * sum(q - p), which is
/// not zero where p does not sum to one: cut off, or stored with few bits beside its tail mass.
/// `mass` is that of the `listed` listed tokens.
FD_INLINE double value_as_given(const RowProblem& problem, int64_t row, double balance,
                                double value, int64_t listed, double mass) {
  const TopK& top_k = problem.top_k;
  if (top_k.sums_to_one) return max(value, 0.0);
  double missing = 1.0 - mass;
  if (top_k.tail != Tail::kZero && listed < problem.vocab) {
    missing -= exp(top_k.tail_log_prob[row]);
  }
  return value - balance * missing;
}

}  // namespace fastdistill
