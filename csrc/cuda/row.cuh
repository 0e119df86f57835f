// One row of a problem: what is known of it, and how its results leave.
#pragma once

#include "../row_math.h"
#include "sweeps.cuh"

namespace fastdistill {

/// A problem with the divergence that belongs to it; passed to a kernel by value.
template <class D>
struct Task {
  RowProblem problem;
  D divergence;
};

template <class S>
struct Row {
  const RowProblem& problem;
  const Team& team;
  Reducer& reducer;
  int64_t index;
  RowOfLogits<S> student;
  RowStats stats{};

  FD_DEVICE Row(const RowProblem& problem, const Team& team, Reducer& reducer)
      : problem(problem),
        team(team),
        reducer(reducer),
        index(team.row()),
        student(problem.student, index, problem.temperature) {
    if (!wants_values()) stats = problem.stats[index];
  }

  FD_DEVICE bool counted() const { return problem.counted == nullptr || problem.counted[index]; }
  FD_DEVICE bool has_label() const { return problem.labels != nullptr; }
  FD_DEVICE int64_t label() const { return problem.labels[index]; }
  FD_DEVICE bool label_is_valid() const { return 0 <= label() && label() < problem.vocab; }
  FD_DEVICE bool wants_values() const { return problem.mode != Mode::kBackward; }
  FD_DEVICE bool wants_gradient() const { return problem.mode != Mode::kForward; }
  FD_DEVICE bool wants_metrics() const { return problem.metrics != nullptr; }

  /// The label's logit, to be read before a gradient may take its place; NaN for a label that does
  /// not exist: without looking at data the host cannot refuse it.
  FD_DEVICE double label_logit() const {
    if (!wants_values() || !has_label()) return 0.0;
    if (!label_is_valid()) return __builtin_nan("");
    const RowOfLogits<S> at_one(problem.student, index, 1.0);
    return static_cast<double>(at_one.load_one(label()));
  }

  FD_DEVICE void write_values(double soft, double label_logit) const {
    if (!team.leads()) return;
    problem.soft[index] = soft;
    if (has_label()) problem.hard[index] = stats.hard_lse - label_logit;
    if (problem.stats != nullptr) problem.stats[index] = stats;
  }
  FD_DEVICE void write_metrics(const RowMetrics& metrics) const {
    if (team.leads()) problem.metrics[index] = metrics;
  }
};

/// Completes gradients by x with the hard-label part, and stores them as gradients by the logits.
template <class S>
class GradientWriter {
 public:
  FD_DEVICE explicit GradientWriter(const Row<S>& row)
      : row_(row),
        to_(row.problem.gradient, row.index, 1.0),
        temperature_(row.problem.temperature),
        into_tanh_(row.problem.student.softcap == 0.0
                       ? 0.0
                       : row.problem.temperature / row.problem.student.softcap),
        hard_weight_(hard_weight(row)),
        log_hard_(row.stats.hard_lse),
        label_(row.has_label() ? row.label() : -1) {}

  /// What multiplies dD/dx.
  FD_DEVICE S soft_weight() const {
    return S(by_stored_logit(row_.problem, row_.problem.grad_soft[row_.index]));
  }

  FD_DEVICE S complete(int64_t i, S x, S soft) const {
    if (row_.has_label()) {
      soft += hard_weight_ * exp(log_hard_(x * temperature_));
      if (i == label_) soft -= hard_weight_;
    }
    return soft * row_.student.through_softcap(x, into_tanh_);
  }
  FD_DEVICE void complete(int64_t first, const S (&x)[kChunk<S>], S (&soft)[kChunk<S>]) const {
    for (int j = 0; j < kChunk<S>; ++j) soft[j] = complete(first + j, x[j], soft[j]);
  }

  FD_DEVICE void store(int64_t first, const S (&gradient)[kChunk<S>]) const {
    to_.store(first, row_.problem.vocab, gradient);
  }
  FD_DEVICE void store_one(int64_t i, S gradient) const { to_.store_one(i, gradient); }

  /// Zeroes columns [start, gradient_width).
  FD_DEVICE void zero_from(int64_t start) const {
    for (int64_t i = start + row_.team.index(); i < row_.problem.gradient_width;
         i += row_.team.size()) {
      to_.store_one(i, S(0));
    }
  }

 private:
  /// A label that does not exist leaves no gradient of the row standing, as it leaves no value.
  static FD_DEVICE double hard_weight(const Row<S>& row) {
    if (!row.has_label()) return 0.0;
    if (!row.label_is_valid()) return __builtin_nan("");
    const RowProblem& problem = row.problem;
    return by_stored_logit(problem, problem.grad_hard[row.index]) * problem.temperature;
  }

  const Row<S>& row_;
  RowOfLogits<S> to_;
  S temperature_, into_tanh_, hard_weight_;
  Normalizer<S> log_hard_;
  int64_t label_;
};

/// weight dD/dx of one token.
template <class D, class S>
FD_DEVICE S divergence_gradient(const D& divergence, const Token<S>& token, const RowStats& stats,
                                S weight) {
  return weight * gradient_of(divergence, token, S(stats.slope), S(stats.log_sum));
}

/// The gradient of a row whose teacher is known at every token.
template <class D, class S, class Reader>
FD_DEVICE void store_full_gradient(const D& divergence, const Row<S>& row, const Reader& reader) {
  const GradientWriter<S> writer(row);
  const Tokens<S> tokens(row.stats);
  const S weight = writer.soft_weight();
  reader.for_each_chunk([&](int64_t first, const Chunk<S>& x) {
    S gradient[kChunk<S>];
    for (int j = 0; j < kChunk<S>; ++j) {
      gradient[j] = divergence_gradient(divergence, tokens(x, j), row.stats, weight);
    }
    writer.complete(first, x.student, gradient);
    writer.store(first, gradient);
  });
}

template <class S>
FD_DEVICE void skip_row(const Row<S>& row) {
  if (row.wants_values() && row.team.leads()) {
    const RowProblem& problem = row.problem;
    problem.soft[row.index] = 0.0;
    if (row.has_label()) problem.hard[row.index] = 0.0;
    if (problem.stats != nullptr) problem.stats[row.index] = RowStats{};
    if (row.wants_metrics()) problem.metrics[row.index] = RowMetrics{};
  }
  if (row.wants_gradient()) GradientWriter<S>(row).zero_from(0);
}

/// The frame of a kernel: f(row, the shared memory that is left) for a row that counts.
template <class S, class D, class F>
FD_DEVICE void run_row(const Task<D>& task, F f) {
  const Team team;
  Reducer reducer(team, shared_memory());
  Row<S> row(task.problem, team, reducer);
  if (!row.counted()) return skip_row(row);
  f(row, shared_memory() + Reducer::kBytes);
  if (row.wants_gradient()) GradientWriter<S>(row).zero_from(task.problem.vocab);
  reducer.finish();
}

}  // namespace fastdistill
