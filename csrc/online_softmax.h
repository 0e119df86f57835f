// The running state of a log-sum-exp over a row that is seen tile by tile.
#pragma once

#include "scalar_math.h"

namespace fastdistill {

/// The level from which exps are taken: the maximum, or zero where nothing is above -inf.
FD_INLINE double level_of(double max) { return max == -__builtin_inf() ? 0.0 : max; }

/// sum exp(x) = exp(max) * sum and, with the same weights, moment = sum exp(x - max) f.
///
/// The maximum is raised before a tile is added, so no term is ever scaled by more than one; the
/// merge order is the order of the tiles, which makes the result independent of threads.
struct OnlineSoftmax {
  double max = -__builtin_inf();
  double sum = 0.0;
  double moment = 0.0;

  /// Takes a tile's maximum in; returns the level from which the tile's exps are to be taken.
  FD_INLINE double raise(double tile_max) {
    if (tile_max > max) {
      const double shrink = exp(max - tile_max);
      sum *= shrink;
      moment = weighted(shrink, moment);  // an infinite moment of weight zero vanishes
      max = tile_max;
    }
    return level_of(max);
  }
  /// Adds a tile whose exps were taken from the level.
  FD_INLINE void add(double tile_sum, double tile_moment = 0.0) {
    sum += tile_sum;  // a NaN stays
    moment += tile_moment;
  }
  /// Adds a tile whose exps were taken from its own maximum.
  FD_INLINE void push(double tile_max, double tile_sum) {
    raise(tile_max);
    add(tile_max == max ? tile_sum : exp(tile_max - max) * tile_sum);
  }

  FD_INLINE double lse() const { return max + log(sum); }
  FD_INLINE double mean() const { return moment / sum; }
};

}  // namespace fastdistill
