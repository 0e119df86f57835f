// Every divergence of the library, each as one struct: the only place with a formula.
//
// p is the teacher, q the student, both normalised over the vocabulary. A struct maps one token,
// (p, q) and their logarithms, to the token's contribution l and its derivative r = dl / d log q.
// With z the student logits at temperature T, the chain rule through the softmax gives for every
// such sum
//
//     D = sum_v l_v,        dD/dz_v = (r_v - q_v R) / T,        R = sum_u r_u,
//
// so the kernels hold that line and nothing about a divergence.
//
// Four conventions make the float results exact where they matter:
//  * Normalised form. A multiple c of (q - p), which sums to zero, is added to l so that l >= 0 and
//    l vanishes to second order at p = q. The sum cannot be negative, and an error of the
//    log-sum-exp enters it only to second order (`excess`). `balance` is c.
//  * r may be shifted by any multiple of q, which the gradient does not see. It is chosen such that
//    r is small where the student is certain (q near 1): there r - q R would cancel.
//  * l = r = 0 wherever p = q = 0, so -inf padding changes nothing, and l = +inf where it truly is.
//  * A divergence that is the logarithm of a sum (`kLogSum`) gives the exponent e of its summand:
//    D = factor * log sum_v exp(e_v); the kernels form that sum as a log-sum-exp.
//
// A divergence whose value and R follow from exponentially weighted moments of the logits
// (`kMoments`) or from further log-sum-exps (`kPowers`) needs no second look at the row:
// `one_sweep`.
#pragma once

#include "divergence_parts.h"

namespace fastdistill {

/// What a divergence is unless it says otherwise. A kLogSum with one_sweep also has near_one(): its
/// sum minus one, as a divergence in normalised form.
struct Separable {
  static constexpr bool kLogSum = false;
  static constexpr unsigned kMoments = 0;
  static constexpr int kPowers = 0;
  static constexpr int kParameters = 0;
  static constexpr bool kSlopeIsGap = false;    // r = q - p, whose sum R is zero
  static constexpr bool kSlopeIsRatio = false;  // r = q (log q - log p)

  // Where the entropies H can be set apart there is apart(p, q): c and y of a token such that
  //
  //     D = -w_p H(p) - w H(q) - sum c,      r = w q (log q - y),
  //
  // or the same without H(p), or without H(q) and log q. That takes no logarithm of p and costs
  // less than the normalised form. Its rounding errors are those of terms that cancel: it will do
  // for a sum that is not small.
  static constexpr bool kApart = false;
  static constexpr unsigned kEntropies = 0;
  FD_INLINE double teacher_weight() const { return 0.0; }  // w_p
  FD_INLINE double student_weight() const { return 1.0; }  // w

  FD_INLINE double balance() const { return 0.0; }
};

struct LogSum : Separable {
  static constexpr bool kLogSum = true;
};

// ---- the divergences --------------------------------------------------------------------------

/// KL(p || q) = sum p (log p - log q).
struct ForwardKL : Separable {
  static constexpr unsigned kMoments = kTeacherMean;
  static constexpr bool kSlopeIsGap = true;
  FD_INLINE explicit ForwardKL(const double*) {}
  FD_INLINE double balance() const { return 1.0; }

  template <class V>
  FD_INLINE Term<V> operator()(const Token<V>& t) const {
    return {excess(t.p, t.q, t.log_p - t.log_q), t.q - t.p};
  }
  template <class S>
  FD_INLINE Sums<S> one_sweep(const Moments<S>& m) const {
    return {m.forward_kl(), S(0)};
  }
};

/// KL(q || p) = sum q (log q - log p).
struct ReverseKL : Separable {
  static constexpr unsigned kMoments = kStudentMean;
  static constexpr bool kSlopeIsRatio = true;
  FD_INLINE explicit ReverseKL(const double*) {}
  FD_INLINE double balance() const { return -1.0; }

  template <class V>
  FD_INLINE Term<V> operator()(const Token<V>& t) const {
    const V r = t.log_q - t.log_p;
    return {excess(t.q, t.p, r), weighted(t.q, r)};
  }
  template <class S>
  FD_INLINE Sums<S> one_sweep(const Moments<S>& m) const {
    return {m.reverse_kl(), m.reverse_kl()};
  }
};

/// w KL(p || q) + (1 - w) KL(q || p).
struct SymmetricKL : Separable {
  static constexpr unsigned kMoments = kTeacherMean | kStudentMean;
  static constexpr int kParameters = 1;
  double weight;
  FD_INLINE explicit SymmetricKL(const double* parameters) : weight(parameters[0]) {}
  FD_INLINE double balance() const { return 2.0 * weight - 1.0; }

  template <class V>
  FD_INLINE Term<V> operator()(const Token<V>& t) const {
    const V w(weight), v(1.0 - weight);
    const V r = t.log_q - t.log_p;
    return {weighted(w, excess(t.p, t.q, -r)) + weighted(v, excess(t.q, t.p, r)),
            w * (t.q - t.p) + weighted(v, weighted(t.q, r))};
  }
  template <class S>
  FD_INLINE Sums<S> one_sweep(const Moments<S>& m) const {
    const S reverse = weighted(S(1.0 - weight), m.reverse_kl());
    return {weighted(S(weight), m.forward_kl()) + reverse, reverse};
  }
};

/// b KL(p || m) + (1 - b) KL(q || m), m = b p + (1 - b) q.
struct JensenShannon : Separable {
  static constexpr bool kApart = true;
  static constexpr unsigned kEntropies = kTeacherEntropy | kStudentEntropy;
  static constexpr int kParameters = 1;
  double beta, log_rest;
  FD_INLINE explicit JensenShannon(const double* parameters)
      : beta(parameters[0]), log_rest(log(1.0 - beta)) {}
  FD_INLINE double teacher_weight() const { return beta; }
  FD_INLINE double student_weight() const { return 1.0 - beta; }

  template <class V>
  FD_INLINE Term<V> operator()(const Token<V>& t) const {
    const V b(beta), c(1.0 - beta);
    const V m = above_zero(b * t.p + c * t.q), log_m = log(m), r = t.log_q - log_m;
    return {b * excess(t.p, m, t.log_p - log_m) + c * excess(t.q, m, r),
            c * weighted(t.q, r + V(log_rest))};
  }
  template <class V>
  FD_INLINE Apart<V> apart(V p, V q) const {
    const V b(beta), c(1.0 - beta);
    const V m = b * p + c * q, log_m = log_positive(m);
    return {m * log_m, log_m - V(log_rest)};
  }
};

/// KL(p || m), m = a p + (1 - a) q.
struct SkewForwardKL : Separable {
  static constexpr bool kApart = true;
  static constexpr unsigned kEntropies = kTeacherEntropy;
  static constexpr int kParameters = 1;
  double alpha;
  FD_INLINE explicit SkewForwardKL(const double* parameters) : alpha(parameters[0]) {}
  FD_INLINE double balance() const { return 1.0 - alpha; }
  FD_INLINE double teacher_weight() const { return 1.0; }
  FD_INLINE double student_weight() const { return 1.0 - alpha; }

  template <class V>
  FD_INLINE Term<V> operator()(const Token<V>& t) const {
    const V a(alpha), c(1.0 - alpha);
    const V m = above_zero(a * t.p + c * t.q);
    return {excess(t.p, m, t.log_p - log(m)), -(c * t.q * t.p / m)};
  }
  template <class V>
  FD_INLINE Apart<V> apart(V p, V q) const {
    const V a(alpha), c(1.0 - alpha);
    const V m = above_zero(a * p + c * q);
    return {p * log_positive(m), p / m};
  }
};

/// KL(q || m), m = a q + (1 - a) p.
struct SkewReverseKL : Separable {
  static constexpr bool kApart = true;
  static constexpr unsigned kEntropies = kStudentEntropy;
  static constexpr int kParameters = 1;
  double alpha, log_alpha;
  FD_INLINE explicit SkewReverseKL(const double* parameters)
      : alpha(parameters[0]), log_alpha(log(alpha)) {}
  FD_INLINE double balance() const { return alpha - 1.0; }

  template <class V>
  FD_INLINE Term<V> operator()(const Token<V>& t) const {
    const V a(alpha), c(1.0 - alpha);
    const V m = above_zero(a * t.q + c * t.p), r = t.log_q - log(m);
    return {excess(t.q, m, r), weighted(t.q, r + V(log_alpha + 1.0)) - a * t.q * t.q / m};
  }
  template <class V>
  FD_INLINE Apart<V> apart(V p, V q) const {
    const V a(alpha), c(1.0 - alpha);
    const V m = above_zero(a * q + c * p), log_m = log_positive(m);
    return {q * log_m, log_m + (a * q / m - V(log_alpha + 1.0))};
  }
};

/// 1/2 sum |p - q|, with the subgradient 0 where p = q.
struct TotalVariation : Separable {
  static constexpr bool kApart = true;
  FD_INLINE explicit TotalVariation(const double*) {}

  template <class V>
  FD_INLINE Term<V> operator()(const Token<V>& t) const {
    const Apart<V> token = apart(t.p, t.q);
    return {-token.crossed, -(t.q * token.pull)};
  }
  template <class V>
  FD_INLINE Apart<V> apart(V p, V q) const {
    const V gap = q - p;
    return {V(-0.5) * abs(gap), select(gap < V(0), V(1), select(V(0) < gap, V(0), V(0.5)))};
  }
};

/// -log sum min(p, q).
struct NegativeLogAcceptance : LogSum {
  FD_INLINE explicit NegativeLogAcceptance(const double*) {}
  FD_INLINE double factor() const { return -1.0; }

  template <class V>
  FD_INLINE Term<V> operator()(const Token<V>& t) const {
    const V r = t.log_q - t.log_p;
    const V slope = select(r < V(0), V(1), select(V(0) < r, V(0), V(0.5)));
    const V smaller = select(t.log_q < t.log_p, t.log_q, t.log_p);
    return {select(t.log_q == t.log_q, smaller, t.log_q), slope};
  }
};

/// log(sum p^a q^(1-a)) / (a - 1).
struct Renyi : LogSum {
  static constexpr int kPowers = 1;
  static constexpr int kParameters = 1;
  double alpha;
  FD_INLINE explicit Renyi(const double* parameters) : alpha(parameters[0]) {}
  FD_INLINE double factor() const { return 1.0 / (alpha - 1.0); }
  FD_INLINE Power power(int) const { return {alpha, 1.0 - alpha}; }

  template <class V>
  FD_INLINE Term<V> operator()(const Token<V>& t) const {
    return {log_power(power(0), t.log_p, t.log_q), V(1.0 - alpha)};
  }
  template <class S>
  FD_INLINE Sums<S> one_sweep(const Moments<S>& m) const {
    return {S(factor()) * m.log_power[0], S(-1)};
  }

  /// sum p^a q^(1-a) - 1 as a sum in normalised form, for rows where it is small.
  struct NearOne : Separable {
    double alpha;
    FD_INLINE explicit NearOne(double alpha) : alpha(alpha) {}

    template <class V>
    FD_INLINE Term<V> operator()(const Token<V>& t) const {
      const V a(alpha), r = t.log_p - t.log_q;
      const V reach = abs(r) * V(alpha < 1.0 ? 1.0 : alpha);
      const V near = t.q * r * r * a * (a * excess_ratio(-(a * r)) - excess_ratio(-r));
      const V power = exp(log_power({alpha, 1.0 - alpha}, t.log_p, t.log_q));
      const V far = power - a * t.p - V(1.0 - alpha) * t.q;
      return {select(reach < V(kSeriesReach), near, far), V(0)};
    }
  };
  FD_INLINE NearOne near_one() const { return NearOne(alpha); }
};

/// -1/(ab) sum [p^a q^b - a/(a+b) p^(a+b) - b/(a+b) q^(a+b)]; each summand is >= 0 (Young).
struct AlphaBeta : Separable {
  static constexpr int kPowers = 3;
  static constexpr int kParameters = 2;
  double alpha, beta;
  FD_INLINE explicit AlphaBeta(const double* parameters)
      : alpha(parameters[0]), beta(parameters[1]) {}
  FD_INLINE Power power(int k) const {
    const double sum = alpha + beta;
    return k == 0 ? Power{alpha, beta} : k == 1 ? Power{sum, 0.0} : Power{0.0, sum};
  }

  template <class V>
  FD_INLINE Term<V> operator()(const Token<V>& t) const {
    const V a(alpha), b(beta), sum(alpha + beta);
    const V both = exp(a * t.log_p + b * t.log_q);
    const V p = exp(sum * t.log_p), q = exp(sum * t.log_q);
    // With r = log p - log q, p^(a+b) = both exp(b r) and q^(a+b) = both exp(-a r): the summand is
    // both [a excess(b r) + b excess(-a r)] / (a + b), taken from the series where r is small.
    const V r = t.log_p - t.log_q, reach = abs(r) * V(alpha < beta ? beta : alpha);
    const V near = both * r * r * (b * excess_ratio(-(b * r)) + a * excess_ratio(a * r));
    const V far = (a * p + b * q - sum * both) / V(alpha * beta);
    return {select(reach < V(kSeriesReach), near, far) / sum, (q - t.q - both) / a};
  }
  template <class S>
  FD_INLINE Sums<S> one_sweep(const Moments<S>& m) const {
    const S a(alpha), b(beta), both = exp(m.log_power[0]);
    const S p = exp(m.log_power[1]), q = exp(m.log_power[2]);
    return {((a * p + b * q) / (a + b) - both) / (a * b), (q - S(1) - both) / a};
  }
};

/// The list. Everything else - dispatch, bindings, tests - iterates it.
#define FASTDISTILL_DIVERGENCES(X) \
  X(ForwardKL)                     \
  X(ReverseKL)                     \
  X(SymmetricKL)                   \
  X(JensenShannon)                 \
  X(SkewForwardKL)                 \
  X(SkewReverseKL)                 \
  X(TotalVariation)                \
  X(NegativeLogAcceptance)         \
  X(Renyi)                         \
  X(AlphaBeta)

// ---- metrics ----------------------------------------------------------------------------------

/// What is reported beside any loss: the contributions of one token.
template <class V>
struct Observed {
  V forward_kl, reverse_kl, overlap, student_entropy, teacher_entropy;
};

/// KL(p || q), KL(q || p), sum min(p, q), H(q), H(p) of a row are the sums of these.
template <class V>
FD_INLINE Observed<V> observe(const Token<V>& t) {
  const V r = t.log_p - t.log_q;
  const V overlap = select(t.q == t.q, min(t.p, t.q), t.q);  // min lets a NaN of p through
  return {excess(t.p, t.q, r), excess(t.q, t.p, -r), overlap, -weighted(t.q, t.log_q),
          -weighted(t.p, t.log_p)};
}

// ---- what the kernels ask ---------------------------------------------------------------------

template <class D>
inline constexpr bool kHasOneSweep = (D::kMoments != 0) || (D::kPowers != 0);

/// One sweep leaves an absolute error of some 1e-7 (1 + |lse gap|); a value under 1e-2 times that
/// is therefore summed again in the normalised form, whose error is relative.
FD_INLINE bool sum_again(double value, double lse_gap) {
  return value < 1e-2 * (1.0 + abs(lse_gap));
}

/// The derivative r of one token; `log_sum` is log sum exp(e), used by kLogSum alone.
template <class D, class V>
FD_INLINE V slope_of(const D& divergence, const Token<V>& token, V log_sum) {
  const Term<V> term = divergence(token);
  if constexpr (D::kLogSum) {
    return V(divergence.factor()) * exp(term.value - log_sum) * term.dlogq;
  } else {
    return term.dlogq;
  }
}

/// dD/dx = r - q R of one token.
template <class D, class V>
FD_INLINE V gradient_of(const D& divergence, const Token<V>& token, V slope_sum, V log_sum) {
  return slope_of(divergence, token, log_sum) - token.q * slope_sum;
}

}  // namespace fastdistill
