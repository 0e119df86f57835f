// The list of a top-k teacher, and the ways in which a row is read with it.
#pragma once

#include "row.cuh"

namespace fastdistill {

/// The list of one row.
template <class S>
struct List {
  const int64_t* ids;
  const S* log_p;
  int64_t k;
  int vocab;

  FD_DEVICE List(const RowProblem& problem, int64_t row)
      : ids(problem.top_k.ids + row * problem.top_k.ids_stride),
        log_p(static_cast<const S*>(problem.top_k.log_p) + row * problem.top_k.log_p_stride),
        k(problem.top_k.k),
        vocab(static_cast<int>(problem.vocab)) {}

  FD_DEVICE bool is_empty(int64_t slot) const {
    return ids[slot] < 0 || ids[slot] >= vocab || log_p[slot] == S(-__builtin_inf());
  }
  /// An id that the host, without looking at data, could not refuse.
  FD_DEVICE bool is_wrong(int64_t slot) const { return ids[slot] < -1 || ids[slot] >= vocab; }
};

/// The list turned around: a bit for each token of a block's slice that is listed, and for what
/// pads the slice behind its end.
template <class Format>
class ListedBits {
 public:
  using S = typename Format::Arithmetic;

  /// Shared memory for a slice; a multiple of 16.
  static FD_INLINE int bytes(int columns) { return (columns + 127) / 128 * 16; }

  FD_DEVICE ListedBits(const Team& team, const Slice<Format>& slice, const List<S>& list,
                       char* memory)
      : begin_(slice.begin), bytes_(reinterpret_cast<unsigned char*>(memory)) {
    auto* words = reinterpret_cast<unsigned*>(memory);
    const int columns = slice.end - slice.begin, full = columns / 32;
    for (int i = team.thread; i < bytes(columns) / 4; i += team.threads) {
      words[i] = i < full ? 0u : i == full ? ~0u << columns % 32 : ~0u;
    }
    __syncthreads();
    for (int64_t slot = team.thread; slot < list.k; slot += team.threads) {
      if (list.is_empty(slot) || !slice.contains(list.ids[slot])) continue;
      const int place = static_cast<int>(list.ids[slot]) - begin_;
      const unsigned bit = 1u << place % 32;
      repeated_ |= (atomicOr(&words[place / 32], bit) & bit) != 0;
    }
    __syncthreads();
  }

  /// Of the tokens of a chunk, by bit.
  FD_DEVICE unsigned of_chunk(int first) const {
    const int place = first - begin_;
    if (kChunk<S> == 8) return bytes_[place / 8];
    return bytes_[place / 8] >> place % 8 & ((1u << kChunk<S>)-1u);
  }

  /// Whether this thread saw a token named twice.
  FD_DEVICE bool repeated() const { return repeated_; }

 private:
  int begin_;
  const unsigned char* bytes_;
  bool repeated_ = false;
};

/// The chunks of a slice, in which listed tokens are nothing and every other token has one teacher
/// log-probability.
template <class Format>
struct UnlistedReader {
  using S = typename Format::Arithmetic;
  const Slice<Format>& slice;
  const ListedBits<Format>& listed;
  const RowOfLogits<Format>& student;
  S unlisted;

  template <class F>
  FD_DEVICE void for_each_chunk(F f) const {
    slice.for_each_chunk([&](int first) {
      Chunk<S> y;
      student.load(first, slice.end, y.student);
      for (int j = 0; j < kChunk<S>; ++j) y.teacher[j] = unlisted;
      const unsigned out = listed.of_chunk(first);
      if (out != 0) {
        FD_UNROLL for (int j = 0; j < kChunk<S>; ++j) {
          if (out >> j & 1u) y.leave_out(j);
        }
      }
      f(first, y);
    });
  }
};

/// The listed tokens of a slice, one at a time. To be read after the slice: a thread that has gone
/// through the slice knows that all of it has arrived.
template <class Format>
struct ListedReader {
  using S = typename Format::Arithmetic;
  const Team& team;
  const Slice<Format>& slice;
  const List<S>& list;
  const RowOfLogits<Format>& student;

  template <class F>
  FD_DEVICE void for_each_chunk(F f) const {
    for (int64_t slot = team.thread; slot < list.k; slot += team.threads) {
      if (list.is_empty(slot) || !slice.contains(list.ids[slot])) continue;
      const int id = static_cast<int>(list.ids[slot]);
      f(id, Chunk<S, 1>{{student.load_one(id)}, {list.log_p[slot]}});
    }
  }
};

/// kZero and kUniform: the student from memory, the teacher from the list.
template <class Format>
struct MadeReader {
  static constexpr bool kSumsToOne = false;  // what is not listed may be missing
  UnlistedReader<Format> unlisted;
  ListedReader<Format> listed;
  Factors<typename Format::Arithmetic> factors;

  template <class F>
  FD_DEVICE void for_each_chunk(F f) const {
    unlisted.for_each_chunk(f);
    listed.for_each_chunk(f);
  }
};

/// kBucket and kRenormalize: the list, and beside it the tail, which is nothing where there is
/// none.
template <class Format>
struct ShortReader {
  using S = typename Format::Arithmetic;
  ListedReader<Format> listed;
  Chunk<S, 1> tail;  // in multiples of the student's factor, as the listed logits
  Factors<S> factors;

  template <class F>
  FD_DEVICE void for_each_chunk(F f) const {
    listed.for_each_chunk(f);
    if (listed.team.leads()) f(0, tail);
  }
};

/// What a list adds up to.
struct Listed {
  int64_t count;
  double mass;
  bool wrong;  // an id out of range or repeated: the row has no value
};

/// This thread's share of count, mass and wrong ones.
template <class S>
FD_DEVICE void survey(const Team& team, const List<S>& list, bool repeated, double (&sums)[3]) {
  sums[0] = sums[1] = 0.0;
  sums[2] = repeated ? 1.0 : 0.0;
  for (int64_t slot = team.index(); slot < list.k; slot += team.size()) {
    if (list.is_wrong(slot)) sums[2] = 1.0;
    if (list.is_empty(slot)) continue;
    sums[0] += 1.0;
    sums[1] += static_cast<double>(exp(list.log_p[slot]));
  }
}
FD_DEVICE Listed listed_of(const double (&sums)[3]) {
  return {static_cast<int64_t>(sums[0]), sums[1], sums[2] != 0.0};
}

}  // namespace fastdistill
