// exp, log and tanh of Vec: the algorithms of scalar_math.h, or better ones where a register can be
// indexed.
#pragma once

#include "vec.h"

namespace fastdistill {
namespace {

FD_INLINE Vec pow2(Vec biased) { return (FloatLanes)((WordLanes)biased.lanes << 23); }
FD_INLINE void split_pow2(Vec x, Vec& mantissa, Vec& exponent) {
  const IntLanes shifted = (IntLanes)x.lanes - 0x3f3504f3;
  exponent = __builtin_convertvector(shifted >> 23, FloatLanes);
  mantissa = (FloatLanes)((shifted & 0x7fffff) + 0x3f3504f3);
}

#if defined(__AVX2__)

/// Eight numbers that lie in one register, looked up by the last three bits of each lane.
template <class T>
struct alignas(32) Table {
  T entries[8];

  FD_INLINE WordLanes operator[](WordLanes index) const {
    const __m256i table = load_bits<__m256i>(entries);
#if defined(__AVX512F__)  // indexed by four bits: the table twice
    const __m512i twice = _mm512_maskz_broadcast_i64x4(0xff, table);
    return (WordLanes)_mm512_maskz_permutexvar_epi32(0xffff, (__m512i)index, twice);
#else
    return (WordLanes)_mm256_permutevar8x32_epi32(table, (__m256i)index);
#endif
  }
};

/// 2^(n/8), given biased = n + kEighthsBias as a float. Its low bits hold n + 8 * 127: the last
/// three choose the mantissa, and those above, shifted up, are the exponent. What the three add to
/// the mantissa when shifted is taken away from the entry beforehand.
constexpr float kEighthsBias = 12582912.0f + 8 * 127.0f;  // 1.5 * 2^23 + 8 * 127
FD_INLINE Vec pow2_eighths(Vec biased) {
  static constexpr Table<int32_t> kMantissas{
      {0x000000 - (0 << 20), 0x0b95c2 - (1 << 20), 0x1837f0 - (2 << 20), 0x25fed7 - (3 << 20),
       0x3504f3 - (4 << 20), 0x45672a - (5 << 20), 0x5744fd - (6 << 20), 0x6ac0c7 - (7 << 20)}};
  const WordLanes bits = (WordLanes)biased.lanes;
  return (FloatLanes)(kMantissas[bits] + (bits << 20));
}

/// exp(x) for x <= 88: x = n ln(2)/8 + r, |r| <= ln(2)/16, 2^(n/8) from a table, and a minimax
/// polynomial of degree 3 in r. At most 2 ULP for |x| <= 16 and 5 ULP beyond, down to -87.3; then
/// less than 2^-126, and 0 from -88.03 on; exp(NaN) = NaN.
FD_INLINE Vec exp(Vec x) {
  const Vec clamped = above_exp_zero(x);  // n = -8 * 127 there, whose power is zero
  const Vec biased = clamped * Vec(8 * 1.44269504f) + Vec(kEighthsBias);  // rounds to an integer
  const Vec r = clamped - (biased - Vec(kEighthsBias)) * Vec(0.693147182f / 8);  // fused
  const Vec poly = r + r * r * (Vec(0.500064552f) + r * Vec(0.166668579f));
  const Vec power = pow2_eighths(biased);
  return power + power * poly;
}

/// x = m 2^e with m in [23/32, 46/32), whose bits make eight intervals. With c near the middle of
/// that of m, and log c near a float, r = m/c - 1 is in [-1/16, 1/16], and log x = e ln 2 + log c +
/// log(1 + r), the last by a minimax polynomial of degree 5. That around 1 has c = 1: there log x =
/// log(1 + r) keeps its last bits. Otherwise as detail::log_positive.
FD_INLINE Vec log_positive(Vec x) {
  static constexpr int32_t kLowest = 0x3f380000;  // bits of 23/32
  static constexpr Table<float> kInverse{{1.33256745f, 1.23096991f, 1.14280593f, 1.06645370f, 1.0f,
                                          0.888807893f, 0.800120592f, 0.727389693f}};
  static constexpr Table<float> kLog{{-0.287107497f, -0.207802400f, -0.133486584f, -0.0643388405f,
                                      0.0f, 0.117874160f, 0.222992823f, 0.318292916f}};
  const IntLanes shifted = (IntLanes)x.lanes - kLowest;
  const WordLanes interval = (WordLanes)(shifted >> 20);
  const Vec m = (FloatLanes)((shifted & 0x7fffff) + kLowest);
  const Vec e = __builtin_convertvector(shifted >> 23, FloatLanes);
  const Vec r = m * Vec((FloatLanes)kInverse[interval]) - Vec(1.0f);  // fused
  Vec poly(0.198084056f);
  poly = poly * r + Vec(-0.250690401f);
  poly = poly * r + Vec(0.333338380f);
  poly = poly * r + Vec(-0.499999434f);
  const Vec log_c = (FloatLanes)kLog[interval];
  return (e * Vec(0.693147182f) + log_c) + (r + r * r * poly);
}

#else
FD_INLINE Vec exp(Vec x) { return detail::exp(x); }
FD_INLINE Vec log_positive(Vec x) { return detail::log_positive(x); }
#endif

FD_INLINE Vec log(Vec x) { return select(x == x, log_positive(x), x); }
FD_INLINE Vec tanh(Vec x) { return detail::tanh(x); }

}  // namespace
}  // namespace fastdistill
