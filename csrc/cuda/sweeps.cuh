// The sweeps of a divergence over one row, shared by the threads of a team.
//
// A reader yields chunks of (student, teacher) pairs to each thread; -inf on both sides is nothing.
// Threads accumulate in S, and their sums are merged in double.
#pragma once

#include "../divergence.h"
#include "../online_softmax.h"
#include "elements.cuh"
#include "reduce.cuh"

namespace fastdistill {

/// Merges the running softmaxes of all threads of the row.
template <int count, class S>
FD_DEVICE void merge(Reducer& reducer, const OnlineSoftmax<S> (&parts)[count],
                     OnlineSoftmax<double> (&merged)[count]) {
  double maxima[count], sums[2 * count];
  for (int k = 0; k < count; ++k) maxima[k] = static_cast<double>(parts[k].max);
  reducer.all(maxima, Max());
  for (int k = 0; k < count; ++k) {
    const S scale = exp(parts[k].max - level_of(static_cast<S>(maxima[k])));
    sums[2 * k] = static_cast<double>(scale * parts[k].sum);  // a NaN stays
    sums[2 * k + 1] = static_cast<double>(weighted(scale, parts[k].moment));
  }
  reducer.all(sums, Add());
  for (int k = 0; k < count; ++k) {
    merged[k].max = maxima[k];
    merged[k].sum = sums[2 * k];
    merged[k].moment = sums[2 * k + 1];
  }
}

/// What the first sweep finds.
struct Statistics {
  double student_lse, teacher_lse, hard_lse;
  Moments<double> moments;
};

/// Both log-sum-exps and the moments of D; the hard one, at T = 1, where `with_hard`.
template <class D, class S, class Reader>
FD_DEVICE Statistics sweep_moments(const Reader& reader, Reducer& reducer, double temperature,
                                   bool with_hard) {
  OnlineSoftmax<S> parts[3];
  OnlineSoftmax<S>&student = parts[0], &teacher = parts[1], &hard = parts[2];
  const bool own_hard = with_hard && temperature != 1.0;
  const S t = S(temperature);
  reader.for_each_chunk([&](int64_t, const Chunk<S>& x) {
    const S student_level = student.raise(max_of<S>(x.student));
    const S teacher_level = teacher.raise(max_of<S>(x.teacher));
    for (int j = 0; j < kChunk<S>; ++j) {
      const S q = exp(x.student[j] - student_level), p = exp(x.teacher[j] - teacher_level);
      student.add(q, D::kMoments & kStudentMean ? weighted(q, x.student[j] - x.teacher[j]) : S(0));
      teacher.add(p, D::kMoments & kTeacherMean ? weighted(p, x.teacher[j] - x.student[j]) : S(0));
    }
    if (own_hard) {
      const S level = hard.raise(max_of<S>(x.student) * t);
      for (int j = 0; j < kChunk<S>; ++j) hard.add(exp(x.student[j] * t - level));
    }
  });
  OnlineSoftmax<double> merged[3];
  merge(reducer, parts, merged);
  Statistics found{};
  found.student_lse = merged[0].lse();
  found.teacher_lse = merged[1].lse();
  found.hard_lse = own_hard ? merged[2].lse() : found.student_lse;
  found.moments.student_mean = merged[0].mean();
  found.moments.teacher_mean = merged[1].mean();
  found.moments.lse_gap = found.teacher_lse - found.student_lse;
  return found;
}

/// The tokens of a chunk, once the log-sum-exps are known.
template <class S>
struct Tokens {
  Normalizer<S> log_p, log_q;

  FD_DEVICE explicit Tokens(const RowStats& stats)
      : log_p(stats.teacher_lse), log_q(stats.student_lse) {}

  FD_DEVICE Token<S> operator()(const Chunk<S>& x, int j) const {
    const S lp = log_p(x.teacher[j]), lq = log_q(x.student[j]);
    return {lp, lq, rounded(exp(lp)), rounded(exp(lq))};
  }
};

/// The second sweep: value and slope summed over the tokens; fills stats.log_sum.
template <class D, class S, class Reader>
FD_DEVICE Sums<double> sweep_sums(const D& divergence, const Reader& reader, Reducer& reducer,
                                  RowStats& stats) {
  const Tokens<S> tokens(stats);
  if constexpr (D::kLogSum) {
    OnlineSoftmax<S> parts[1];
    OnlineSoftmax<double> merged[1];
    reader.for_each_chunk([&](int64_t, const Chunk<S>& x) {
      Term<S> terms[kChunk<S>];
      S largest = S(-__builtin_inf());
      for (int j = 0; j < kChunk<S>; ++j) {
        terms[j] = divergence(tokens(x, j));
        largest = max(largest, terms[j].value);
      }
      const S level = parts[0].raise(largest);
      for (int j = 0; j < kChunk<S>; ++j) {
        const S weight = exp(terms[j].value - level);
        parts[0].add(weight, weight * terms[j].dlogq);
      }
    });
    merge(reducer, parts, merged);
    stats.log_sum = merged[0].lse();
    return {divergence.factor() * stats.log_sum, divergence.factor() * merged[0].mean()};
  } else {
    S value(0), slope(0);
    reader.for_each_chunk([&](int64_t, const Chunk<S>& x) {
      for (int j = 0; j < kChunk<S>; ++j) {
        const Term<S> term = divergence(tokens(x, j));
        value += term.value;
        slope += term.dlogq;
      }
    });
    double sums[2] = {static_cast<double>(value), static_cast<double>(slope)};
    reducer.all(sums, Add());
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
