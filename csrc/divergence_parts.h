// What the divergences are written with: a token, its contribution, sums over a row, and the
// functions of probabilities that several of them share.
#pragma once

#include "scalar_math.h"

namespace fastdistill {

/// The contribution of one token and its derivative by log q. For kLogSum: the exponent and its.
template <class V>
struct Term {
  V value, dlogq;
};

/// One token, as a divergence sees it. The kernels know p and q, often without an exp.
template <class V>
struct Token {
  V log_p, log_q, p, q;
};

/// One token of a divergence whose entropies are apart: c and y of Separable::kApart.
template <class V>
struct Apart {
  V crossed, pull;
};

/// Sums over a row: the value D and the slope R = sum of r.
template <class S>
struct Sums {
  S value, slope;
};

/// What one sweep over the logits x_t (teacher) and x_s (student) can know.
template <class S>
struct Moments {
  S teacher_mean;  // E_p[x_t - x_s]
  S student_mean;  // E_q[x_s - x_t]
  S lse_gap;       // lse(x_t) - lse(x_s)
  S log_power[3];  // log sum p^a q^b, one for each `power`
  S teacher_entropy, student_entropy;

  FD_INLINE S forward_kl() const { return teacher_mean - lse_gap; }
  FD_INLINE S reverse_kl() const { return student_mean + lse_gap; }
};

/// The exponents of p^teacher q^student.
struct Power {
  double teacher, student;
};

enum Moment : unsigned { kTeacherMean = 1u, kStudentMean = 2u };
enum Entropy : unsigned { kTeacherEntropy = 1u, kStudentEntropy = 2u };

// ---- building blocks --------------------------------------------------------------------------

/// (exp(-r) - 1 + r) / r^2 for |r| <= kSeriesReach: Horner of the Taylor series in double, a
/// Chebyshev fit with a relative error of 1.4e-6 in float.
inline constexpr double kSeriesReach = 0.25;
FD_INLINE double excess_ratio(double r) {
  double sum = 1.0;
  for (int k = 14; k > 2; --k) sum = 1.0 - r / k * sum;
  return 0.5 * sum;
}
template <class V>
FD_INLINE V excess_ratio(V r) {
  const V low = r * V(-1.6666657e-1f) + V(4.9999931e-1f);
  return (r * V(-8.3457436e-3f) + V(4.1753557e-2f)) * (r * r) + low;
}

/// a log(a/b) + b - a >= 0, given r = log a - log b; exact to second order at a = b.
template <class V>
FD_INLINE V excess(V a, V b, V r) {
  const V near = a * (r * r) * excess_ratio(r), far = weighted(a, r) + (b - a);
  return select(abs(r) < V(kSeriesReach), near, far);
}

/// A mixture of probabilities, kept >= 2^-100 so that its logarithm is finite: what smaller ones
/// contribute to a sum over the vocabulary is below its last bit.
template <class V>
FD_INLINE V above_zero(V mixture) {
  return max(mixture, V(7.8886091e-31f));
}

/// log p, but finite, so that p log p is zero for p = 0.
template <class V>
FD_INLINE V finite(V log_p) {
  return max(log_p, V(-1e30));
}

/// a log p + b log q, the exponent of p^a q^b; -inf where p = 0 < a, whatever q is.
template <class V>
FD_INLINE V log_power(Power power, V log_p, V log_q) {
  V result = power.student == 0.0 ? V(0) : V(power.student) * log_q;
  if (power.teacher == 0.0) return result;
  result = result + V(power.teacher) * log_p;
  return select(log_p == V(-__builtin_inf()), log_p, result);
}

}  // namespace fastdistill
