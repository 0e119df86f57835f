// Elements of a row in arithmetic precision. Storage types, scale, softcap and temperature exist
// only here; everything above sees x = softcap(scale z) / T.
#pragma once

#include <cstring>

#include "../row_problem.h"
#include "execution.cuh"

namespace fastdistill {

/// Elements that a thread handles at a time: 16 bytes of a half precision, or of double.
template <class S>
inline constexpr int kChunk = 8;
template <>
inline constexpr int kChunk<double> = 2;

FD_DEVICE float widen_bfloat(uint16_t bits) {
  return bits_to_float(static_cast<int32_t>(static_cast<uint32_t>(bits) << 16));
}
/// To nearest even; a NaN stays one.
FD_DEVICE uint16_t narrow_bfloat(float x) {
  const uint32_t bits = static_cast<uint32_t>(float_to_bits(x));
  const uint32_t even = bits + 0x7fffu + ((bits >> 16) & 1u);
  return static_cast<uint16_t>((x == x ? even : 0x7fc00000u) >> 16);
}

/// Bits of a half precision to float and back.
FD_DEVICE float widen(DType dtype, uint32_t bits) {
  const auto low = static_cast<uint16_t>(bits);
  return dtype == DType::kBFloat16 ? widen_bfloat(low) : widen_half(low);
}
FD_DEVICE uint32_t narrow(DType dtype, float x) {
  return dtype == DType::kBFloat16 ? narrow_bfloat(x) : narrow_half(x);
}

/// One row of logits in memory: float64 where S is double, any other type where it is float.
template <class S>
class RowOfLogits {
 public:
  FD_DEVICE RowOfLogits(const Logits& logits, int64_t row, double temperature)
      : data_(static_cast<char*>(logits.data) + row * logits.row_stride * width(logits.dtype)),
        dtype_(logits.dtype),
        capped_(logits.softcap != 0.0),
        into_(capped_ ? logits.scale / logits.softcap : logits.scale / temperature),
        outof_(capped_ ? logits.softcap / temperature : 1.0),
        packets_(reinterpret_cast<uintptr_t>(data_) % sizeof(Packet) == 0) {}

  /// out[j] = x of element first + j; -inf from `end` on.
  FD_DEVICE void load(int64_t first, int64_t end, S (&out)[kChunk<S>]) const {
    load_stored(first, end, out);
    for (int j = 0; j < kChunk<S>; ++j) out[j] = from_stored(out[j]);
    if (first + kChunk<S> <= end) return;
    for (int j = 0; j < kChunk<S>; ++j) {
      if (first + j >= end) out[j] = S(-__builtin_inf());
    }
  }
  FD_DEVICE S load_one(int64_t i) const { return from_stored(stored(i)); }

  /// The derivative of x T / scale by the stored logit.
  FD_DEVICE S through_softcap(S x, S temperature_by_softcap) const {
    const S tanh_x = x * temperature_by_softcap;
    return capped_ ? S(1) - tanh_x * tanh_x : S(1);
  }

  FD_DEVICE void store(int64_t first, int64_t end, const S (&x)[kChunk<S>]) const {
    if (packets_ && first + kChunk<S> <= end) return store_packets(first, x);
    for (int j = 0; j < kChunk<S>; ++j) {
      if (first + j < end) store_one(first + j, x[j]);
    }
  }
  FD_DEVICE void store_one(int64_t i, S x) const {
    if constexpr (sizeof(S) == sizeof(double)) {
      at<double>(i) = x;
    } else if (dtype_ == DType::kFloat32) {
      at<float>(i) = x;
    } else {
      at<uint16_t>(i) = static_cast<uint16_t>(narrow(dtype_, x));
    }
  }

 private:
  static FD_DEVICE int64_t width(DType dtype) {
    return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
  }
  template <class T>
  FD_DEVICE T& at(int64_t i) const {
    return reinterpret_cast<T*>(data_)[i];
  }
  FD_DEVICE Packet& packet_at(int64_t element) const {
    return *reinterpret_cast<Packet*>(data_ + element * width(dtype_));
  }

  FD_DEVICE S from_stored(S z) const { return capped_ ? outof_ * tanh(z * into_) : z * into_; }

  FD_DEVICE S stored(int64_t i) const {
    if constexpr (sizeof(S) == sizeof(double)) {
      return at<double>(i);
    } else {
      return dtype_ == DType::kFloat32 ? at<float>(i) : widen(dtype_, at<uint16_t>(i));
    }
  }

  FD_DEVICE void load_stored(int64_t first, int64_t end, S (&out)[kChunk<S>]) const {
    if (packets_ && first + kChunk<S> <= end) return load_packets(first, out);
    for (int j = 0; j < kChunk<S>; ++j) out[j] = first + j < end ? stored(first + j) : S(0);
  }
  FD_DEVICE void load_packets(int64_t first, double (&out)[2]) const {
    memcpy(out, &packet_at(first), sizeof out);
  }
  FD_DEVICE void load_packets(int64_t first, float (&out)[8]) const {
    const Packet packet = packet_at(first);
    if (dtype_ == DType::kFloat32) {
      const Packet second = packet_at(first + 4);
      memcpy(out, &packet, sizeof packet);
      memcpy(out + 4, &second, sizeof second);
    } else {
      for (int j = 0; j < 8; ++j) out[j] = widen(dtype_, packet.words[j / 2] >> (16 * (j % 2)));
    }
  }

  FD_DEVICE void store_packets(int64_t first, const double (&x)[2]) const {
    memcpy(&packet_at(first), x, sizeof x);
  }
  FD_DEVICE void store_packets(int64_t first, const float (&x)[8]) const {
    Packet packet, second;
    if (dtype_ == DType::kFloat32) {
      memcpy(&packet, x, sizeof packet);
      memcpy(&second, x + 4, sizeof second);
      packet_at(first + 4) = second;
    } else {
      for (int j = 0; j < 4; ++j) {
        packet.words[j] = narrow(dtype_, x[2 * j]) | narrow(dtype_, x[2 * j + 1]) << 16;
      }
    }
    packet_at(first) = packet;
  }

  char* data_;
  DType dtype_;
  bool capped_;
  S into_, outof_;
  bool packets_;
};

/// What a thread sees of a row at a time.
template <class S>
struct Chunk {
  S student[kChunk<S>], teacher[kChunk<S>];
};

/// The maximum; a NaN is left aside.
template <class S>
FD_DEVICE S max_of(const S (&x)[kChunk<S>]) {
  S largest = S(-__builtin_inf());
  for (int j = 0; j < kChunk<S>; ++j) largest = max(largest, x[j]);
  return largest;
}

}  // namespace fastdistill
