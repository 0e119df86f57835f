// Rows whose teacher is given by logits.
#pragma once

#include "row.cuh"

namespace fastdistill {

/// Chunks of both sides of a slice.
template <class Format>
struct DenseReader {
  using S = typename Format::Arithmetic;
  static constexpr bool kSumsToOne = true;
  const Slice<Format>& slice;
  RowOfLogits<Format> student, teacher;
  Factors<S> factors;

  FD_DEVICE DenseReader(const Slice<Format>& slice, const RowOfLogits<Format> (&rows)[2])
      : slice(slice), student(rows[0]), teacher(rows[1]), factors{student.factor, teacher.factor} {}

  template <class F>
  FD_DEVICE void for_each_chunk(F f) const {
    slice.for_each_chunk([&](int first) {
      Chunk<S> y;
      student.load(first, slice.end, y.student);
      teacher.load(first, slice.end, y.teacher);
      f(first, y);
    });
  }
};

/// The first index of the largest element.
template <class S>
struct Argmax {
  S max = S(-__builtin_inf());
  int index = INT32_MAX;

  FD_DEVICE void push(S x, int i) {
    if (x > max) {
      max = x;
      index = i;
    }
  }
};

/// The index of the largest element of the row, the first of equals; for two rows at a time.
template <class S>
FD_DEVICE bool same_argmax(Reducer& reducer, const Argmax<S>& a, const Argmax<S>& b) {
  double maxima[2] = {static_cast<double>(a.max), static_cast<double>(b.max)};
  reducer.all<Max>(maxima);
  const auto candidate = [](const Argmax<S>& own, double best) {
    return static_cast<double>(own.max) == best ? -static_cast<double>(own.index)
                                                : -__builtin_inf();
  };
  double first[2] = {candidate(a, maxima[0]), candidate(b, maxima[1])};
  reducer.all<Max>(first);
  return first[0] == first[1];
}

template <class S, class Reader>
FD_DEVICE RowMetrics sweep_dense_metrics(const Reader& reader, Reducer& reducer,
                                         const RowStats& stats) {
  const Tokens<S> tokens(reader.factors, stats);
  Observed<S> total{S(0), S(0), S(0), S(0), S(0)};
  Argmax<S> student, teacher;
  reader.for_each_chunk([&](int first, const auto& y) {
    for (int j = 0; j < y.kSize; ++j) {
      const Observed<S> token = observe(tokens(y, j));
      total.forward_kl += token.forward_kl;
      total.reverse_kl += token.reverse_kl;
      total.overlap += token.overlap;
      total.student_entropy += token.student_entropy;
      total.teacher_entropy += token.teacher_entropy;
      student.push(y.student[j], first + j);
      teacher.push(y.teacher[j], first + j);
    }
  });
  double sums[] = {static_cast<double>(total.forward_kl), static_cast<double>(total.reverse_kl),
                   static_cast<double>(total.overlap), static_cast<double>(total.student_entropy),
                   static_cast<double>(total.teacher_entropy)};
  reducer.all<Add>(sums);
  RowMetrics metrics{};
  metrics.forward_kl = sums[0];
  metrics.reverse_kl = sums[1];
  metrics.acceptance_rate = sums[2];
  metrics.student_entropy = sums[3];
  metrics.teacher_entropy = sums[4];
  // In a row that is NaN nothing is the largest.
  metrics.top1_agreement =
      (same_argmax(reducer, student, teacher) ? 1.0 : 0.0) + 0.0 * metrics.acceptance_rate;
  return metrics;
}

template <class D, class Format>
FD_DEVICE void dense_row(const D& divergence, Row<Format>& row) {
  using S = typename Format::Arithmetic;
  const RowProblem& problem = row.problem;
  Reducer& reducer = row.reducer;
  RowOfLogits<Format> rows[] = {row.student, RowOfLogits<Format>(row.prepared.teacher, row.index)};
  row.slice.fetch(rows);
  const DenseReader<Format> reader(row.slice, rows);
  if (row.wants_values()) {
    const double logit = row.label_logit();
    const Statistics found =
        sweep_moments<D, S>(reader, reducer, problem.temperature, row.has_label());
    row.stats.student_lse = found.student_lse;
    row.stats.teacher_lse = found.teacher_lse;
    row.stats.hard_lse = found.hard_lse;
    const double soft = measure<D, S>(divergence, reader, reducer, found, row.stats);
    row.write_values(soft, logit);
    if (row.wants_metrics()) {
      row.write_metrics(sweep_dense_metrics<S>(reader, reducer, row.stats));
    }
  }
  row.leave_others();
  if (row.wants_gradient()) store_full_gradient(divergence, row, reader);
}

template <class D, class Format>
__global__ void FD_LAUNCH_BOUNDS(Format) dense_kernel(const Task<D> task) {
  run_row<Format>(task, [&](Row<Format>& row, char*) { dense_row(task.divergence, row); });
}

}  // namespace fastdistill
