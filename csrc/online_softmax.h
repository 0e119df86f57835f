// The running state of a log-sum-exp over a row that is seen tile by tile.
#pragma once

#include "scalar_math.h"

namespace fastdistill {

/// The level from which exps are taken: the maximum, or zero where nothing is above -inf.
template <class S>
FD_INLINE S level_of(S max) {
  return max == S(-__builtin_inf()) ? S(0) : max;
}

/// sum exp(x) = exp(max) * sum and, with the same weights, moment = sum exp(x - max) f.
///
/// `max` is the level that exps are taken from: the maximum, raised before a tile is added, or a
/// little less where a sweep leaves its tiles headroom. The merge order is the order of the tiles,
/// which makes the result independent of threads.
/// kCentred: f is x - max itself, whose values move with the maximum.
template <class S, bool kCentred = false>
struct OnlineSoftmax {
  S max = S(-__builtin_inf());
  S sum = S(0);
  S moment = S(0);

  /// Takes a tile's maximum in; returns the level from which the tile's exps are to be taken.
  FD_INLINE S raise(S tile_max) {
    if (tile_max > max) {
      const S shrink = exp(max - tile_max);
      if (kCentred && sum > S(0)) moment += sum * (max - tile_max);
      sum *= shrink;
      moment = weighted(shrink, moment);  // an infinite moment of weight zero vanishes
      max = tile_max;
    }
    return level_of(max);
  }
  /// Adds a tile whose exps were taken from the level.
  FD_INLINE void add(S tile_sum, S tile_moment = S(0)) {
    sum += tile_sum;  // a NaN stays
    moment += tile_moment;
  }
  /// Adds a tile whose exps were taken from its own maximum.
  FD_INLINE void push(S tile_max, S tile_sum) {
    raise(tile_max);
    add(tile_max == max ? tile_sum : exp(tile_max - max) * tile_sum);
  }

  FD_INLINE S lse() const { return max + log(sum); }
  FD_INLINE S mean() const { return moment / sum; }
  FD_INLINE S entropy() const {
    static_assert(kCentred, "the entropy needs the moment of x - max");
    return log(sum) - mean();
  }
};

/// Subtracts a log-sum-exp in two parts, so that its own rounding does not shift the row.
template <class V>
struct Normalizer {
  V high, low;
  FD_INLINE explicit Normalizer(double lse)
      : high(lse), low(lse - static_cast<double>(static_cast<float>(lse))) {}
  FD_INLINE V operator()(V x) const { return (x - high) - low; }
};
template <>
FD_INLINE Normalizer<double>::Normalizer(double lse) : high(lse), low(0.0) {}

}  // namespace fastdistill
