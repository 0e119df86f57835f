// Elements of a row in arithmetic precision. Storage types, scale, softcap and temperature exist
// only here; everything above sees y, of which x = softcap(scale z) / T is a multiple.
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

// What a kernel is compiled for: logits of any type, or those that most have, without a look at
// what they are. Plain ones are also without a softcap, aligned, and read from shared memory.
struct AnyFloat {
  using Arithmetic = float;
  static constexpr bool kIsPlain = false;
};
struct AnyDouble {
  using Arithmetic = double;
  static constexpr bool kIsPlain = false;
};
struct PlainBFloat16 {
  using Arithmetic = float;
  static constexpr bool kIsPlain = true;
};

FD_DEVICE float widen_bfloat(uint32_t low_half) {
  return bits_to_float(static_cast<int32_t>(low_half << 16));
}

/// Bytes of an element.
FD_INLINE int width(DType dtype) {
  return dtype == DType::kFloat64 ? 8 : dtype == DType::kFloat32 ? 4 : 2;
}

/// Logits as a kernel reads them: x = factor * y, where y is a stored logit or, where there is a
/// softcap, tanh(into_tanh * logit).
struct Side {
  char* data;
  int64_t row_bytes;
  DType dtype;
  double factor, into_tanh;

  Side(const Logits& logits, double temperature)
      : data(static_cast<char*>(logits.data)),
        row_bytes(logits.row_stride * width(logits.dtype)),
        dtype(logits.dtype),
        factor((logits.softcap == 0.0 ? logits.scale : logits.softcap) / temperature),
        into_tanh(logits.softcap == 0.0 ? 0.0 : logits.scale / logits.softcap) {}
};

/// One row of logits in memory, global or shared.
template <class Format>
class RowOfLogits {
 public:
  using S = typename Format::Arithmetic;
  static constexpr bool kIsPlain = Format::kIsPlain;

  S factor;

  RowOfLogits() = default;
  FD_DEVICE RowOfLogits(const Side& side, int64_t row)
      : factor(static_cast<S>(side.factor)),
        data_(side.data + row * side.row_bytes),
        dtype_(side.dtype),
        into_tanh_(static_cast<S>(side.into_tanh)),
        packets_(reinterpret_cast<uintptr_t>(data_) % sizeof(Packet) == 0) {}

  FD_DEVICE bool is_capped() const { return !kIsPlain && into_tanh_ != S(0); }
  FD_DEVICE int bytes(int elements) const { return elements * width(dtype()); }
  FD_DEVICE char* address_of(int i) const {
    return data_ + static_cast<int64_t>(i) * width(dtype());
  }
  /// Takes the stored bits of an element of another row of the same type.
  FD_DEVICE void take_one(int i, const RowOfLogits& from) const {
    for (int byte = 0; byte < width(dtype()); ++byte)
      address_of(i)[byte] = from.address_of(i)[byte];
  }

  /// The same row, whose elements from `begin` on are found at this place.
  FD_DEVICE RowOfLogits at(char* place, int begin) const {
    RowOfLogits moved = *this;
    moved.data_ = place - static_cast<int64_t>(begin) * width(dtype());
    moved.packets_ = true;
    return moved;
  }

  /// out[j] = y of element first + j; -inf from `end` on. Plain rows have -inf there.
  FD_DEVICE void load(int first, int end, S (&out)[kChunk<S>]) const {
    if (kIsPlain) return load_packets(first, out);
    if (packets_ && first + kChunk<S> <= end) {
      load_packets(first, out);
    } else {
      for (int j = 0; j < kChunk<S>; ++j) {
        out[j] = first + j < end ? stored(first + j) : S(-__builtin_inf());
      }
    }
    if (!is_capped()) return;
    for (int j = 0; j < kChunk<S>; ++j) {
      if (first + j < end) out[j] = tanh(out[j] * into_tanh_);
    }
  }
  FD_DEVICE S load_one(int i) const {
    return is_capped() ? tanh(stored(i) * into_tanh_) : stored(i);
  }

  FD_DEVICE void store(int first, int end, const S (&values)[kChunk<S>]) const {
    if ((kIsPlain || packets_) && first + kChunk<S> <= end) return store_packets(first, values);
    for (int j = 0; j < kChunk<S>; ++j) {
      if (first + j < end) store_one(first + j, values[j]);
    }
  }
  FD_DEVICE void store_one(int i, S value) const {
    if constexpr (sizeof(S) == sizeof(double)) {
      element<double>(i) = value;
    } else if (dtype() == DType::kFloat32) {
      element<float>(i) = value;
    } else {
      element<uint16_t>(i) = static_cast<uint16_t>(narrow(value, value));
    }
  }

 private:
  FD_DEVICE DType dtype() const { return kIsPlain ? DType::kBFloat16 : dtype_; }
  template <class T>
  FD_DEVICE T& element(int i) const {
    return reinterpret_cast<T*>(data_)[i];
  }
  FD_DEVICE Packet& packet_at(int i) const { return *reinterpret_cast<Packet*>(address_of(i)); }
  /// Two numbers in the bits of a half precision, the first one in the low half.
  FD_DEVICE uint32_t narrow(float low, float high) const {
    return dtype() == DType::kBFloat16 ? narrow_bfloats(low, high) : narrow_halves(low, high);
  }

  FD_DEVICE S stored(int i) const {
    if constexpr (sizeof(S) == sizeof(double)) {
      return element<double>(i);
    } else {
      if (dtype() == DType::kFloat32) return element<float>(i);
      const uint16_t bits = element<uint16_t>(i);
      return dtype() == DType::kBFloat16 ? widen_bfloat(bits) : widen_half(bits);
    }
  }

  FD_DEVICE void load_packets(int first, double (&out)[2]) const {
    const Packet packet = packet_at(first);
    memcpy(out, &packet, sizeof out);
  }
  FD_DEVICE void load_packets(int first, float (&out)[8]) const {
    const Packet packet = packet_at(first);
    if (dtype() == DType::kBFloat16) {
      for (int j = 0; j < 4; ++j) {
        out[2 * j] = widen_bfloat(packet.words[j]);
        out[2 * j + 1] = bits_to_float(static_cast<int32_t>(packet.words[j] & 0xffff0000u));
      }
    } else if (dtype() == DType::kFloat16) {
      for (int j = 0; j < 4; ++j) {
        out[2 * j] = widen_half(static_cast<uint16_t>(packet.words[j]));
        out[2 * j + 1] = widen_half(static_cast<uint16_t>(packet.words[j] >> 16));
      }
    } else {
      const Packet second = packet_at(first + 4);
      memcpy(out, &packet, sizeof packet);
      memcpy(out + 4, &second, sizeof second);
    }
  }

  FD_DEVICE void store_packets(int first, const double (&values)[2]) const {
    Packet packet;
    memcpy(&packet, values, sizeof packet);
    packet_at(first) = packet;
  }
  FD_DEVICE void store_packets(int first, const float (&values)[8]) const {
    Packet packet, second;
    if (dtype() == DType::kFloat32) {
      memcpy(&packet, values, sizeof packet);
      memcpy(&second, values + 4, sizeof second);
      packet_at(first + 4) = second;
    } else {
      for (int j = 0; j < 4; ++j) packet.words[j] = narrow(values[2 * j], values[2 * j + 1]);
    }
    packet_at(first) = packet;
  }

  char* data_;
  DType dtype_;
  S into_tanh_;
  bool packets_;
};

/// What a thread sees of a row at a time: y of both sides, -inf on both where there is nothing.
template <class S, int n = kChunk<S>>
struct Chunk {
  static constexpr int kSize = n;
  S student[n], teacher[n];
  unsigned left_out = 0;  // by bit, the elements whose gradient another one stores

  FD_DEVICE void leave_out(int j) {
    left_out |= 1u << j;
    student[j] = teacher[j] = S(-__builtin_inf());
  }
};

/// The maximum; a NaN is left aside.
template <class S, int n>
FD_DEVICE S max_of(const S (&x)[n]) {
  S result = x[0];
  for (int j = 1; j < n; ++j) result = largest(result, x[j]);
  return result;
}

}  // namespace fastdistill
