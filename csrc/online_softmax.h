// The running state of a log-sum-exp over a row that is seen tile by tile.
#pragma once

#include "scalar_math.h"

namespace fastdistill {

/// sum exp(x) = exp(max) * sum and, with the same weights, moment = sum exp(x - max) f.
///
/// Tiles are pushed with their own maximum, so no term is ever scaled by more than one; the merge
/// order is the order of the tiles, which makes the result independent of threads.
struct OnlineSoftmax {
  double max = -__builtin_inf();
  double sum = 0.0;
  double moment = 0.0;

  FD_INLINE void push(double tile_max, double tile_sum, double tile_moment = 0.0) {
    if (tile_max > max) {
      const double shrink = exp(max - tile_max);
      sum *= shrink;
      moment = weighted(shrink, moment);  // an infinite moment of weight zero vanishes
      max = tile_max;
    }
    const double scale = tile_max == max ? 1.0 : exp(tile_max - max);
    sum += scale * tile_sum;  // a NaN stays
    moment += weighted(scale, tile_moment);
  }

  FD_INLINE double lse() const { return max + log(sum); }
  FD_INLINE double mean() const { return moment / sum; }
};

}  // namespace fastdistill
