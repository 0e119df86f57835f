// IEEE half precision, written for being read.
#pragma once

#include <cmath>
#include <cstdint>

namespace fastdistill {

inline uint16_t to_half(double x) {
  const double size = std::fabs(x);
  const auto sign = static_cast<unsigned>(std::signbit(x) ? 0x8000 : 0);
  if (std::isinf(x) || size >= 65520.0) return static_cast<uint16_t>(sign | 0x7c00u);
  if (std::isnan(x)) return 0x7e00;
  const int exponent = size < std::ldexp(1.0, -14) ? -14 : std::ilogb(size);
  const auto mantissa = static_cast<int>(std::nearbyint(std::ldexp(size, 10 - exponent)));
  return static_cast<uint16_t>(sign | static_cast<unsigned>(((exponent + 14) << 10) + mantissa));
}

inline double from_half(uint16_t half) {
  const int exponent = (half >> 10) & 31, fraction = half & 1023;
  double size =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  if (exponent == 31) size = fraction == 0 ? HUGE_VAL : std::nan("");
  return half & 0x8000 ? -size : size;
}

}  // namespace fastdistill
