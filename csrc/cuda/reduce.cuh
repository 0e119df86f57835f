// Reductions over the threads of a row, in one fixed order: the same bits in every run.
#pragma once

#include "execution.cuh"

namespace fastdistill {

struct Add {
  FD_DEVICE double operator()(double a, double b) const { return a + b; }
};
struct Max {
  FD_DEVICE double operator()(double a, double b) const { return a < b ? b : a; }
};

/// Shared memory for reductions of up to kMost numbers at a time.
class Reducer {
 public:
  static constexpr int kMost = 6;
  static constexpr int kMostWarps = kMostThreads / kWarp;

  /// Per warp, then per block twice: another block may still read the result of one reduction while
  /// the next is made.
  static constexpr int kBytes = (kMostWarps + 2) * kMost * static_cast<int>(sizeof(double));

  FD_DEVICE Reducer(const Team& team, char* memory)
      : team_(team), by_warp_(reinterpret_cast<double*>(memory)) {}

  /// Every thread of the row gets the reduction of all their values.
  template <int count, class Op>
  FD_CALL void all(double (&values)[count], Op op) {
    static_assert(count <= kMost, "the shared memory holds kMost numbers per warp");
    const int lane = team_.thread % kWarp, warp = team_.thread / kWarp;
    in_warp(values, op);
    if (lane == 0) {
      for (int k = 0; k < count; ++k) by_warp_[warp * kMost + k] = values[k];
    }
    __syncthreads();
    double* by_block = by_warp_ + (kMostWarps + turn_) * kMost;
    turn_ ^= 1;
    if (team_.thread < count) {
      const int warps = team_.threads / kWarp;
      double total = by_warp_[team_.thread];
      for (int w = 1; w < warps; ++w) total = op(total, by_warp_[w * kMost + team_.thread]);
      by_block[team_.thread] = total;
    }
    cluster_sync();
    for (int k = 0; k < count; ++k) {
      double total = shared_of(0, by_block)[k];
      for (int r = 1; r < team_.ranks; ++r) total = op(total, shared_of(r, by_block)[k]);
      values[k] = total;
    }
  }

  /// Keeps this block's shared memory alive until no other block reads it.
  FD_DEVICE void finish() {
    if (team_.ranks > 1) cluster_sync();
  }

 private:
  /// Both partners of an exchange compute the same bits, as op is commutative.
  template <int count, class Op>
  static FD_DEVICE void in_warp(double (&values)[count], Op op) {
    for (int offset = kWarp / 2; offset > 0; offset /= 2) {
      for (int k = 0; k < count; ++k) {
        values[k] = op(values[k], __shfl_xor_sync(kAllLanes, values[k], offset));
      }
    }
  }

  const Team& team_;
  double* by_warp_;
  int turn_ = 0;
};

}  // namespace fastdistill
