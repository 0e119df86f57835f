// Rows of a top-k teacher.
//
// Bucket and renormalize: the divergence runs over the list and, for bucket, one category with
// everything else, whose gradient its tokens share. Zero and uniform: the teacher is known at every
// token; its logits are made from the list instead of read.
#pragma once

#include "lists.cuh"

namespace fastdistill {

/// Everything a top-k row needs, in one place.
template <class D, class Format>
struct TopKRow {
  using S = typename Format::Arithmetic;

  const D& divergence;
  Row<Format>& row;
  const List<S>& list;
  const ListedBits<Format>& bits;
  const RowOfLogits<Format>& student;  // of the slice

  FD_DEVICE bool is_bucket() const { return row.problem.top_k.tail == Tail::kBucket; }
  FD_DEVICE UnlistedReader<Format> unlisted(S log_p) const {
    return {row.slice, bits, student, log_p};
  }
  FD_DEVICE ListedReader<Format> own_listed() const { return {row.team, row.slice, list, student}; }
  FD_DEVICE Factors<S> factors() const { return {student.factor, S(1)}; }

  FD_DEVICE Listed survey_row() const {
    double sums[3];
    survey(row.team, list, bits.repeated(), sums);
    row.reducer.template all<Add>(sums);
    return listed_of(sums);
  }

  FD_DEVICE void finish_values(double value, const Listed& listed, double label_logit) {
    const double soft = listed.wrong ? __builtin_nan("")
                                     : value_as_given(row.problem, row.index, divergence.balance(),
                                                      value, listed.count, listed.mass);
    if (listed.wrong) row.stats.slope = soft;
    row.write_values(soft, label_logit);
    if (row.wants_metrics()) row.write_metrics(sweep_metrics(listed));
  }

  FD_DEVICE RowMetrics sweep_metrics(const Listed& listed) {
    RunningSoftmax<S> parts[1];  // with the moment E_q[y]
    row.slice.for_each_chunk([&](int first) {
      S y[kChunk<S>];
      student.load(first, row.slice.end, y);
      const S level = parts[0].raise(max_of(y) * student.factor);
      for (int j = 0; j < kChunk<S>; ++j) {
        const S q = exp(fused(y[j], student.factor, -level));
        parts[0].add(q, weighted(q, y[j]));
      }
    });
    Softmax merged[1];
    merge<1u>(row.reducer, parts, merged);
    const double lse = merged[0].lse;
    const LogProb<S> log_q(student.factor, lse);
    double mass[1] = {0.0};
    own_listed().for_each_chunk(
        [&](int, const auto& y) { mass[0] += static_cast<double>(log_q.prob(y.student[0])); });
    row.reducer.template all<Add>(mass);
    RowMetrics metrics{};
    metrics.student_entropy = lse - row.prepared.student.factor * merged[0].mean;
    metrics.teacher_mass = listed.mass;
    metrics.student_mass = mass[0];
    return metrics;
  }

  // ---- zero and uniform ------------------------------------------------------------------------

  FD_DEVICE void run_made(double label_logit) {
    const Listed listed = survey_row();
    const S log_p = S(unlisted_log_prob(row.problem, row.index, listed.count));
    const MadeReader<Format> reader{unlisted(log_p), own_listed(), factors()};
    if (row.wants_values()) {
      const Statistics found =
          sweep_moments<D, S>(reader, row.reducer, row.problem.temperature, row.has_label());
      row.stats.student_lse = found.student_lse;
      row.stats.hard_lse = found.hard_lse;
      const Sums<double> sums = sweep_sums<D, S>(divergence, reader, row.reducer, row.stats);
      row.stats.slope = sums.slope;
      finish_values(sums.value, listed, label_logit);
    }
    row.leave_others();
    if (row.wants_gradient()) store_full_gradient(divergence, row, reader);
  }

  // ---- bucket and renormalize ------------------------------------------------------------------

  FD_DEVICE void run_short(double label_logit) {
    const Listed listed = row.wants_values() ? measure_short(label_logit) : survey_row();
    row.leave_others();
    if (row.wants_gradient()) store_short_gradient(has_tail(listed));
  }

  FD_DEVICE bool has_tail(const Listed& listed) const {
    return is_bucket() && listed.count < list.vocab;
  }
  /// The tail as a category, the student's side in multiples of its factor.
  FD_DEVICE Chunk<S, 1> tail_of(bool exists) const {
    const double nothing = -__builtin_inf();
    return {{S(exists ? row.stats.tail_lse / row.prepared.student.factor : nothing)},
            {S(exists ? row.problem.top_k.tail_log_prob[row.index] : nothing)}};
  }

  FD_DEVICE Listed measure_short(double label_logit) {
    const Listed listed = sweep_student();
    const bool exists = has_tail(listed);
    const ShortReader<Format> reader{own_listed(), tail_of(exists), factors()};
    Sums<double> sums{0.0, 0.0};
    if (listed.count > 0 || exists) {
      sums = sweep_sums<D, S>(divergence, reader, row.reducer, row.stats);
    }
    row.stats.slope = sums.slope;
    finish_values(sums.value, listed, label_logit);
    return listed;
  }

  /// The log-sum-exps: of the student's unlisted tokens, of both sides over the categories, and of
  /// the student over the vocabulary at T = 1 where there are labels.
  FD_DEVICE Listed sweep_student() {
    RunningSoftmax<S> parts[3], hard[1];
    RunningSoftmax<S>&tail = parts[0], &listed_q = parts[1], &listed_p = parts[2];
    const bool own_hard = row.has_label() && (row.problem.temperature != 1.0 || !is_bucket());
    const S by_hard = student.factor * S(row.problem.temperature);
    if (is_bucket() || own_hard) {
      unlisted(S(0)).for_each_chunk([&](int, const auto& y) {
        tail.add_exps(y.student, student.factor);
        if (own_hard) hard[0].add_exps(y.student, by_hard);
      });
    } else {
      row.slice.wait();
    }
    own_listed().for_each_chunk([&](int, const auto& y) {
      listed_q.add_exps(y.student, student.factor);
      listed_p.add_exps(y.teacher, S(1));
      if (own_hard) hard[0].add_exps(y.student, by_hard);
    });
    double sums[3];
    survey(row.team, list, bits.repeated(), sums);
    Softmax merged[3];
    merge<0u>(row.reducer, parts, merged, sums);
    row.stats.tail_lse = merged[0].lse;
    row.stats.student_lse = is_bucket() ? joined_lse<S>(merged[0], merged[1]) : merged[1].lse;
    row.stats.teacher_lse = is_bucket() ? 0.0 : merged[2].lse;
    row.stats.hard_lse = row.stats.student_lse;
    if (own_hard) {
      Softmax merged_hard[1];
      merge<0u>(row.reducer, hard, merged_hard);
      row.stats.hard_lse = merged_hard[0].lse;
    }
    return listed_of(sums);
  }

  /// A listed token gets its own gradient, an unlisted one its share of the tail's.
  FD_DEVICE void store_short_gradient(bool exists) {
    const GradientWriter<Format> writer(row);
    const Tokens<S> tokens(factors(), row.stats);
    const S weight = writer.soft_weight();
    const auto soft_gradient = [&](const Chunk<S, 1>& y) {
      if (weight == S(0)) return S(0);  // then an infinite divergence has no part in it
      return divergence_gradient(divergence, tokens(y, 0), row.stats, weight);
    };
    const S tail = exists ? soft_gradient(tail_of(true)) : S(0);
    constexpr double kNoShare = 1e30;
    const LogProb<S> log_share(student.factor, tail == S(0) ? kNoShare : row.stats.tail_lse);
    unlisted(S(0)).for_each_chunk([&](int first, const auto& y) {
      S gradient[y.kSize];
      FD_UNROLL for (int j = 0; j < y.kSize; ++j) {
        gradient[j] = tail * log_share.prob(y.student[j]);
      }
      writer.complete(first, y.student, gradient);
      writer.store(first, gradient, y.left_out);
    });
    own_listed().for_each_chunk([&](int id, const Chunk<S, 1>& y) {
      S gradient[] = {soft_gradient(y)};
      writer.complete(id, y.student, gradient);
      writer.store(id, gradient, 0);
    });
  }
};

template <class D, class Format>
FD_DEVICE void top_k_row(const D& divergence, Row<Format>& row, char* shared) {
  RowOfLogits<Format> rows[] = {row.student};
  row.slice.fetch(rows);
  const List<typename Format::Arithmetic> list(row.problem, row.index);
  const ListedBits<Format> bits(row.team, row.slice, list, shared);
  const double logit = row.label_logit();
  TopKRow<D, Format> top_k{divergence, row, list, bits, rows[0]};
  const Tail tail = row.problem.top_k.tail;
  if (tail == Tail::kBucket || tail == Tail::kRenormalize) {
    top_k.run_short(logit);
  } else {
    top_k.run_made(logit);
  }
}

template <class D, class Format>
__global__ void FD_LAUNCH_BOUNDS(Format) top_k_kernel(const Task<D> task) {
  run_row<Format>(task,
                  [&](Row<Format>& row, char* shared) { top_k_row(task.divergence, row, shared); });
}

}  // namespace fastdistill
