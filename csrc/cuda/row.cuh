// One row of a problem: what is known of it, and how its results leave.
#pragma once

#include "../row_math.h"
#include "sweeps.cuh"

namespace fastdistill {

/// The shared memory that every row kernel needs.
template <class Format>
inline constexpr int kFrameBytes = Reducer::kBytes + Slice<Format>::kArrivalBytes;

/// A problem as the host prepares it, once for all rows.
struct Prepared {
  RowProblem problem;
  Split split;
  Side student, teacher, gradient;
  double by_logit;  // dx/dz but for a softcap's part

  Prepared(const RowProblem& problem, const Split& split)
      : problem(problem),
        split(split),
        student(problem.student, problem.temperature),
        teacher(problem.teacher, problem.temperature),
        gradient(problem.gradient, 1.0),
        by_logit(by_stored_logit(problem, 1.0)) {}
};

/// A problem with the divergence that belongs to it; passed to a kernel by value.
template <class D>
struct Task {
  Prepared prepared;
  D divergence;
};

template <class Format>
struct Row {
  using S = typename Format::Arithmetic;

  const Prepared& prepared;
  const RowProblem& problem;
  const Team& team;
  Reducer& reducer;
  Slice<Format>& slice;
  int64_t index;
  int vocab;
  RowOfLogits<Format> student;
  RowStats stats{};

  FD_DEVICE Row(const Prepared& prepared, const Team& team, Reducer& reducer, Slice<Format>& slice)
      : prepared(prepared),
        problem(prepared.problem),
        team(team),
        reducer(reducer),
        slice(slice),
        index(team.row()),
        vocab(static_cast<int>(problem.vocab)),
        student(prepared.student, index) {
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
    // By the factor of the sum, rounded like it: nothing is left over at a label that is certain.
    const S by_hard = student.factor * S(problem.temperature);
    return static_cast<double>(student.load_one(static_cast<int>(label()))) *
           static_cast<double>(by_hard);
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

  /// From here on this thread reads nothing that is another block's: neither its shared memory nor
  /// its part of the row, which a gradient may overwrite. Every block of a row that counts says so
  /// once, and waits at its end, when its shared memory goes, until all have said it.
  FD_DEVICE void leave_others() const { cluster_arrive(); }
};

/// Completes gradients by x with the hard-label part, and stores them as gradients by the logits.
template <class Format>
class GradientWriter {
 public:
  using S = typename Format::Arithmetic;

  FD_DEVICE explicit GradientWriter(const Row<Format>& row)
      : row_(row),
        to_(row.prepared.gradient, row.index),
        hard_weight_(hard_weight(row)),
        log_hard_(row.student.factor * S(row.problem.temperature), row.stats.hard_lse),
        label_(row.has_label() ? row.label() : -1) {}

  /// What multiplies dD/dx.
  FD_DEVICE S soft_weight() const {
    return S(row_.prepared.by_logit * row_.problem.grad_soft[row_.index]);
  }

  /// `y` is what the student's logits are multiples of, `soft` the gradients by x.
  template <int n>
  FD_DEVICE void complete(int first, const S (&y)[n], S (&soft)[n]) const {
    if (row_.has_label()) {
      for (int j = 0; j < n; ++j) {
        soft[j] = fused(hard_weight_, log_hard_.prob(y[j]), soft[j]);
        if (first + j == label_) soft[j] -= hard_weight_;
      }
    }
    if (row_.student.is_capped()) {
      for (int j = 0; j < n; ++j) soft[j] *= S(1) - y[j] * y[j];  // y = tanh
    }
  }

  /// Stores all but the elements that are left out, given by bit.
  template <int n>
  FD_DEVICE void store(int first, const S (&gradient)[n], unsigned left_out) const {
    if constexpr (n == kChunk<S>) {
      if (left_out == 0) return to_.store(first, row_.vocab, gradient);
    }
    for (int j = 0; j < n; ++j) {
      if ((left_out >> j & 1u) == 0 && first + j < row_.vocab)
        to_.store_one(first + j, gradient[j]);
    }
  }

  /// Zeroes columns [start, gradient_width).
  FD_DEVICE void zero_from(int start) const {
    for (int i = start + row_.team.index(); i < row_.problem.gradient_width;
         i += row_.team.size()) {
      to_.store_one(i, S(0));
    }
  }

 private:
  /// A label that does not exist leaves no gradient of the row standing, as it leaves no value.
  static FD_DEVICE double hard_weight(const Row<Format>& row) {
    if (!row.has_label()) return 0.0;
    if (!row.label_is_valid()) return __builtin_nan("");
    return row.prepared.by_logit * row.problem.grad_hard[row.index] * row.problem.temperature;
  }

  const Row<Format>& row_;
  RowOfLogits<Format> to_;
  S hard_weight_;
  LogProb<S> log_hard_;
  int64_t label_;
};

/// weight dD/dx of one token. Where the teacher is a distribution the slope of some divergences is
/// zero.
template <bool sums_to_one = false, class D, class S>
FD_DEVICE S divergence_gradient(const D& divergence, const Token<S>& token, const RowStats& stats,
                                S weight) {
  if constexpr (sums_to_one && D::kSlopeIsGap) {
    return weight * slope_of(divergence, token, S(stats.log_sum));
  }
  return weight * gradient_of(divergence, token, S(stats.slope), S(stats.log_sum));
}

/// The gradient of a row whose teacher is known at every token.
template <class D, class Format, class Reader>
FD_DEVICE void store_full_gradient(const D& divergence, const Row<Format>& row,
                                   const Reader& reader) {
  using S = typename Format::Arithmetic;
  const GradientWriter<Format> writer(row);
  const Tokens<S> tokens(reader.factors, row.stats);
  const S weight = writer.soft_weight();
  if (weight == S(0)) {  // then an infinite divergence has no part in it
    reader.for_each_chunk([&](int first, const auto& y) {
      S gradient[y.kSize] = {};
      writer.complete(first, y.student, gradient);
      writer.store(first, gradient, y.left_out);
    });
    return;
  }
  reader.for_each_chunk([&](int first, const auto& y) {
    S gradient[y.kSize];
    for (int j = 0; j < y.kSize; ++j) {
      gradient[j] =
          divergence_gradient<Reader::kSumsToOne>(divergence, tokens(y, j), row.stats, weight);
    }
    writer.complete(first, y.student, gradient);
    writer.store(first, gradient, y.left_out);
  });
}

template <class Format>
FD_DEVICE void skip_row(const Row<Format>& row) {
  if (row.wants_values() && row.team.leads()) {
    const RowProblem& problem = row.problem;
    problem.soft[row.index] = 0.0;
    if (row.has_label()) problem.hard[row.index] = 0.0;
    if (problem.stats != nullptr) problem.stats[row.index] = RowStats{};
    if (row.wants_metrics()) problem.metrics[row.index] = RowMetrics{};
  }
  if (row.wants_gradient()) GradientWriter<Format>(row).zero_from(0);
}

/// The frame of a kernel: f(row, the shared memory for what a list takes) for a row that counts.
/// The shared memory of a block:
///
///     reductions | arrivals of the slice's stages | what a list takes | the slice
template <class Format, class D, class F>
FD_DEVICE void run_row(const Task<D>& task, F f) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  if constexpr (Format::kIsPlain) return;  // never launched: nothing is copied in bulk
#endif
  const Team team;
  char* memory = shared_memory();
  Reducer reducer(team, memory);
  const Prepared& prepared = task.prepared;
  Slice<Format> slice(team, prepared.split, static_cast<int>(prepared.problem.vocab),
                      memory + Reducer::kBytes);
  Row<Format> row(prepared, team, reducer, slice);
  if (!row.counted()) return skip_row(row);
  f(row, memory + kFrameBytes<Format>);
  if (row.wants_gradient()) GradientWriter<Format>(row).zero_from(row.vocab);
  cluster_wait();
}

}  // namespace fastdistill
