// Rows whose teacher is given by logits.
#pragma once

#include "row.cuh"

namespace fastdistill {

/// Chunks of both sides, read from memory.
template <class S>
struct DenseReader {
  const Team& team;
  const RowOfLogits<S>& student;
  RowOfLogits<S> teacher;
  int64_t vocab;

  template <class F>
  FD_DEVICE void for_each_chunk(F f) const {
    const int64_t step = team.size() * kChunk<S>;
    for (int64_t first = team.index() * kChunk<S>; first < vocab; first += step) {
      Chunk<S> x;
      student.load(first, vocab, x.student);
      teacher.load(first, vocab, x.teacher);
      f(first, x);
    }
  }
};

/// The first index of the largest element.
template <class S>
struct Argmax {
  S max = S(-__builtin_inf());
  int64_t index = INT64_MAX;

  FD_DEVICE void push(S x, int64_t i) {
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
  reducer.all(maxima, Max());
  const auto candidate = [](const Argmax<S>& own, double best) {
    return static_cast<double>(own.max) == best ? -static_cast<double>(own.index)
                                                : -__builtin_inf();
  };
  double first[2] = {candidate(a, maxima[0]), candidate(b, maxima[1])};
  reducer.all(first, Max());
  return first[0] == first[1];
}

template <class S, class Reader>
FD_DEVICE RowMetrics sweep_dense_metrics(const Reader& reader, Reducer& reducer,
                                         const RowStats& stats) {
  const Tokens<S> tokens(stats);
  Observed<S> total{S(0), S(0), S(0), S(0), S(0)};
  Argmax<S> student, teacher;
  reader.for_each_chunk([&](int64_t first, const Chunk<S>& x) {
    for (int j = 0; j < kChunk<S>; ++j) {
      const Observed<S> token = observe(tokens(x, j));
      total.forward_kl += token.forward_kl;
      total.reverse_kl += token.reverse_kl;
      total.overlap += token.overlap;
      total.student_entropy += token.student_entropy;
      total.teacher_entropy += token.teacher_entropy;
      student.push(x.student[j], first + j);
      teacher.push(x.teacher[j], first + j);
    }
  });
  double sums[] = {static_cast<double>(total.forward_kl), static_cast<double>(total.reverse_kl),
                   static_cast<double>(total.overlap), static_cast<double>(total.student_entropy),
                   static_cast<double>(total.teacher_entropy)};
  reducer.all(sums, Add());
  RowMetrics metrics{};
  metrics.forward_kl = sums[0];
  metrics.reverse_kl = sums[1];
  metrics.acceptance_rate = sums[2];
  metrics.student_entropy = sums[3];
  metrics.teacher_entropy = sums[4];
  metrics.top1_agreement = same_argmax(reducer, student, teacher) ? 1.0 : 0.0;
  return metrics;
}

template <class D, class S>
FD_DEVICE void dense_row(const D& divergence, Row<S>& row) {
  const RowProblem& problem = row.problem;
  Reducer& reducer = row.reducer;
  const DenseReader<S> reader{row.team, row.student,
                              RowOfLogits<S>(problem.teacher, row.index, problem.temperature),
                              problem.vocab};
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
  if (row.wants_gradient()) store_full_gradient(divergence, row, reader);
}

template <class D, class S>
__global__ void __launch_bounds__(kMostThreads, kLeastBlocks) dense_kernel(const Task<D> task) {
  run_row<S>(task, [&](Row<S>& row, char*) { dense_row(task.divergence, row); });
}

}  // namespace fastdistill
