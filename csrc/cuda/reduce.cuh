// Reductions over the threads of a row, in one fixed order: the same bits in every run.
#pragma once

#include "execution.cuh"

namespace fastdistill {

template <class T>
FD_DEVICE T other_lane(T value, int offset) {
  return __shfl_xor_sync(kAllLanes, value, offset);
}

// What is done with the numbers of the first `lanes` lanes of a warp, a power of two: afterwards
// each of them holds the result. Both partners of an exchange compute the same bits, as the
// operations are commutative. `finish` makes what is wanted of the numbers of all.

struct Add {
  static FD_DEVICE double nothing(int) { return 0.0; }
  template <int count>
  static FD_DEVICE void finish(double (&)[count]) {}
  template <int count>
  static FD_DEVICE void in_warp(double (&values)[count], int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      FD_UNROLL for (int k = 0; k < count; ++k) values[k] += other_lane(values[k], offset);
    }
  }
};

struct Max {
  static FD_DEVICE double nothing(int) { return -__builtin_inf(); }
  template <int count>
  static FD_DEVICE void finish(double (&)[count]) {}
  template <int count>
  static FD_DEVICE void in_warp(double (&values)[count], int lanes) {
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      FD_UNROLL for (int k = 0; k < count; ++k) {
        const double other = other_lane(values[k], offset);
        values[k] = values[k] < other ? other : values[k];
      }
    }
  }
};

/// Shared memory for reductions of up to kMost numbers at a time.
class Reducer {
 public:
  static constexpr int kMost = 12;
  static constexpr int kMostWarps = kMostThreads / kWarp, kMostRanks = 16;

  /// Per warp, then per block twice: another block may still read that of one reduction while the
  /// next is made. Then the result.
  static constexpr int kBytes = (kMostWarps + 3) * kMost * static_cast<int>(sizeof(double));
  static_assert(kBytes % 16 == 0, "what follows is aligned");

  FD_DEVICE Reducer(const Team& team, char* memory)
      : team_(team), by_warp_(reinterpret_cast<double*>(memory)) {}

  /// Every thread of the row gets the result: the first warp of each block makes it.
  template <class Op, int count>
  FD_DEVICE void all(double (&values)[count]) {
    static_assert(count <= kMost, "the shared memory holds kMost numbers per warp");
    const int lane = team_.thread % kWarp, warp = team_.thread / kWarp;
    double* by_block = by_warp_ + (kMostWarps + turn_) * kMost;
    double* result = by_warp_ + (kMostWarps + 2) * kMost;
    turn_ ^= 1;
    Op::in_warp(values, kWarp);
    if (lane == 0) write(values, by_warp_ + warp * kMost);
    __syncthreads();
    if (warp == 0) {
      read<Op>(by_warp_ + lane * kMost, lane < team_.threads / kWarp, values);
      Op::in_warp(values, kMostWarps);
      if (lane == 0) write(values, by_block);
      cluster_fence();
    }
    if (team_.ranks > 1) {
      cluster_arrive();
      cluster_wait();
    }
    if (warp == 0) {
      if (team_.ranks > 1) {
        read<Op>(shared_of(lane < team_.ranks ? lane : 0, by_block), lane < team_.ranks, values);
        Op::in_warp(values, kMostRanks);
      }
      Op::finish(values);
      if (lane == 0) write(values, result);
    }
    __syncthreads();
    FD_UNROLL for (int k = 0; k < count; ++k) values[k] = result[k];
  }

 private:
  template <int count>
  static FD_DEVICE void write(const double (&values)[count], double* to) {
    FD_UNROLL for (int k = 0; k < count; ++k) to[k] = values[k];
  }
  template <class Op, int count>
  static FD_DEVICE void read(const double* from, bool exists, double (&values)[count]) {
    FD_UNROLL for (int k = 0; k < count; ++k) values[k] = exists ? from[k] : Op::nothing(k);
  }

  const Team& team_;
  double* by_warp_;
  int turn_ = 0;
};

}  // namespace fastdistill
