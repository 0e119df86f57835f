// Softmaxes over the threads of a row.
#pragma once

#include "../online_softmax.h"
#include "elements.cuh"
#include "reduce.cuh"

namespace fastdistill {

/// A running softmax whose chunks may be summed from its level as it is, without a look for larger
/// elements, if the sum then has_room; else the level is raised first.
template <class S>
struct RunningSoftmax : OnlineSoftmax<S> {
  using OnlineSoftmax<S>::max, OnlineSoftmax<S>::add, OnlineSoftmax<S>::raise;

  /// Whether a chunk's sum, or what it is added to, is far from overflow; not for NaN, which is
  /// also what comes of a level that has not been raised yet.
  static FD_DEVICE bool has_room(S chunk_sum) { return chunk_sum < S(1 << 20); }

  /// Adds a chunk without moments.
  template <int n>
  FD_DEVICE void add_exps(const S (&y)[n], S factor) {
    S chunk_sum(0);
    FD_UNROLL for (int j = 0; j < n; ++j) chunk_sum += exp(fused(y[j], factor, -max));
    if (has_room(chunk_sum)) return add(chunk_sum);
    const S from = raise(max_of(y) * factor);
    FD_UNROLL for (int j = 0; j < n; ++j) add(exp(fused(y[j], factor, -from)));
  }
};

/// log x from the float logarithm of its mantissa: as good as that of a double to some 1e-8, at a
/// tenth of the instructions.
FD_DEVICE double short_log(double x) {
  if (!(x > 0.0) || x > 1e30) return log(x);  // zero, NaN and infinity
  float mantissa, exponent;
  const auto rough = static_cast<float>(x);
  split_pow2(rough, mantissa, exponent);
  constexpr double kLn2 = 0.6931471805599453;
  const float correction = static_cast<float>(x - static_cast<double>(rough)) / rough;
  return kLn2 * static_cast<double>(exponent) +
         static_cast<double>(detail::log_positive(mantissa)) + static_cast<double>(correction);
}
/// log x, as good as S needs it.
template <class S>
FD_DEVICE double log_for(double x) {
  return sizeof(S) < sizeof(double) ? short_log(x) : log(x);
}

/// The softmax of all threads.
struct Softmax {
  double lse;   // log sum exp(x)
  double mean;  // the moment, normalised
};

/// The log-sum-exp of the elements of both.
template <class S>
FD_DEVICE double joined_lse(const Softmax& a, const Softmax& b) {
  const double high = a.lse < b.lse ? b.lse : a.lse, low = a.lse < b.lse ? a.lse : b.lse;
  if (low == -__builtin_inf()) return high;
  return high + log_for<S>(1.0 + static_cast<double>(exp(static_cast<S>(low - high))));
}

/// For a Reducer: softmaxes, each with level, sum and moment, of which lse and mean are made, and
/// after them plain sums. Of those whose bit in `moments` is not set the moment is nothing.
template <class S, int softmaxes, unsigned moments>
struct MergeSoftmaxes {
  static constexpr int kLevels = 3 * softmaxes;

  static FD_DEVICE double nothing(int k) {
    return k < kLevels && k % 3 == 0 ? -__builtin_inf() : 0.0;
  }
  template <int count>
  static FD_DEVICE void in_warp(double (&values)[count], int lanes) {
    FD_UNROLL for (int k = 0; k < kLevels; k += 3) {
      const S own = static_cast<S>(values[k]);
      S level = own;
      for (int offset = lanes / 2; offset > 0; offset /= 2) {
        level = largest(level, other_lane(level, offset));
      }
      const S scale = own == level ? S(1) : exp(own - level);  // also where both are infinite
      values[k] = static_cast<double>(level);
      values[k + 1] *= static_cast<double>(scale);  // a NaN stays
      if (has_moment(k)) values[k + 2] = weighted(static_cast<double>(scale), values[k + 2]);
    }
    for (int offset = lanes / 2; offset > 0; offset /= 2) {
      FD_UNROLL for (int k = 0; k < count; ++k) {
        const bool is_sum = k >= kLevels || k % 3 == 1 || (k % 3 == 2 && has_moment(k));
        if (is_sum) values[k] += other_lane(values[k], offset);
      }
    }
  }
  template <int count>
  static FD_DEVICE void finish(double (&values)[count]) {
    FD_UNROLL for (int k = 0; k < kLevels; k += 3) {
      const double sum = values[k + 1];
      values[k] += log_for<S>(sum);
      if (has_moment(k)) values[k + 1] = values[k + 2] / sum;
    }
  }

 private:
  static constexpr FD_DEVICE bool has_moment(int k) { return (moments >> (k / 3) & 1u) != 0; }
};

template <class S, int count, int size>
FD_DEVICE void write_levels(const RunningSoftmax<S> (&parts)[count], double (&values)[size]) {
  FD_UNROLL for (int k = 0; k < count; ++k) {
    values[3 * k] = static_cast<double>(parts[k].max);
    values[3 * k + 1] = static_cast<double>(parts[k].sum);
    values[3 * k + 2] = static_cast<double>(parts[k].moment);
  }
}
template <int count, int size>
FD_DEVICE void read_softmaxes(const double (&values)[size], Softmax (&merged)[count]) {
  FD_UNROLL for (int k = 0; k < count; ++k) merged[k] = {values[3 * k], values[3 * k + 1]};
}

/// Merges the running softmaxes of all threads of the row, the moments of those whose bit is set.
template <unsigned moments, class S, int count>
FD_DEVICE void merge(Reducer& reducer, const RunningSoftmax<S> (&parts)[count],
                     Softmax (&merged)[count]) {
  double values[3 * count];
  write_levels(parts, values);
  reducer.all<MergeSoftmaxes<S, count, moments>>(values);
  read_softmaxes(values, merged);
}

/// The same, and adds up what stands in `sums`.
template <unsigned moments, class S, int count, int others>
FD_DEVICE void merge(Reducer& reducer, const RunningSoftmax<S> (&parts)[count],
                     Softmax (&merged)[count], double (&sums)[others]) {
  double values[3 * count + others];
  write_levels(parts, values);
  FD_UNROLL for (int k = 0; k < others; ++k) values[3 * count + k] = sums[k];
  reducer.all<MergeSoftmaxes<S, count, moments>>(values);
  read_softmaxes(values, merged);
  FD_UNROLL for (int k = 0; k < others; ++k) sums[k] = values[3 * count + k];
}

/// log(exp(x) / exp(lse)) of what is stored as y, x = factor * y, and its exp. The log-sum-exp is
/// subtracted in two parts, so that its own rounding does not shift the row.
///
/// The exp is a power of two with an exponent of its own, (y k - lse k / factor) with k the rounded
/// factor log2 e: as both terms have the same k, its rounding counts only as often as their
/// difference. Where k would carry them beyond the largest float it is made smaller: floats of that
/// size are the same, or so far apart that the exp is zero all the same.
template <class S>
class LogProb {
 public:
  FD_DEVICE LogProb(S factor, double lse) : log_(factor, lse) {
    constexpr double kLog2E = 1.4426950408889634;
    constexpr double kHuge = 1e38, kShrink = 0x1p-64;
    const S k = factor * S(abs(lse) > kHuge ? kShrink * kLog2E : kLog2E);
    exp_ = Difference(k, lse * (static_cast<double>(k) / static_cast<double>(factor)));
  }
  FD_DEVICE S operator()(S y) const { return log_(y); }
  FD_DEVICE S prob(S y) const { return exp2(exp_(y)); }

 private:
  struct Difference {
    S factor, high, low;
    Difference() = default;
    FD_DEVICE Difference(S factor, double from)
        : factor(factor), high(static_cast<S>(from)), low(S(0)) {
      if constexpr (sizeof(S) < sizeof(double)) {
        low = static_cast<S>(from - static_cast<double>(high));
      }
    }
    FD_DEVICE S operator()(S y) const { return fused(y, factor, -high) - low; }
  };
  Difference log_, exp_;
};

}  // namespace fastdistill
