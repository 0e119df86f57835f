// The sweeps of a divergence over one row: the statistics, the sums, the gradient.
//
// A row is anything that yields tiles of (student, teacher) values: the logits themselves, or the
// short list of a top-k teacher. Row-level numbers are double; only the elements are S.
#pragma once

#include "../divergence.h"
#include "../online_softmax.h"
#include "tile.h"

namespace fastdistill {
namespace {

struct TileMax {
  double student, teacher;
};

/// A row of (student, teacher) pairs, loaded tile by tile.
template <class S>
struct RowReader {
  int64_t size;
  const void* source;
  TileMax (*load)(const void* source, int64_t start, int64_t n, Tile<S>& tile);

  /// Calls f(n, maxima) for each tile in order.
  template <class F>
  FD_INLINE void for_each_tile(Tile<S>& tile, F f) const {
    for (int64_t start = 0; start < size; start += kTile) {
      const int64_t n = size - start < kTile ? size - start : kTile;
      f(start, n, load(source, start, n, tile));
    }
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

/// A finite stand-in for the maximum of a tile that holds nothing but -inf.
FD_INLINE double finite_max(double tile_max) { return tile_max == -__builtin_inf() ? 0.0 : tile_max; }

/// Loops over the vectors of a tile.
template <class S, class F>
FD_INLINE void for_each_vector(int64_t n, F f) {
  for (int64_t i = 0; i < n; i += Arithmetic<S>::kWidth) f(i);
}

/// Accumulates exp(x - max) of n elements, max being theirs.
template <class S>
FD_INLINE void push_tile(OnlineSoftmax& state, const S* x, int64_t n, double tile_max) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  const V shift(finite_max(tile_max));
  V sum(0.0);
  for_each_vector<S>(n, [&](int64_t i) { sum = sum + exp(A::load_from(x + i) - shift); });
  state.push(tile_max, sum_lanes(sum));
}

/// Accumulates exp(a x_t + b x_s), built in the tile's third buffer.
template <class S>
void push_power(OnlineSoftmax& state, Power power, int64_t n, Tile<S>& tile) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  V largest(-__builtin_inf());
  for_each_vector<S>(n, [&](int64_t i) {
    const V x = log_power(power, A::load_from(tile.teacher + i), A::load_from(tile.student + i));
    store(tile.gradient + i, x);
    largest = max(largest, x);
  });
  push_tile(state, tile.gradient, n, max_lanes(largest));
}

/// Accumulates the hard-label softmax, which is taken at T = 1: x T are its logits.
template <class S>
void push_hard(OnlineSoftmax& state, const Tile<S>& tile, int64_t n, double tile_max,
               double temperature) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  const V t(temperature), shift(finite_max(tile_max) * temperature);
  V sum(0.0);
  for_each_vector<S>(n, [&](int64_t i) {
    sum = sum + exp(A::load_from(tile.student + i) * t - shift);
  });
  state.push(tile_max * temperature, sum_lanes(sum));
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
    const V hard = exp(normalize(A::load_from(tile.student + i) * t));
    store(tile.gradient + i, A::load_from(tile.gradient + i) + by_x * hard);
  });
  if (0 <= label_in_tile && label_in_tile < n) {
    tile.gradient[label_in_tile] -= static_cast<S>(weight * temperature);
  }
}

/// The first sweep: both log-sum-exps, the hard one where `with_hard`, and the moments of D.
template <class D, class S>
Moments<double> sweep_moments(const D& divergence, const RowReader<S>& row, double temperature,
                              bool with_hard, Tile<S>& tile, RowStats& stats) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  OnlineSoftmax student, teacher, hard, powers[3];
  row.for_each_tile(tile, [&](int64_t, int64_t n, TileMax tile_max) {
    const V student_max(finite_max(tile_max.student)), teacher_max(finite_max(tile_max.teacher));
    V student_sum(0.0), teacher_sum(0.0), student_moment(0.0), teacher_moment(0.0);
    for_each_vector<S>(n, [&](int64_t i) {
      const V x_s = A::load_from(tile.student + i), x_t = A::load_from(tile.teacher + i);
      const V q = exp(x_s - student_max), p = exp(x_t - teacher_max);
      student_sum = student_sum + q;
      teacher_sum = teacher_sum + p;
      if constexpr (D::kMoments & kTeacherMean) {
        teacher_moment = teacher_moment + weighted(p, x_t - x_s);
      }
      if constexpr (D::kMoments & kStudentMean) {
        student_moment = student_moment + weighted(q, x_s - x_t);
      }
    });
    student.push(tile_max.student, sum_lanes(student_sum), sum_lanes(student_moment));
    teacher.push(tile_max.teacher, sum_lanes(teacher_sum), sum_lanes(teacher_moment));
    if (with_hard && temperature != 1.0) {
      push_hard(hard, tile, n, tile_max.student, temperature);
    }
    if constexpr (D::kPowers > 0) {
      for (int k = 0; k < D::kPowers; ++k) push_power(powers[k], divergence.power(k), n, tile);
    }
  });
  stats.student_lse = student.lse();
  stats.teacher_lse = teacher.lse();
  stats.hard_lse = with_hard && temperature != 1.0 ? hard.lse() : stats.student_lse;
  Moments<double> moments{teacher.mean(), student.mean(), stats.teacher_lse - stats.student_lse, {}};
  if constexpr (D::kPowers > 0) {
    for (int k = 0; k < D::kPowers; ++k) {
      const Power power = divergence.power(k);
      moments.log_power[k] =
          powers[k].lse() - log_power(power, stats.teacher_lse, stats.student_lse);
    }
  }
  return moments;
}

/// The second sweep: value and slope summed over normalised log-probabilities.
template <class D, class S>
Sums<double> sweep_sums(const D& divergence, const RowReader<S>& row, Tile<S>& tile, RowStats& stats) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  const Normalizer<V> log_p(stats.teacher_lse), log_q(stats.student_lse);
  const auto term = [&](int64_t i) {
    return divergence(log_p(A::load_from(tile.teacher + i)), log_q(A::load_from(tile.student + i)));
  };
  Sums<double> sums{0.0, 0.0};
  OnlineSoftmax state;
  row.for_each_tile(tile, [&](int64_t, int64_t n, TileMax) {
    V value(0.0), slope(0.0);
    if constexpr (D::kLogSum) {
      V largest(-__builtin_inf());
      for_each_vector<S>(n, [&](int64_t i) { largest = max(largest, term(i).value); });
      const double tile_max = max_lanes(largest);
      const V shift(finite_max(tile_max));
      for_each_vector<S>(n, [&](int64_t i) {
        const Term<V> t = term(i);
        const V weight = exp(t.value - shift);
        value = value + weight;
        slope = slope + weight * t.dlogq;
      });
      state.push(tile_max, sum_lanes(value), sum_lanes(slope));
    } else {
      for_each_vector<S>(n, [&](int64_t i) {
        const Term<V> t = term(i);
        value = value + t.value;
        slope = slope + t.dlogq;
      });
      sums.value += sum_lanes(value);
      sums.slope += sum_lanes(slope);
    }
  });
  if constexpr (D::kLogSum) {
    stats.log_sum = state.lse();
    sums = {divergence.factor() * stats.log_sum, divergence.factor() * state.mean()};
  }
  return sums;
}

/// One sweep leaves an absolute error of some 1e-7 (1 + |lse gap|); a value under this many times
/// (1 + |lse gap|) is therefore summed again in the normalised form, whose error is relative.
constexpr double kSumAgainBelow = 1e-2;

/// The value of D of a row of logits, in one sweep where D allows it; fills stats.
template <class D, class S>
double measure(const D& divergence, const RowReader<S>& row, double temperature, bool with_hard,
               Tile<S>& tile, RowStats& stats) {
  const Moments<double> moments =
      sweep_moments(divergence, row, temperature, with_hard, tile, stats);
  Sums<double> sums;
  if constexpr (kHasOneSweep<D>) {
    sums = divergence.one_sweep(moments);
    stats.log_sum = moments.log_power[0];
    if (sums.value < kSumAgainBelow * (1.0 + abs(moments.lse_gap))) {
      if constexpr (D::kLogSum) {
        const double excess = sweep_sums(divergence.near_one(), row, tile, stats).value;
        sums.value = divergence.factor() * __builtin_log1p(excess);
      } else {
        sums = sweep_sums(divergence, row, tile, stats);
      }
    }
  } else {
    sums = sweep_sums(divergence, row, tile, stats);
  }
  stats.slope = sums.slope;
  return max(sums.value, 0.0);
}

/// tile.gradient = weight dD/dx for a loaded tile.
template <class D, class S>
FD_INLINE void divergence_gradient(const D& divergence, const RowStats& stats, double weight,
                                   int64_t n, Tile<S>& tile) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  const Normalizer<V> log_p(stats.teacher_lse), log_q(stats.student_lse);
  const V w(weight), slope_sum(stats.slope), log_sum(stats.log_sum);
  for_each_vector<S>(n, [&](int64_t i) {
    const V lp = log_p(A::load_from(tile.teacher + i)), lq = log_q(A::load_from(tile.student + i));
    const V r = slope_of(divergence, lp, lq, log_sum);
    store(tile.gradient + i, w * (r - exp(lq) * slope_sum));
  });
}

}  // namespace
}  // namespace fastdistill
