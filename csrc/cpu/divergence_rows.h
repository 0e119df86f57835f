// The sweeps of a divergence over one row: the moments, the sums, the gradient.
#pragma once

#include "first_sweep.h"

namespace fastdistill {
namespace {

/// The tokens of a loaded tile. kKept: their probabilities come from the first sweep.
template <bool kKept, class S>
struct TileTokens {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  const Tile<S>& tile;
  const Normalizer<V> log_p, log_q;
  const S *kept_p, *kept_q;
  V scale_p, scale_q;

  FD_INLINE TileTokens(const Tile<S>& tile, const RowStats& stats, const KeptExps<S>& kept,
                       int64_t start)
      : tile(tile), log_p(stats.teacher_lse), log_q(stats.student_lse) {
    if constexpr (kKept) {
      kept_p = kept.teacher + start;
      kept_q = kept.student + start;
      scale_p = V(kept.level[start / kTile].teacher);
      scale_q = V(kept.level[start / kTile].student);
    }
  }

  FD_INLINE Token<V> operator()(int64_t i) const {
    const V lp = log_p(A::load_from(tile.teacher + i)), lq = log_q(A::load_from(tile.student + i));
    if constexpr (kKept) {
      return {lp, lq, rounded(A::load_from(kept_p + i) * scale_p),
              rounded(A::load_from(kept_q + i) * scale_q)};
    } else {
      return {lp, lq, rounded(exp(lp)), rounded(exp(lq))};
    }
  }
};

/// The first sweep: both log-sum-exps, the hard one where there are labels, and the moments of D.
template <class D, class S>
Moments<double> sweep_moments(const D& divergence, const RowReader<S>& row,
                              const RowProblem& problem, int64_t index, Tile<S>& tile,
                              RowStats& stats, const KeptExps<S>& keep) {
  FirstSweep<D, S> sides;
  OnlineSoftmax<double> hard, powers[3];
  const bool own_hard = problem.labels != nullptr && problem.temperature != 1.0;
  int64_t taken = 0;
  if (D::kPowers == 0 && !own_hard) {
    taken = sides.take_stored(problem, index, tile, keep, [&](int64_t start) {
      return row.load(row.source, start, kTile, tile);
    });
  }
  row.for_each_tile_from(taken, tile, [&](int64_t start, int64_t n, TilePair tile_max) {
    sides.take_loaded(start, n, tile_max, tile, keep);
    if (own_hard) push_hard(hard, tile, n, tile_max.student, problem.temperature);
    if constexpr (D::kPowers > 0) {
      for (int k = 0; k < D::kPowers; ++k) {
        push_power(powers[k], divergence.power(k), tile_max, n, tile);
      }
    }
  });
  const auto& student = sides.student;
  const auto& teacher = sides.teacher;
  stats.student_lse = student.lse();
  stats.teacher_lse = teacher.lse();
  stats.hard_lse = own_hard ? hard.lse() : stats.student_lse;
  if (!keep.empty()) {
    keep.template levels_to_factors<D::kSlopeIsRatio>(tiles_of(row.size),
                                                      {stats.student_lse, stats.teacher_lse});
  }
  Moments<double> moments{
      teacher.mean(), student.mean(), stats.teacher_lse - stats.student_lse, {}, 0.0, 0.0};
  if constexpr (D::kEntropies & kTeacherEntropy) moments.teacher_entropy = teacher.entropy();
  if constexpr (D::kEntropies & kStudentEntropy) moments.student_entropy = student.entropy();
  if constexpr (D::kPowers > 0) {
    for (int k = 0; k < D::kPowers; ++k) {
      const Power power = divergence.power(k);
      moments.log_power[k] =
          powers[k].lse() - log_power(power, stats.teacher_lse, stats.student_lse);
    }
  }
  return moments;
}

/// The second sweep: value and slope summed over the tokens.
template <bool kKept, class D, class S>
Sums<double> sweep_sums(const D& divergence, const RowReader<S>& row, Tile<S>& tile,
                        RowStats& stats, const KeptExps<S>& kept = {}) {
  using V = typename Arithmetic<S>::Value;
  Sums<double> sums{0.0, 0.0};
  OnlineSoftmax<double> state;
  row.for_each_tile(tile, [&](int64_t start, int64_t n, TilePair) {
    const TileTokens<kKept, S> tokens(tile, stats, kept, start);
    V value(0.0), slope(0.0);
    if constexpr (D::kLogSum) {
      V largest(-__builtin_inf());
      for_each_vector<S>(n,
                         [&](int64_t i) { largest = max(largest, divergence(tokens(i)).value); });
      const double tile_max = max_lanes(largest);
      if (tile_max == __builtin_inf()) return state.push(tile_max, 1.0);  // as in push_power
      const V shift(state.raise(tile_max));
      for_each_vector<S>(n, [&](int64_t i) {
        const Term<V> term = divergence(tokens(i));
        const V weight = exp(term.value - shift);
        value = value + weight;
        slope = slope + weight * term.dlogq;
      });
      state.add(sum_lanes(value), sum_lanes(slope));
    } else {
      for_each_vector<S>(n, [&](int64_t i) {
        const Term<V> term = divergence(tokens(i));
        value = value + term.value;
        slope = slope + term.dlogq;
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

/// Whether a row is summed with its entropies apart. Not in float64, which is there for its digits.
template <class D, class S>
inline constexpr bool kSumsApart = D::kApart && sizeof(S) == sizeof(float);

/// Value and slope of a divergence whose entropies are apart, from kept exps alone. The pulls y
/// take the place of the teacher's, which the gradient then does not need.
template <class D, class S>
Sums<double> sweep_apart(const D& divergence, int64_t size, const Moments<double>& moments,
                         const KeptExps<S>& kept) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  const double weight = divergence.student_weight();
  // -D and -R/w. An entropy that does not count is zero.
  double minus_value =
      divergence.teacher_weight() * moments.teacher_entropy + weight * moments.student_entropy;
  double minus_slope = moments.student_entropy;
  for (int64_t start = 0; start < size; start += kTile) {
    const int64_t n = size - start < kTile ? size - start : kTile;
    const TilePair factor = kept.level[start / kTile];
    const V scale_p(factor.teacher), scale_q(factor.student);
    V crossed(0.0), pulled(0.0);
    for_each_vector<S>(n, [&](int64_t i) {
      const V p = rounded(A::load_from(kept.teacher + start + i) * scale_p);
      const V q = rounded(A::load_from(kept.student + start + i) * scale_q);
      const Apart<V> token = divergence.apart(p, q);
      crossed = crossed + token.crossed;
      pulled = pulled + q * token.pull;
      store(kept.teacher + start + i, token.pull);
    });
    minus_value += sum_lanes(crossed);
    minus_slope += sum_lanes(pulled);
  }
  // Where one is NaN both are: log_positive makes a number of it.
  return {-(minus_value + 0.0 * minus_slope), -weight * (minus_slope + 0.0 * minus_value)};
}

/// The value of D of a row of logits, in one sweep where D allows it; fills stats, and the kept
/// exps where there is room for them.
template <class D, class S>
double measure(const D& divergence, const RowReader<S>& row, const RowProblem& problem,
               int64_t index, Tile<S>& tile, RowStats& stats, const KeptExps<S>& keep) {
  const Moments<double> moments = sweep_moments(divergence, row, problem, index, tile, stats, keep);
  const auto sum_up = [&](const auto& summand) {
    if constexpr (!D::kSlopeIsRatio) {
      if (!keep.empty()) return sweep_sums<true>(summand, row, tile, stats, keep);
    }
    return sweep_sums<false>(summand, row, tile, stats);
  };
  Sums<double> sums;
  if constexpr (kHasOneSweep<D>) {
    sums = divergence.one_sweep(moments);
    stats.log_sum = moments.log_power[0];
    if (sum_again(sums.value, moments.lse_gap)) {
      if constexpr (D::kLogSum) {
        sums.value = divergence.factor() * log1p(sum_up(divergence.near_one()).value);
      } else {
        sums = sum_up(divergence);
      }
    }
  } else if constexpr (kSumsApart<D, S>) {
    sums = sweep_apart(divergence, row.size, moments, keep);
    if (D::kEntropies != 0 && sum_again(sums.value, moments.lse_gap)) {
      sums.value = sweep_sums<false>(divergence, row, tile, stats).value;
    }
  } else {
    sums = sum_up(divergence);
  }
  stats.slope = sums.slope;
  return max(sums.value, 0.0);
}

/// Whether the gradient of D comes from what the sweeps of a row kept, and whether it takes the
/// student's logits beside that.
template <class D, class S>
inline constexpr bool kGradientFromKept = D::kSlopeIsGap || D::kSlopeIsRatio || kSumsApart<D, S>;
template <class D, class S>
inline constexpr bool kGradientTakesLogits =
    kSumsApart<D, S> && (D::kEntropies & kStudentEntropy) != 0;

/// weight dD/dx of token i of a tile, from what the sweeps of its row kept, as a function of i.
/// x(i) is the student's logit, which is looked at if kGradientTakesLogits.
template <class D, class S, class Logit>
FD_INLINE auto gradient_of_kept(const D& divergence, const RowStats& stats, double weight,
                                const KeptExps<S>& kept, int64_t start, Logit x) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  const S *of_student = kept.student + start, *other = kept.teacher + start;
  const TilePair factor = kept.level[start / kTile];
  if constexpr (D::kSlopeIsGap) {
    const V scale_q(weight * factor.student), scale_p(weight * factor.teacher);
    return [=](int64_t i) {
      return rounded(A::load_from(of_student + i) * scale_q) -
             rounded(A::load_from(other + i) * scale_p);
    };
  } else if constexpr (D::kSlopeIsRatio) {
    const V w(weight), scale_q(factor.student), slope_sum(stats.slope);
    const Normalizer<V> log_ratio(factor.teacher);
    return [=](int64_t i) {
      const V q = rounded(A::load_from(of_student + i) * scale_q);
      return w * (weighted(q, log_ratio(A::load_from(other + i))) - q * slope_sum);
    };
  } else {
    const double own = divergence.student_weight();
    const V scale_q(weight * own * factor.student), mean(stats.slope / own);
    const Normalizer<V> log_q(stats.student_lse);
    return [=](int64_t i) {
      V slope = -A::load_from(other + i);
      if constexpr (kGradientTakesLogits<D, S>) slope = finite(log_q(x(i))) + slope;
      return A::load_from(of_student + i) * scale_q * (slope - mean);
    };
  }
}

/// tile.gradient = weight dD/dx for a loaded tile.
template <bool kKept, class D, class S>
FD_INLINE void divergence_gradient(const D& divergence, const RowStats& stats, double weight,
                                   int64_t start, int64_t n, Tile<S>& tile,
                                   const KeptExps<S>& kept = {}) {
  using V = typename Arithmetic<S>::Value;
  using A = Arithmetic<S>;
  if constexpr (kKept && kGradientFromKept<D, S>) {
    const auto x = [&](int64_t i) { return A::load_from(tile.student + i); };
    const auto gradient = gradient_of_kept(divergence, stats, weight, kept, start, x);
    for_each_vector<S>(n, [&](int64_t i) { store(tile.gradient + i, gradient(i)); });
  } else {
    const V w(weight), slope_sum(stats.slope), log_sum(stats.log_sum);
    const TileTokens<kKept, S> tokens(tile, stats, kept, start);
    for_each_vector<S>(n, [&](int64_t i) {
      store(tile.gradient + i, w * gradient_of(divergence, tokens(i), slope_sum, log_sum));
    });
  }
}

}  // namespace
}  // namespace fastdistill
