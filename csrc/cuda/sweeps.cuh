// The sweeps of a divergence over one row, shared by the threads of a team.
//
// A reader yields chunks of (student, teacher) pairs to each thread, and knows the factors that
// make x of them. Threads accumulate in S, and their sums are merged in double.
#pragma once

#include "../divergence.h"
#include "slice.cuh"
#include "softmax.cuh"

namespace fastdistill {

/// The factors that make x of the two sides of a chunk.
template <class S>
struct Factors {
  S student, teacher;
};

/// What the first sweep finds.
struct Statistics {
  double student_lse, teacher_lse, hard_lse;
  Moments<double> moments;
};

/// Both sides of a chunk over their levels: sums of q and p and, with these weights, of x_s - x_t
/// and of x_t - x_s, as far as D asks.
template <class D, class S>
struct ChunkSums {
  static constexpr bool kStudent = (D::kMoments & kStudentMean) != 0;
  static constexpr bool kTeacher = (D::kMoments & kTeacherMean) != 0;
  static constexpr unsigned kMomentBits = (kStudent ? 1u : 0u) | (kTeacher ? 2u : 0u);

  S q = S(0), p = S(0), student = S(0), teacher = S(0);

  /// With care an infinite difference of weight zero is nothing; without it is NaN.
  template <bool with_care, class Chunk>
  FD_DEVICE void add(const Chunk& y, const Factors<S>& by, S level_s, S level_t) {
    FD_UNROLL for (int j = 0; j < y.kSize; ++j) {
      const S s = fused(y.student[j], by.student, -level_s);
      const S t = fused(y.teacher[j], by.teacher, -level_t);
      const S own_q = exp(s), own_p = exp(t);
      q += own_q;
      p += own_p;
      if (kStudent) student += with_care ? weighted(own_q, s - t) : own_q * (s - t);
      if (kTeacher) teacher += with_care ? weighted(own_p, t - s) : own_p * (t - s);
    }
    // Of the elements, not of what is left of them over the levels.
    const S gap = level_t - level_s;
    if (kStudent) student = fused(-gap, q, student);
    if (kTeacher) teacher = fused(gap, p, teacher);
  }
  FD_DEVICE bool has_room() const {
    return RunningSoftmax<S>::has_room(q + p + abs(student + teacher));
  }
};

/// Both log-sum-exps and the moments of D; the hard one, at T = 1, where `with_hard`.
template <class D, class S, class Reader>
FD_DEVICE Statistics sweep_moments(const Reader& reader, Reducer& reducer, double temperature,
                                   bool with_hard) {
  RunningSoftmax<S> parts[2], hard[1];
  RunningSoftmax<S>&student = parts[0], &teacher = parts[1];
  const bool own_hard = with_hard && temperature != 1.0;
  const Factors<S> by = reader.factors;
  const S by_hard = by.student * S(temperature);
  reader.for_each_chunk([&](int, const auto& y) {
    ChunkSums<D, S> sums;
    sums.template add<false>(y, by, student.max, teacher.max);
    if (!sums.has_room()) {
      sums = ChunkSums<D, S>();
      const S level_s = student.raise(max_of(y.student) * by.student);
      const S level_t = teacher.raise(max_of(y.teacher) * by.teacher);
      sums.template add<true>(y, by, level_s, level_t);
    }
    student.add(sums.q, sums.student);
    teacher.add(sums.p, sums.teacher);
    if (own_hard) hard[0].add_exps(y.student, by_hard);
  });
  Softmax merged[2];
  merge<ChunkSums<D, S>::kMomentBits>(reducer, parts, merged);
  Statistics found{};
  found.student_lse = merged[0].lse;
  found.teacher_lse = merged[1].lse;
  found.hard_lse = found.student_lse;
  if (own_hard) {
    Softmax merged_hard[1];
    merge<0u>(reducer, hard, merged_hard);
    found.hard_lse = merged_hard[0].lse;
  }
  found.moments.student_mean = merged[0].mean;
  found.moments.teacher_mean = merged[1].mean;
  found.moments.lse_gap = found.teacher_lse - found.student_lse;
  return found;
}

/// The tokens of a chunk, once the log-sum-exps are known.
template <class S>
class Tokens {
 public:
  FD_DEVICE Tokens(const Factors<S>& by, const RowStats& stats)
      : log_p_(by.teacher, stats.teacher_lse), log_q_(by.student, stats.student_lse) {}

  template <class Chunk>
  FD_DEVICE Token<S> operator()(const Chunk& y, int j) const {
    const S log_p = log_p_(y.teacher[j]), log_q = log_q_(y.student[j]);
    return {log_p, log_q, rounded(log_p_.prob(y.teacher[j])), rounded(log_q_.prob(y.student[j]))};
  }

 private:
  LogProb<S> log_p_, log_q_;
};

/// The second sweep: value and slope summed over the tokens; fills stats.log_sum.
template <class D, class S, class Reader>
FD_DEVICE Sums<double> sweep_sums(const D& divergence, const Reader& reader, Reducer& reducer,
                                  RowStats& stats) {
  const Tokens<S> tokens(reader.factors, stats);
  if constexpr (D::kLogSum) {
    RunningSoftmax<S> parts[1];
    Softmax merged[1];
    reader.for_each_chunk([&](int, const auto& y) {
      S exponents[y.kSize], slopes[y.kSize];
      for (int j = 0; j < y.kSize; ++j) {
        const Term<S> term = divergence(tokens(y, j));
        exponents[j] = term.value;
        slopes[j] = term.dlogq;
      }
      S level = parts[0].raise(max_of(exponents));
      if (level == S(__builtin_inf())) level = S(0);  // then the sum is infinite, not NaN
      for (int j = 0; j < y.kSize; ++j) {
        const S weight = exp(exponents[j] - level);
        parts[0].add(weight, weight * slopes[j]);
      }
    });
    merge<1u>(reducer, parts, merged);
    stats.log_sum = merged[0].lse;
    return {divergence.factor() * stats.log_sum, divergence.factor() * merged[0].mean};
  } else {
    S value(0), slope(0);
    reader.for_each_chunk([&](int, const auto& y) {
      for (int j = 0; j < y.kSize; ++j) {
        const Term<S> term = divergence(tokens(y, j));
        value += term.value;
        slope += term.dlogq;
      }
    });
    double sums[2] = {static_cast<double>(value), static_cast<double>(slope)};
    reducer.all<Add>(sums);
    return {sums[0], sums[1]};
  }
}

/// A value that came out small, summed again in the normalised form.
template <class D, class S, class Reader>
FD_DEVICE double sum_small(const D& divergence, const Reader& reader, Reducer& reducer,
                           RowStats& stats) {
  if constexpr (D::kLogSum) {
    const auto near_one = divergence.near_one();
    using NearOne = std::decay_t<decltype(near_one)>;
    return divergence.factor() *
           log1p(sweep_sums<NearOne, S>(near_one, reader, reducer, stats).value);
  } else {
    return sweep_sums<D, S>(divergence, reader, reducer, stats).value;
  }
}

/// The value of D over a row whose log-sum-exps and moments are known; fills slope and log_sum.
///
/// Powers of probabilities are summed in a sweep of their own: they fit the second one.
template <class D, class S, class Reader>
FD_DEVICE double measure(const D& divergence, const Reader& reader, Reducer& reducer,
                         const Statistics& found, RowStats& stats) {
  Sums<double> sums;
  if constexpr (D::kMoments != 0) {
    sums = divergence.one_sweep(found.moments);
    if (sum_again(sums.value, found.moments.lse_gap)) {
      sums.value = sum_small<D, S>(divergence, reader, reducer, stats);
    }
  } else {
    sums = sweep_sums<D, S>(divergence, reader, reducer, stats);
    if constexpr (D::kLogSum && D::kPowers > 0) {
      if (sum_again(sums.value, found.moments.lse_gap)) {
        sums.value = sum_small<D, S>(divergence, reader, reducer, stats);
      }
    }
  }
  stats.slope = sums.slope;
  return max(sums.value, 0.0);
}

}  // namespace fastdistill
