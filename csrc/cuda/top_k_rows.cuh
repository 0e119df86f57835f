// Rows of a top-k teacher.
//
// Bucket and renormalize: the divergence runs over the list and, for bucket, one category with
// everything else, whose gradient its tokens share. Zero and uniform: the teacher is known at every
// token; its logits are made from the list instead of read.
#pragma once

#include "dense_rows.cuh"

namespace fastdistill {

/// The list of one row.
template <class S>
struct List {
  const int64_t* ids;
  const S* log_p;
  int64_t k, vocab;

  FD_DEVICE List(const RowProblem& problem, int64_t row)
      : ids(problem.top_k.ids + row * problem.top_k.ids_stride),
        log_p(static_cast<const S*>(problem.top_k.log_p) + row * problem.top_k.log_p_stride),
        k(problem.top_k.k),
        vocab(problem.vocab) {}

  FD_DEVICE bool is_empty(int64_t slot) const {
    return ids[slot] < 0 || ids[slot] >= vocab || log_p[slot] == S(-__builtin_inf());
  }
  /// An id that the host, without looking at data, could not refuse.
  FD_DEVICE bool is_wrong(int64_t slot) const { return ids[slot] < -1 || ids[slot] >= vocab; }
};

/// The list turned around: which slot names a token, for one segment of the vocabulary at a time.
template <class S>
class SlotMap {
 public:
  static constexpr int kSegment = 4096;  // tokens
  static constexpr int kBytes = kSegment * static_cast<int>(sizeof(int32_t));
  static constexpr int kNone = -1;

  FD_DEVICE SlotMap(const Team& team, const List<S>& list, char* memory)
      : team_(team), list_(list), slots_(reinterpret_cast<int32_t*>(memory)) {}

  /// Calls f(first token) for each chunk of this thread; `slot` is then valid there.
  template <class F>
  FD_DEVICE void for_each_chunk(F f) const {
    const int64_t step = static_cast<int64_t>(team_.ranks) * kSegment;
    for (int64_t begin = int64_t{team_.rank} * kSegment; begin < list_.vocab; begin += step) {
      fill(begin);
      const int64_t end = begin + kSegment < list_.vocab ? begin + kSegment : list_.vocab;
      for (int64_t first = begin + team_.thread * kChunk<S>; first < end;
           first += team_.threads * kChunk<S>) {
        f(first);
      }
    }
  }
  FD_DEVICE int slot(int64_t token) const { return slots_[token % kSegment]; }

  /// Whether this thread saw a token named twice.
  FD_DEVICE bool repeated() const { return repeated_; }

 private:
  FD_DEVICE void fill(int64_t begin) const {
    __syncthreads();  // the segment before is done with
    for (int i = team_.thread; i < kSegment; i += team_.threads) slots_[i] = kNone;
    __syncthreads();
    for_each_slot_in(begin,
                     [&](int64_t slot, int32_t& entry) { entry = static_cast<int32_t>(slot); });
    __syncthreads();
    // Of two slots with one id the last store stays; the other one sees that it is not there.
    for_each_slot_in(begin, [&](int64_t slot, const int32_t& entry) {
      repeated_ |= entry != static_cast<int32_t>(slot);
    });
  }
  template <class F>
  FD_DEVICE void for_each_slot_in(int64_t begin, F f) const {
    for (int64_t slot = team_.thread; slot < list_.k; slot += team_.threads) {
      const int64_t place = list_.ids[slot] - begin;
      if (!list_.is_empty(slot) && 0 <= place && place < kSegment) f(slot, slots_[place]);
    }
  }

  const Team& team_;
  const List<S>& list_;
  int32_t* slots_;
  mutable bool repeated_ = false;
};

/// kZero and kUniform: the student from memory, the teacher from the list.
template <class S>
struct MadeReader {
  const SlotMap<S>& map;
  const List<S>& list;
  const RowOfLogits<S>& student;
  S unlisted;  // log-probability

  template <class F>
  FD_DEVICE void for_each_chunk(F f) const {
    map.for_each_chunk([&](int64_t first) {
      Chunk<S> x;
      student.load(first, list.vocab, x.student);
      for (int j = 0; j < kChunk<S>; ++j) {
        const bool inside = first + j < list.vocab;
        const int slot = inside ? map.slot(first + j) : SlotMap<S>::kNone;
        x.teacher[j] = slot != SlotMap<S>::kNone ? list.log_p[slot]
                       : inside                  ? unlisted
                                                 : S(-__builtin_inf());
      }
      f(first, x);
    });
  }
};

/// kBucket and kRenormalize: the list, and after it the tail if there is one.
template <class S>
struct ShortReader {
  const Team& team;
  const List<S>& list;
  const RowOfLogits<S>& student;
  Chunk<S> tail;  // its first elements; -inf where there is none

  template <class F>
  FD_DEVICE void for_each_chunk(F f) const {
    const int64_t step = team.size() * kChunk<S>;
    for (int64_t first = team.index() * kChunk<S>; first <= list.k; first += step) {
      Chunk<S> x;
      for (int j = 0; j < kChunk<S>; ++j) entry(first + j, x.student[j], x.teacher[j]);
      f(first, x);
    }
  }

 private:
  FD_DEVICE void entry(int64_t slot, S& x_s, S& x_t) const {
    x_s = x_t = S(-__builtin_inf());
    if (slot == list.k) {
      x_s = tail.student[0];
      x_t = tail.teacher[0];
    } else if (slot < list.k && !list.is_empty(slot)) {
      x_s = student.load_one(list.ids[slot]);
      x_t = list.log_p[slot];
    }
  }
};

/// What a list adds up to.
struct Listed {
  double count, mass;
  bool wrong;  // an id out of range or repeated: the row has no value
};
template <class S>
FD_DEVICE Listed survey(const Team& team, Reducer& reducer, const List<S>& list, bool repeated) {
  double sums[3] = {0.0, 0.0, repeated ? 1.0 : 0.0};
  for (int64_t slot = team.index(); slot < list.k; slot += team.size()) {
    if (list.is_wrong(slot)) sums[2] = 1.0;
    if (list.is_empty(slot)) continue;
    sums[0] += 1.0;
    sums[1] += static_cast<double>(exp(list.log_p[slot]));
  }
  reducer.all(sums, Add());
  return {sums[0], sums[1], sums[2] != 0.0};
}

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

  /// The value for a teacher as it was given: see value_as_given of the CPU.
  FD_DEVICE double as_given(double value, const Listed& listed) const {
    const TopK& top_k = row.problem.top_k;
    if (listed.wrong) return __builtin_nan("");
    if (top_k.sums_to_one) return max(value, 0.0);
    double missing = 1.0 - listed.mass;
    if (top_k.tail != Tail::kZero && listed.count < static_cast<double>(list.vocab)) {
      missing -= exp(tail_log_prob());
    }
    return value - divergence.balance() * missing;
  }

  FD_DEVICE void finish_values(double value, const Listed& listed, double label_logit) {
    const double soft = as_given(value, listed);
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
    const bool known =
        row.problem.top_k.tail == Tail::kUniform && listed.count < static_cast<double>(list.vocab);
    const double unlisted =
        known ? tail_log_prob() - log(static_cast<double>(list.vocab) - listed.count)
              : -__builtin_inf();
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
    const bool has_tail = bucket() && listed.count < static_cast<double>(list.vocab);
    const ShortReader<S> reader = short_reader(has_tail);
    if (row.wants_values()) {
      const Statistics found = sweep_moments<D, S>(reader, row.reducer, 1.0, false);
      row.stats.student_lse = found.student_lse;
      row.stats.teacher_lse = bucket() ? 0.0 : found.teacher_lse;
      if (bucket() && row.problem.temperature == 1.0) row.stats.hard_lse = found.student_lse;
      Sums<double> sums{0.0, 0.0};
      if (listed.count > 0.0 || has_tail) {
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
FD_DEVICE void top_k_row(const Task<D>& task, char* shared) {
  const Team team;
  Reducer reducer(team, shared);
  Row<S> row(task.problem, team, reducer);
  if (!row.counted()) return skip_row(row);
  const List<S> list(task.problem, row.index);
  const SlotMap<S> map(team, list, shared + Reducer::kBytes);
  const double logit = row.label_logit();
  const Tail tail = task.problem.top_k.tail;
  TopKRow<D, S> top_k{task.divergence, row, list, map};
  if (tail == Tail::kBucket || tail == Tail::kRenormalize) {
    top_k.run_short(logit);
  } else {
    top_k.run_made(logit);
  }
  if (row.wants_gradient()) GradientWriter<S>(row).zero_from(task.problem.vocab);
  reducer.finish();
}

/// The dynamic shared memory that a block needs.
template <class S>
int shared_bytes(const RowProblem& problem) {
  return Reducer::kBytes + (problem.top_k.k == 0 ? 0 : SlotMap<S>::kBytes);
}

template <class D, class S>
__global__ void __launch_bounds__(kMostThreads) top_k_kernel(const Task<D> task) {
  top_k_row<D, S>(task, shared_memory());
}

}  // namespace fastdistill
