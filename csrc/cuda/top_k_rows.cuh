// Rows of a top-k teacher.
//
// Bucket and renormalize: the divergence runs over the list and, for bucket, one category with
// everything else, whose gradient its tokens share. Zero and uniform: the teacher is known at every
// token; its logits are made from the list instead of read.
#pragma once

#include "lists.cuh"

namespace fastdistill {

/// Everything a top-k row needs, in one place.
template <class D, class S>
struct TopKRow {
  const D& divergence;
  Row<S>& row;
  const List<S>& list;
  const SlotMap<S>& map;

  FD_DEVICE bool bucket() const { return row.problem.top_k.tail == Tail::kBucket; }
  FD_DEVICE double tail_log_prob() const { return row.problem.top_k.tail_log_prob[row.index]; }

  /// The student over the vocabulary: its unlisted tokens at T, and all of them at T = 1.
  FD_DEVICE void sweep_student(bool with_hard) {
    OnlineSoftmax<S> parts[2];
    const S t = S(row.problem.temperature);
    map.for_each_chunk([&](int64_t first) {
      S x[kChunk<S>];
      row.student.load(first, list.vocab, x);
      if (with_hard) {
        const S level = parts[1].raise(max_of<S>(x) * t);
        for (int j = 0; j < kChunk<S>; ++j) parts[1].add(exp(x[j] * t - level));
      }
      for (int j = 0; j < kChunk<S>; ++j) {
        if (first + j < list.vocab && map.slot(first + j) != SlotMap<S>::kNone) {
          x[j] = S(-__builtin_inf());
        }
      }
      const S level = parts[0].raise(max_of<S>(x));
      for (int j = 0; j < kChunk<S>; ++j) parts[0].add(exp(x[j] - level));
    });
    OnlineSoftmax<double> merged[2];
    merge(row.reducer, parts, merged);
    row.stats.tail_lse = merged[0].lse();
    if (with_hard) row.stats.hard_lse = merged[1].lse();
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
    OnlineSoftmax<S> parts[1];  // with the moment E_q[x]
    map.for_each_chunk([&](int64_t first) {
      S x[kChunk<S>];
      row.student.load(first, list.vocab, x);
      const S level = parts[0].raise(max_of<S>(x));
      for (int j = 0; j < kChunk<S>; ++j) {
        const S q = exp(x[j] - level);
        parts[0].add(q, weighted(q, x[j]));
      }
    });
    OnlineSoftmax<double> merged[1];
    merge(row.reducer, parts, merged);
    double mass[1] = {0.0};
    for (int64_t slot = row.team.index(); slot < list.k; slot += row.team.size()) {
      if (list.is_empty(slot)) continue;
      mass[0] += exp(static_cast<double>(row.student.load_one(list.ids[slot])) - merged[0].lse());
    }
    row.reducer.all(mass, Add());
    RowMetrics metrics{};
    metrics.student_entropy = merged[0].lse() - merged[0].mean();
    metrics.teacher_mass = listed.mass;
    metrics.student_mass = mass[0];
    return metrics;
  }

  // ---- zero and uniform ------------------------------------------------------------------------

  FD_DEVICE void run_made(double label_logit) {
    const Listed listed = survey(row.team, row.reducer, list, false);
    const double unlisted = unlisted_log_prob(row.problem, row.index, listed.count);
    const MadeReader<S> reader{map, list, row.student, S(unlisted)};
    if (row.wants_values()) {
      const Statistics found =
          sweep_moments<D, S>(reader, row.reducer, row.problem.temperature, row.has_label());
      row.stats.student_lse = found.student_lse;
      row.stats.hard_lse = found.hard_lse;
      const Sums<double> sums = sweep_sums<D, S>(divergence, reader, row.reducer, row.stats);
      row.stats.slope = sums.slope;
      finish_values(sums.value, survey(row.team, row.reducer, list, map.repeated()), label_logit);
    }
    if (row.wants_gradient()) store_full_gradient(divergence, row, reader);
  }

  // ---- bucket and renormalize ------------------------------------------------------------------

  FD_DEVICE ShortReader<S> short_reader(bool has_tail) const {
    ShortReader<S> reader{row.team, list, row.student, {}};
    reader.tail.student[0] = S(has_tail ? row.stats.tail_lse : -__builtin_inf());
    reader.tail.teacher[0] = S(has_tail ? tail_log_prob() : -__builtin_inf());
    return reader;
  }

  FD_DEVICE void run_short(double label_logit) {
    if (row.wants_values()) {
      const bool own_hard = row.has_label() && (row.problem.temperature != 1.0 || !bucket());
      if (bucket() || own_hard) {
        sweep_student(own_hard);
      } else {
        map.for_each_chunk([](int64_t) {});  // looks for repeated ids, not at logits
      }
    }
    const Listed listed = survey(row.team, row.reducer, list, map.repeated());
    const bool has_tail = bucket() && listed.count < list.vocab;
    const ShortReader<S> reader = short_reader(has_tail);
    if (row.wants_values()) {
      const Statistics found = sweep_moments<D, S>(reader, row.reducer, 1.0, false);
      row.stats.student_lse = found.student_lse;
      row.stats.teacher_lse = bucket() ? 0.0 : found.teacher_lse;
      if (bucket() && row.problem.temperature == 1.0) row.stats.hard_lse = found.student_lse;
      Sums<double> sums{0.0, 0.0};
      if (listed.count > 0 || has_tail) {
        sums = sweep_sums<D, S>(divergence, reader, row.reducer, row.stats);
      }
      row.stats.slope = sums.slope;
      finish_values(sums.value, listed, label_logit);
    }
    if (row.wants_gradient()) store_short_gradient(reader, has_tail);
  }

  /// A listed token gets its own gradient, an unlisted one its share of the tail's.
  FD_DEVICE void store_short_gradient(const ShortReader<S>& reader, bool has_tail) {
    const GradientWriter<S> writer(row);
    const Tokens<S> tokens(row.stats);
    const S weight = writer.soft_weight();
    const S tail = has_tail
                       ? divergence_gradient(divergence, tokens(reader.tail, 0), row.stats, weight)
                       : S(0);
    reader.for_each_chunk([&](int64_t first, const Chunk<S>& x) {
      for (int j = 0; j < kChunk<S>; ++j) {
        const int64_t slot = first + j;
        if (slot >= list.k || list.is_empty(slot)) continue;
        const S gradient = divergence_gradient(divergence, tokens(x, j), row.stats, weight);
        writer.store_one(list.ids[slot], writer.complete(list.ids[slot], x.student[j], gradient));
      }
    });
    store_unlisted_gradient(writer, tail);
  }

  FD_DEVICE void store_unlisted_gradient(const GradientWriter<S>& writer, S tail) {
    const Normalizer<S> share(level_of(row.stats.tail_lse));
    map.for_each_chunk([&](int64_t first) {
      S x[kChunk<S>], gradient[kChunk<S>];
      row.student.load(first, list.vocab, x);
      bool any_listed = false;
      for (int j = 0; j < kChunk<S>; ++j) {
        gradient[j] = tail == S(0) ? S(0) : tail * exp(share(x[j]));
        any_listed |= first + j < list.vocab && map.slot(first + j) != SlotMap<S>::kNone;
      }
      writer.complete(first, x, gradient);
      if (!any_listed) return writer.store(first, gradient);
      for (int j = 0; j < kChunk<S>; ++j) {
        if (first + j < list.vocab && map.slot(first + j) == SlotMap<S>::kNone) {
          writer.store_one(first + j, gradient[j]);
        }
      }
    });
  }
};

template <class D, class S>
FD_DEVICE void top_k_row(const D& divergence, Row<S>& row, char* shared) {
  const List<S> list(row.problem, row.index);
  const SlotMap<S> map(row.team, list, shared);
  const double logit = row.label_logit();
  const Tail tail = row.problem.top_k.tail;
  TopKRow<D, S> top_k{divergence, row, list, map};
  if (tail == Tail::kBucket || tail == Tail::kRenormalize) {
    top_k.run_short(logit);
  } else {
    top_k.run_made(logit);
  }
}

/// The dynamic shared memory that a block needs.
template <class S>
int shared_bytes(const RowProblem& problem) {
  return Reducer::kBytes + (problem.top_k.k == 0 ? 0 : SlotMap<S>::kBytes);
}

template <class D, class S>
__global__ void __launch_bounds__(kMostThreads, kLeastBlocks) top_k_kernel(const Task<D> task) {
  run_row<S>(task, [&](Row<S>& row, char* shared) { top_k_row(task.divergence, row, shared); });
}

}  // namespace fastdistill
