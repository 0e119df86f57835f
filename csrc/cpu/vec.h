// Vec: kLanes floats in one register, on the compiler's vector extensions.
//
// Included only by the files of one instruction set, so everything is in an unnamed namespace: two
// instruction sets never share a symbol. Offers what float offers in scalar_math.h, its functions
// in vec_math.h, and loads and stores of the storage types.
#pragma once

#if defined(__SSE2__)
#include <immintrin.h>
#endif

#include "../scalar_math.h"

namespace fastdistill {
namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float FloatLanes __attribute__((vector_size(4 * kLanes)));
typedef int32_t IntLanes __attribute__((vector_size(4 * kLanes)));
typedef uint32_t WordLanes __attribute__((vector_size(4 * kLanes)));
typedef uint16_t HalfLanes __attribute__((vector_size(2 * kLanes)));
typedef double DoubleLanes __attribute__((vector_size(8 * kLanes)));

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class To, class From>
FD_INLINE To load_bits(const From* from) {
  To to;
  memcpy(&to, from, sizeof to);
  return to;
}

struct Mask {
  IntLanes lanes;
};

struct Vec {
  FloatLanes lanes;
  Vec() = default;
  FD_INLINE Vec(FloatLanes x) : lanes(x) {}
  FD_INLINE explicit Vec(double x) : lanes(static_cast<float>(x) - FloatLanes{}) {}
};

FD_INLINE Vec operator+(Vec a, Vec b) { return a.lanes + b.lanes; }
FD_INLINE Vec operator-(Vec a, Vec b) { return a.lanes - b.lanes; }
FD_INLINE Vec operator*(Vec a, Vec b) { return a.lanes * b.lanes; }
FD_INLINE Vec operator/(Vec a, Vec b) { return a.lanes / b.lanes; }
FD_INLINE Vec operator-(Vec a) { return -a.lanes; }
FD_INLINE Mask operator<(Vec a, Vec b) { return {a.lanes < b.lanes}; }
FD_INLINE Mask operator>(Vec a, Vec b) { return {a.lanes > b.lanes}; }
FD_INLINE Mask operator==(Vec a, Vec b) { return {a.lanes == b.lanes}; }
FD_INLINE Vec select(Mask m, Vec a, Vec b) { return m.lanes ? a.lanes : b.lanes; }

FD_INLINE Vec abs(Vec x) { return (FloatLanes)((IntLanes)x.lanes & 0x7fffffff); }

/// max of scalar_math.h in one instruction: the second operand is returned where one is NaN.
FD_INLINE Vec max(Vec a, Vec b) {
#if defined(__AVX512F__)
  return (FloatLanes)_mm512_maskz_max_ps(0xffff, b.lanes, a.lanes);
#elif defined(__AVX__)
  return (FloatLanes)_mm256_max_ps(b.lanes, a.lanes);
#elif defined(__SSE2__)
  return (FloatLanes)_mm_max_ps(b.lanes, a.lanes);
#else
  return select(a < b, b, a);
#endif
}

// The overloads for float and double stay visible beside those for Vec.
using ::fastdistill::above_exp_zero;
using ::fastdistill::abs;
using ::fastdistill::exp;
using ::fastdistill::log;
using ::fastdistill::max;
using ::fastdistill::rounded;
using ::fastdistill::select;
using ::fastdistill::tanh;

FD_INLINE Vec rounded(Vec x) { return ::fastdistill::rounded(x.lanes); }

// ---- memory -----------------------------------------------------------------------------------

// Conversions between words and half words; of a generic one gcc makes three or four instructions.
FD_INLINE WordLanes widen_words(HalfLanes x) {
#if defined(__AVX512F__)
  return (WordLanes)_mm512_maskz_cvtepu16_epi32(0xffff, (__m256i)x);
#elif defined(__AVX2__)
  return (WordLanes)_mm256_cvtepu16_epi32((__m128i)x);
#else
  return __builtin_convertvector(x, WordLanes);
#endif
}
/// The upper halves of the words.
FD_INLINE HalfLanes upper_halves(WordLanes x) {
#if defined(__AVX512BW__)
  static constexpr uint16_t kOdd[32] = {1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31};
  const __m512i upper = _mm512_maskz_permutexvar_epi16(~0u, load_bits<__m512i>(kOdd), (__m512i)x);
  return (HalfLanes)_mm512_maskz_extracti64x4_epi64(0xff, upper, 0);
#elif defined(__AVX2__)
  const __m256i upper = (__m256i)(x >> 16), packed = _mm256_packus_epi32(upper, upper);
  return (HalfLanes)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0xd8));
#else
  return __builtin_convertvector(x >> 16, HalfLanes);
#endif
}

/// IEEE half to float by moving the bits up and multiplying by 2^112, which also normalises
/// subnormals; inf and NaN keep their exponent.
FD_INLINE Vec widen_half(HalfLanes half) {
  const WordLanes bits = widen_words(half);
  const Vec scaled = Vec((FloatLanes)((bits & 0x7fffu) << 13)) * Vec(5.192296858534828e33);
  const WordLanes special = (WordLanes)((bits & 0x7c00u) == 0x7c00u) & 0x7f800000u;
  return (FloatLanes)((WordLanes)scaled.lanes | special | ((bits & 0x8000u) << 16));
}
/// Float to IEEE half, to nearest even. Adding a power of two that puts the last kept bit at the
/// last place lets the addition do the rounding, for normal and subnormal results alike.
FD_INLINE HalfLanes narrow_half(Vec x) {
  const WordLanes bits = (WordLanes)x.lanes, sign = (bits >> 16) & 0x8000u;
  const WordLanes size = bits & 0x7fffffffu;
  const WordLanes exponent = size & 0x7f800000u;
  const WordLanes least = WordLanes{} + 0x38800000u;  // 2^-14, the smallest normal half
  const WordLanes unit = (exponent > least ? exponent : least) + (13u << 23);
  const WordLanes rounded = (WordLanes)(((FloatLanes)size + (FloatLanes)unit)) - unit;
  const WordLanes step = ((unit >> 23) - (112u + 13u + 1u)) << 10;
  const WordLanes finite = step + rounded;
  const WordLanes infinity = WordLanes{} + 0x7c00u, nan = WordLanes{} + 0x7e00u;
  const WordLanes limited = size >= 0x477ff000u ? infinity : finite;  // 65520 and above
  const WordLanes half = size > 0x7f800000u ? nan : limited;
  return __builtin_convertvector(half | sign, HalfLanes);
}

FD_INLINE Vec load(const float* from) { return load_bits<FloatLanes>(from); }
FD_INLINE Vec load(const double* from) {
  return __builtin_convertvector(load_bits<DoubleLanes>(from), FloatLanes);
}
FD_INLINE Vec load(const BFloat16* from) {
#if defined(__AVX2__) && !defined(__AVX512F__)
  // All eight in either half of the register, then each into the upper half of its word: one
  // shuffle, where widening and shifting take three instructions.
  static constexpr int8_t kUp[32] = {-1, -1, 0, 1, -1, -1, 2,  3,  -1, -1, 4,  5,  -1, -1, 6,  7,
                                     -1, -1, 8, 9, -1, -1, 10, 11, -1, -1, 12, 13, -1, -1, 14, 15};
  const __m256i twice = _mm256_broadcastsi128_si256(load_bits<__m128i>(from));
  return (FloatLanes)_mm256_shuffle_epi8(twice, load_bits<__m256i>(kUp));
#else
  return (FloatLanes)(widen_words(load_bits<HalfLanes>(from)) << 16);
#endif
}
FD_INLINE Vec load(const Float16* from) { return widen_half(load_bits<HalfLanes>(from)); }

FD_INLINE void store(float* to, Vec x) { memcpy(to, &x.lanes, sizeof x.lanes); }
/// Words whose upper halves are x to nearest even.
FD_INLINE WordLanes round_to_bfloat16(Vec x) {
  const WordLanes bits = (WordLanes)x.lanes;
  const WordLanes even = bits + 0x7fffu + (bits >> 16 & 1u);
  return x.lanes == x.lanes ? even : WordLanes{} + 0x7fc00000u;
}
FD_INLINE void store(BFloat16* to, Vec x) {
  const HalfLanes half = upper_halves(round_to_bfloat16(x));
  memcpy(to, &half, sizeof half);
}
FD_INLINE void store(Float16* to, Vec x) {
  const HalfLanes half = narrow_half(x);
  memcpy(to, &half, sizeof half);
}

/// Stores two vectors, one behind the other.
template <class T>
FD_INLINE void store(T* to, Vec first, Vec second) {
  store(to, first);
  store(to + kLanes, second);
}
#if defined(__AVX2__) && !defined(__AVX512F__)
FD_INLINE void store(BFloat16* to, Vec first, Vec second) {
  const __m256i packed = _mm256_packus_epi32((__m256i)(round_to_bfloat16(first) >> 16),
                                             (__m256i)(round_to_bfloat16(second) >> 16));
  const __m256i in_order = _mm256_permute4x64_epi64(packed, 0xd8);
  memcpy(to, &in_order, sizeof in_order);
}
#endif

// ---- reductions -------------------------------------------------------------------------------

/// The lanes summed in double, as a tree: that is the shortest chain of additions.
FD_INLINE double sum_lanes(Vec x) {
  const DoubleLanes wide = __builtin_convertvector(x.lanes, DoubleLanes);
  double sums[kLanes];
  memcpy(sums, &wide, sizeof sums);
  for (int half = kLanes / 2; half > 0; half /= 2) {
    for (int i = 0; i < half; ++i) sums[i] += sums[i + half];
  }
  return sums[0];
}
FD_INLINE double max_lanes(Vec x) {
  float result = x.lanes[0];
  for (int i = 1; i < kLanes; ++i) result = max(result, x.lanes[i]);
  return static_cast<double>(result);
}

// ---- float64: the same with one lane ----------------------------------------------------------

FD_INLINE double widen(float x) { return static_cast<double>(x); }
FD_INLINE double widen(double x) { return x; }
FD_INLINE double widen(BFloat16 x) { return widen(bits_to_float(int32_t{x.bits} << 16)); }
FD_INLINE double widen(Float16 x) {
  HalfLanes half{};
  half[0] = x.bits;
  return widen(widen_half(half).lanes[0]);
}
FD_INLINE void store(double* to, double x) { *to = x; }
FD_INLINE void store(double* to, double first, double second) { to[0] = first, to[1] = second; }
FD_INLINE double sum_lanes(double x) { return x; }
FD_INLINE double max_lanes(double x) { return x; }

/// The value type that does arithmetic in S, and its lanes.
template <class S>
struct Arithmetic;
template <>
struct Arithmetic<float> {
  using Value = Vec;
  static constexpr int kWidth = kLanes;
  template <class T>
  static FD_INLINE Vec load_from(const T* from) {
    return load(from);
  }
};
template <>
struct Arithmetic<double> {
  using Value = double;
  static constexpr int kWidth = 1;
  template <class T>
  static FD_INLINE double load_from(const T* from) {
    return widen(*from);
  }
};

}  // namespace
}  // namespace fastdistill
