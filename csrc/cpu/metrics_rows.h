// The sweep that fills RowMetrics, once the log-sum-exps are known.
#pragma once

#include "top_k.h"

namespace fastdistill {
namespace {

/// The first index of the largest element seen so far.
struct Argmax {
  double max = -__builtin_inf();
  int64_t index = -1;

  template <class S>
  FD_INLINE void push(const S* x, int64_t n, int64_t start, double tile_max) {
    if (!(tile_max > max)) return;
    max = tile_max;
    index = start;
    for (int64_t i = 0; i < n && static_cast<double>(x[i]) != tile_max; ++i) index = start + i + 1;
  }
};

/// Metrics of a row whose teacher is known at every token.
template <class S>
RowMetrics sweep_dense_metrics(const RowReader<S>& row, const RowStats& stats, Tile<S>& tile) {
  using V = typename Arithmetic<S>::Value;
  RowMetrics sums{};
  Argmax student, teacher;
  row.for_each_tile(tile, [&](int64_t start, int64_t n, TilePair tile_max) {
    const TileTokens<false, S> tokens(tile, stats, {}, start);
    Observed<V> total{V(0.0), V(0.0), V(0.0), V(0.0), V(0.0)};
    for_each_vector<S>(n, [&](int64_t i) {
      const Observed<V> token = observe(tokens(i));
      total.forward_kl = total.forward_kl + token.forward_kl;
      total.reverse_kl = total.reverse_kl + token.reverse_kl;
      total.overlap = total.overlap + token.overlap;
      total.student_entropy = total.student_entropy + token.student_entropy;
      total.teacher_entropy = total.teacher_entropy + token.teacher_entropy;
    });
    sums.forward_kl += sum_lanes(total.forward_kl);
    sums.reverse_kl += sum_lanes(total.reverse_kl);
    sums.acceptance_rate += sum_lanes(total.overlap);
    sums.student_entropy += sum_lanes(total.student_entropy);
    sums.teacher_entropy += sum_lanes(total.teacher_entropy);
    student.push(tile.student, n, start, tile_max.student);
    teacher.push(tile.teacher, n, start, tile_max.teacher);
  });
  // In a row that is NaN nothing is the largest.
  sums.top1_agreement = (student.index == teacher.index ? 1.0 : 0.0) + 0.0 * sums.acceptance_rate;
  return sums;
}

/// Metrics of a row of a top-k teacher: the student over its whole vocabulary and on the list,
/// whose x is in listed.x.
template <class S>
RowMetrics sweep_listed_metrics(const RowProblem& problem, int64_t row, const Listed<S>& listed,
                                Tile<S>& tile) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  OnlineSoftmax<double> state;  // with the moment E_q[x]
  for (int64_t start = 0; start < problem.vocab; start += kTile) {
    const int64_t n = problem.vocab - start < kTile ? problem.vocab - start : kTile;
    const double tile_max =
        load_tile(problem.student, problem.temperature, row, start, n, tile.student);
    const V shift(state.raise(tile_max));
    V sum(0.0), moment(0.0);
    for_each_vector<S>(n, [&](int64_t i) {
      const V x = A::load_from(tile.student + i), q = exp(x - shift);
      sum = sum + q;
      moment = moment + weighted(q, x);
    });
    state.add(sum_lanes(sum), sum_lanes(moment));
  }
  RowMetrics metrics{};
  metrics.student_entropy = state.lse() - state.mean();
  for (int64_t e = 0; e < listed.count; ++e) {
    metrics.teacher_mass += exp(static_cast<double>(listed.log_p[e]));
    metrics.student_mass += exp(static_cast<double>(listed.x[e]) - state.lse());
  }
  return metrics;
}

}  // namespace
}  // namespace fastdistill
