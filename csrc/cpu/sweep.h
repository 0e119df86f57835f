// What every sweep over a row is made of: tiles, log-sum-exps, and the hard-label softmax.
//
// A row is anything that yields tiles of (student, teacher) values: the logits themselves, or the
// short list of a top-k teacher. Row-level numbers are double; only the elements are S.
#pragma once

#include "../divergence.h"
#include "../online_softmax.h"
#include "tile.h"

namespace fastdistill {
namespace {

struct TilePair {
  double student, teacher;
};

/// A row of (student, teacher) pairs, loaded tile by tile.
template <class S>
struct RowReader {
  int64_t size;
  const void* source;
  TilePair (*load)(const void* source, int64_t start, int64_t n, Tile<S>& tile);

  /// Calls f(start, n, maxima) for each tile in order.
  template <class F>
  FD_INLINE void for_each_tile(Tile<S>& tile, F f) const {
    for_each_tile_from(0, tile, f);
  }
  /// The same from the tile that begins at `first`.
  template <class F>
  FD_INLINE void for_each_tile_from(int64_t first, Tile<S>& tile, F f) const {
    for (int64_t start = first; start < size; start += kTile) {
      const int64_t n = size - start < kTile ? size - start : kTile;
      f(start, n, load(source, start, n, tile));
    }
  }
};

/// How far above the level of its exps an element may lie. A row of random logits breaks its record
/// half a dozen times, mostly by less, and then no tile has to be taken again for it.
constexpr double kHeadroom = 2.0;

/// Loops over the vectors of a tile.
template <class S, class F>
FD_INLINE void for_each_vector(int64_t n, F f) {
  for (int64_t i = 0; i < n; i += Arithmetic<S>::kWidth) f(i);
}

/// sum exp(x - level) of n elements.
template <class S>
FD_INLINE double sum_exps(const S* x, int64_t n, double level) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  const V shift(level);
  V sum(0.0);
  for_each_vector<S>(n, [&](int64_t i) { sum = sum + exp(A::load_from(x + i) - shift); });
  return sum_lanes(sum);
}

/// The same, with the exps stored.
template <class S>
FD_INLINE double sum_and_keep_exps(const S* x, int64_t n, double level, S* exps) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  const V shift(level);
  V sum(0.0);
  for_each_vector<S>(n, [&](int64_t i) {
    const V e = exp(A::load_from(x + i) - shift);
    store(exps + i, e);
    sum = sum + e;
  });
  return sum_lanes(sum);
}

/// Accumulates exp(a x_t + b x_s), taken from the maxima of the tile so that the level of the
/// logits costs no digits, and built in the tile's third buffer.
template <class S>
void push_power(OnlineSoftmax<double>& state, Power power, TilePair tile_max, int64_t n,
                Tile<S>& tile) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  const TilePair own{level_of(tile_max.student), level_of(tile_max.teacher)};
  const V teacher_level(own.teacher), student_level(own.student);
  V largest(-__builtin_inf());
  for_each_vector<S>(n, [&](int64_t i) {
    const V x = log_power(power, A::load_from(tile.teacher + i) - teacher_level,
                          A::load_from(tile.student + i) - student_level);
    store(tile.gradient + i, x);
    largest = max(largest, x);
  });
  const double x_max = max_lanes(largest);
  if (x_max == __builtin_inf()) return state.push(x_max, 1.0);  // p > 0 = q at a negative power
  const double level = power.teacher * own.teacher + power.student * own.student;
  state.push(x_max + level, sum_exps(tile.gradient, n, level_of(x_max)));
}

/// Accumulates the hard-label softmax, which is taken at T = 1: x T are its logits.
template <class S>
void push_hard(OnlineSoftmax<double>& state, const Tile<S>& tile, int64_t n, double tile_max,
               double temperature) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  // Level and products are numbers of S, so that the exps are taken exactly.
  const S factor = static_cast<S>(temperature);
  const V t(factor), shift(state.raise(static_cast<S>(tile_max) * factor));
  V sum(0.0);
  for_each_vector<S>(n, [&](int64_t i) {
    sum = sum + exp(rounded(A::load_from(tile.student + i) * t) - shift);
  });
  state.add(sum_lanes(sum));
}

/// Adds the gradient of cross entropy by x: T (softmax(x T) - onehot(label)).
template <class S>
void add_hard_gradient(Tile<S>& tile, int64_t n, double temperature, double hard_lse, double weight,
                       int64_t label_in_tile) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  const V t(temperature), by_x(weight * temperature);
  const Normalizer<V> normalize(hard_lse);
  for_each_vector<S>(n, [&](int64_t i) {
    const V hard = exp(normalize(rounded(A::load_from(tile.student + i) * t)));
    store(tile.gradient + i, A::load_from(tile.gradient + i) + by_x * hard);
  });
  if (0 <= label_in_tile && label_in_tile < n) {
    tile.gradient[label_in_tile] -= static_cast<S>(weight * temperature);
  }
}

}  // namespace
}  // namespace fastdistill
