// The list of a top-k teacher, and the ways in which a row is read with it.
#pragma once

#include "row.cuh"

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
  int64_t count;
  double mass;
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
  return {static_cast<int64_t>(sums[0]), sums[1], sums[2] != 0.0};
}

}  // namespace fastdistill
