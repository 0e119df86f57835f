// The part of a row that belongs to a block, and its way into shared memory.
//
// All sweeps but the first of a row would read it again: from the L2 cache if it is still there.
// Where a block's slice fits into its shared memory it is copied there once, in stages, all of
// which are under way while the first sweep follows behind them.
#pragma once

#include "elements.cuh"

namespace fastdistill {

inline constexpr int kMostStages = 8;

/// How a row is shared by the blocks of a cluster; chosen by the host.
struct Split {
  int columns;      // of each block, but for the last ones; a multiple of 16 bytes
  int stage;        // columns that arrive together, a multiple of 16 bytes
  bool is_kept;     // in shared memory
  int shared_from;  // bytes of shared memory before the slice
};

template <class Format>
class Slice {
 public:
  using S = typename Format::Arithmetic;
  static constexpr int kArrivalBytes = kMostStages * static_cast<int>(sizeof(Arrival));

  int begin, end;

  FD_DEVICE Slice(const Team& team, const Split& split, int vocab, char* arrivals)
      : begin(team.rank * split.columns < vocab ? team.rank * split.columns : vocab),
        end(vocab - begin < split.columns ? vocab : begin + split.columns),
        team_(team),
        split_(split),
        arrivals_(reinterpret_cast<Arrival*>(arrivals)) {}

  FD_DEVICE bool contains(int64_t column) const { return begin <= column && column < end; }

  /// Starts to copy these rows, which then stand for their copies, if the slice is kept.
  template <int count>
  FD_DEVICE void fetch(RowOfLogits<Format> (&rows)[count]) {
    if (!is_kept()) return;
    RowOfLogits<Format> copies[count] = {};
    char* place = shared_memory() + split_.shared_from;
    for (int i = 0; i < count; ++i) {
      copies[i] = rows[i].at(place, begin);
      place += rows[i].bytes(split_.columns);
    }
    const int from = begin + team_.thread * split_.stage;
    if (from < end) arrivals_[team_.thread].prepare();
    __syncthreads();
    if (from < end) fetch_stage(arrivals_[team_.thread], from, stage_end(from), rows, copies);
    for (int i = 0; i < count; ++i) rows[i] = copies[i];
  }

  /// Calls f(first column) for each chunk of this thread, once it has arrived.
  template <class F>
  FD_DEVICE void for_each_chunk(F f) const {
    for_each_stage([&](int from, int to) {
      for (int first = from + team_.thread * kChunk<S>; first < to;
           first += team_.threads * kChunk<S>) {
        f(first);
      }
    });
  }

  /// Returns when all of the slice has arrived.
  FD_DEVICE void wait() const {
    for_each_stage([](int, int) {});
  }

 private:
  FD_DEVICE bool is_kept() const { return Format::kIsPlain || split_.is_kept; }
  FD_DEVICE int stage_end(int from) const {
    return end - from < split_.stage ? end : from + split_.stage;
  }

  template <class F>
  FD_DEVICE void for_each_stage(F f) const {
    const Arrival* arrival = arrivals_;
    for (int from = begin; from < end; from += split_.stage, ++arrival) {
      if (is_kept()) arrival->wait();
      f(from, stage_end(from));
    }
  }

  template <int count>
  static FD_DEVICE void fetch_stage(Arrival& arrival, int from, int to,
                                    const RowOfLogits<Format> (&rows)[count],
                                    const RowOfLogits<Format> (&copies)[count]) {
    const int whole = (to - from) / kChunk<S> * kChunk<S>;
    unsigned bytes = 0;
    for (int i = 0; i < count; ++i) {
      bytes += static_cast<unsigned>(rows[i].bytes(whole));
      for (int column = from + whole; column < to; ++column) copies[i].take_one(column, rows[i]);
      for (int column = to; column % kChunk<S> != 0; ++column) {
        copies[i].store_one(column, S(-__builtin_inf()));
      }
    }
    arrival.expect(bytes);
    for (int i = 0; i < count && whole > 0; ++i) {
      arrival.copy(copies[i].address_of(from), rows[i].address_of(from),
                   static_cast<unsigned>(rows[i].bytes(whole)));
    }
  }

  const Team& team_;
  const Split& split_;
  Arrival* arrivals_;
};

}  // namespace fastdistill
