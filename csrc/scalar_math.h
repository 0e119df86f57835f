// exp, log, tanh and their small companions for one value type V.
//
// V is `float` (CUDA, scalar code), `double` (float64 inputs) or the CPU vector type `Vec` of
// cpu/vec.h. The float algorithms are written once as templates over three primitives that each
// float-like V provides: select, pow2, split_pow2. For double the C library
// is used.
#pragma once

#include <cstdint>
#include <cstring>

// FD_CALL: long, and in no hot loop but that of a softcap or of float64. nvcc compiles it once per
// kernel instead of at every use.
#if defined(__CUDACC__)
#define FD_INLINE __host__ __device__ __forceinline__
#define FD_CALL inline __device__ __noinline__
#else
#define FD_INLINE inline __attribute__((always_inline))
#define FD_CALL inline
#endif

namespace fastdistill {

// ---- primitives: float ----------------------------------------------------------------------

FD_INLINE float select(bool condition, float a, float b) { return condition ? a : b; }
FD_INLINE double select(bool condition, double a, double b) { return condition ? a : b; }

FD_INLINE float bits_to_float(int32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
FD_INLINE int32_t float_to_bits(float x) {
  int32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

/// 2^n, given n + kPow2Bias as a float with n in [-127, 127]; zero for n = -127. In the last place
/// of kPow2Bias stands 1, so its low bits hold n + 127: shifted up they are the exponent.
inline constexpr float kPow2Bias = 12582912.0f + 127.0f;  // 1.5 * 2^23 + 127
FD_INLINE float pow2(float biased) {
  return bits_to_float(static_cast<int32_t>(static_cast<uint32_t>(float_to_bits(biased)) << 23));
}
/// x = mantissa * 2^exponent with the mantissa in [sqrt(1/2), sqrt(2)), for normal x > 0.
FD_INLINE void split_pow2(float x, float& mantissa, float& exponent) {
  const int32_t shifted = float_to_bits(x) - 0x3f3504f3;  // bits of sqrt(1/2)
  exponent = static_cast<float>(shifted >> 23);
  mantissa = bits_to_float((shifted & 0x7fffff) + 0x3f3504f3);
}

// ---- companions --------------------------------------------------------------------------------

FD_INLINE float abs(float x) { return __builtin_fabsf(x); }
FD_INLINE double abs(double x) { return __builtin_fabs(x); }

/// max and min that let a NaN in `a` through.
template <class V>
FD_INLINE V max(V a, V b) {
  return select(a < b, b, a);
}
template <class V>
FD_INLINE V min(V a, V b) {
  return select(b < a, b, a);
}

/// x, but no less than where exp is zero.
template <class V>
FD_INLINE V above_exp_zero(V x) {
  return max(x, V(-88.0296919f));  // -127 ln 2
}

/// weight * x with 0 * inf = 0.
template <class V>
FD_INLINE V weighted(V weight, V x) {
  return weight * select(weight == V(0), V(0), x);  // so that a sum of it is fused
}

// ---- float algorithms, for float and for vectors of float ------------------------------------

namespace detail {

/// x - n ln 2. With fused multiply-add the product is exact and ln 2 is one float, whose error
/// grows with n to 2.4e-7 at n = 127; without it ln 2 is split in two (Cody-Waite).
template <class V>
FD_INLINE V subtract_ln2(V x, V n) {
#if defined(__FMA__) || defined(__ARM_FEATURE_FMA) || defined(__CUDA_ARCH__)
  return x - n * V(0.693147182f);
#else
  return (x - n * V(0.693359375f)) - n * V(-2.12194440e-4f);
#endif
}

/// exp(x) for x <= 88: x = n ln 2 + r, |r| <= ln(2)/2, and a minimax polynomial of degree 6 in r.
/// At most 2 ULP for |x| <= 16 and 5 ULP beyond, down to -87; 0 below -87.7; exp(NaN) = NaN.
template <class V>
FD_INLINE V exp(V x) {
  const V clamped = above_exp_zero(x);                       // n = -127 there, whose power is zero
  const V biased = clamped * V(1.44269504f) + V(kPow2Bias);  // rounds to an integer
  const V n = biased - V(kPow2Bias);
  const V r = subtract_ln2(clamped, n);
  V poly(1.3814467e-3f);
  poly = poly * r + V(8.3687808e-3f);
  poly = poly * r + V(4.1668393e-2f);
  poly = poly * r + V(1.6666520e-1f);
  poly = poly * r + V(0.49999994f);
  poly = poly * r + V(1.0f);
  poly = poly * r + V(1.0f);
  return poly * pow2(biased);
}

/// log of a positive normal x: x = m 2^e, f = m - 1 in [-0.29, 0.41], and a minimax polynomial of
/// (log m - f + f^2 / 2) / f^3. At most 2 ULP. Zero and negative arguments are not supported:
/// the answer for them, as for NaN, is some number.
template <class V>
FD_INLINE V log_positive(V x) {
  V m, e;
  split_pow2(x, m, e);
  const V f = m - V(1.0f), square = f * f;
  V poly(8.7004289e-2f);
  poly = poly * f + V(-1.4267486e-1f);
  poly = poly * f + V(1.4914770e-1f);
  poly = poly * f + V(-1.6577585e-1f);
  poly = poly * f + V(1.9963063e-1f);
  poly = poly * f + V(-2.5001338e-1f);
  poly = poly * f + V(3.3333910e-1f);
  // The leading terms come last: near m = 1 the result is f but for its last bits.
  const V log_m = f + (square * V(-0.5f) + f * square * poly);
  return e * V(0.693147182f) + log_m;
}

/// The same, with log(NaN) = NaN.
template <class V>
FD_INLINE V log(V x) {
  return select(x == x, log_positive(x), x);
}

/// tanh; odd polynomial under 5/8, 1 - 2/(exp(2|x|) + 1) above. At most 3 ULP.
template <class V>
FD_INLINE V tanh(V x) {
  const V size = abs(x);
  const V z = x * x;
  V poly(-5.70498872745e-3f);
  poly = poly * z + V(2.06390887954e-2f);
  poly = poly * z + V(-5.37397155531e-2f);
  poly = poly * z + V(1.33314422036e-1f);
  poly = poly * z + V(-3.33332819422e-1f);
  const V small = x + x * z * poly;
  const V twice = select(size > V(20.0f), V(40.0f), size + size);  // 1 beyond
  const V large = V(1.0f) - V(2.0f) / (detail::exp(twice) + V(1.0f));
  return select(size < V(0.625f), small, select(x < V(0.0f), -large, large));
}

}  // namespace detail

#if defined(__CUDA_ARCH__)
/// 2^(x log2 e), in two instructions: a relative error of 2 ULP and one rounding of |x|. Results
/// that would be subnormal are zero.
FD_INLINE float exp(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x * 1.44269504f));
  return result;
}
FD_INLINE float log(float x) { return ::logf(x); }
FD_CALL float tanh(float x) { return ::tanhf(x); }
FD_CALL double exp(double x) { return ::exp(x); }
FD_CALL double log(double x) { return ::log(x); }
FD_CALL double tanh(double x) { return ::tanh(x); }
FD_CALL double log1p(double x) { return ::log1p(x); }
#else
#if defined(FD_CUDA_ON_CPU)
/// Of an argument that is too large, as on a GPU: infinity.
FD_INLINE float exp(float x) { return x > 88.0f ? __builtin_inff() : detail::exp(x); }
#else
FD_INLINE float exp(float x) { return detail::exp(x); }
#endif
FD_INLINE float log(float x) { return detail::log(x); }
FD_INLINE float tanh(float x) { return detail::tanh(x); }
FD_INLINE double exp(double x) { return __builtin_exp(x); }
FD_INLINE double log(double x) { return __builtin_log(x); }
FD_INLINE double tanh(double x) { return __builtin_tanh(x); }
FD_INLINE double log1p(double x) { return __builtin_log1p(x); }
#endif

/// x as a rounded value: keeps the compiler from fusing the product that made it into the next sum,
/// where equal operands would then no longer have a difference of zero.
#if defined(__CUDA_ARCH__)
FD_INLINE float rounded(float x) {
  asm("" : "+f"(x));
  return x;
}
FD_INLINE double rounded(double x) {
  asm("" : "+d"(x));
  return x;
}
#else
template <class V>
FD_INLINE V rounded(V x) {
#if defined(__x86_64__)
  __asm__("" : "+x"(x));
#elif defined(__aarch64__)
  __asm__("" : "+w"(x));
#endif
  return x;
}
#endif

}  // namespace fastdistill
