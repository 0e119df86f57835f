// Tiles: a few cache lines of a row in arithmetic precision. Storage types, scale, softcap and
// temperature exist only here; everything above sees x = softcap(scale z) / T.
#pragma once

#include <type_traits>

#include "../row_math.h"
#include "vec_math.h"

namespace fastdistill {
namespace {

constexpr int64_t kTile = 512;  // elements; three tiles of float lie in 6 KiB of L1

FD_INLINE int64_t tiles_of(int64_t vocab) { return (vocab + kTile - 1) / kTile; }

/// Student, teacher and gradient of the same stretch of a row. Elements from the end of the row up
/// to a full vector are -inf: probability zero, which adds nothing to any sum.
template <class S>
struct alignas(64) Tile {
  S student[kTile];
  S teacher[kTile];
  S gradient[kTile];
};

template <class S>
FD_INLINE int64_t round_up_to_vector(int64_t n) {
  constexpr int64_t width = Arithmetic<S>::kWidth;
  return (n + width - 1) / width * width;
}

/// How far ahead of its use memory is asked for, in bytes. A row is read faster than a processor
/// looks ahead on its own, and at the end of a page many stop looking.
constexpr int64_t kAhead = 2048;

/// Memory from `here` on is being read, or written, in order. It may end: a hint is never a fault.
FD_INLINE void read_ahead(const void* here) {
  __builtin_prefetch(static_cast<const char*>(here) + kAhead, 0);
}
FD_INLINE void write_ahead(const void* here) {
  __builtin_prefetch(static_cast<const char*>(here) + kAhead, 1);
}

/// Calls f with a typed pointer to element `offset` of `data`.
template <class Pointer, class F>
FD_INLINE void visit(DType dtype, Pointer* data, int64_t offset, F f) {
  switch (dtype) {
    case DType::kFloat32:
      return f(static_cast<float*>(data) + offset);
    case DType::kBFloat16:
      return f(static_cast<BFloat16*>(data) + offset);
    case DType::kFloat16:
      return f(static_cast<Float16*>(data) + offset);
    case DType::kFloat64:
      return f(static_cast<double*>(data) + offset);
  }
}

/// out[i] = map(from[i]) for i < n, -inf up to a full vector; returns the maximum.
template <class S, class T, class Map>
FD_INLINE double map_elements(const T* from, int64_t n, S* out, Map map) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  V largest(-__builtin_inf());
  int64_t i = 0;
  for (; i + A::kWidth <= n; i += A::kWidth) {
    read_ahead(from + i);
    const V x = map(A::load_from(from + i));
    memcpy(out + i, &x, sizeof x);
    largest = max(largest, x);
  }
  if (i < n) {
    T rest[A::kWidth] = {};
    memcpy(rest, from + i, (n - i) * sizeof(T));
    const V x = map(A::load_from(rest));
    memcpy(out + i, &x, sizeof x);
    for (int64_t j = n; j < i + A::kWidth; ++j) out[j] = static_cast<S>(-__builtin_inf());
    V last;
    memcpy(&last, out + i, sizeof last);
    largest = max(largest, last);
  }
  return max_lanes(largest);
}

/// Loads elements [start, start + n) of a row as x; returns their maximum, NaN left aside.
template <class S>
double load_tile(const Logits& logits, double temperature, int64_t row, int64_t start, int64_t n,
                 S* out) {
  using V = typename Arithmetic<S>::Value;
  double largest = 0.0;
  visit(logits.dtype, logits.data, row * logits.row_stride + start, [&](auto* from) {
    if (logits.softcap == 0.0 && logits.scale == temperature) {
      largest = map_elements(from, n, out, [](V z) { return z; });
    } else if (logits.softcap == 0.0) {
      const V factor(logits.scale / temperature);
      largest = map_elements(from, n, out, [&](V z) { return z * factor; });
    } else {
      const V into(logits.scale / logits.softcap), outof(logits.softcap / temperature);
      largest = map_elements(from, n, out, [&](V z) { return outof * tanh(z * into); });
    }
  });
  return largest;
}

/// The vectors of a row stored as T whose x is z times a factor. kUnit: the factor is one.
template <class S, class T, bool kUnit>
struct ScaledRow {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  using Stored = T;
  const T* z;
  V factor;
  FD_INLINE V operator()(int64_t i) const {
    read_ahead(z + i);
    if constexpr (kUnit) return A::load_from(z + i);
    return rounded(A::load_from(z + i) * factor);
  }
};

/// Calls f with a row as ScaledRow; does not, and returns false, where there is a softcap.
template <class S, class F>
bool visit_scaled(const Logits& logits, double temperature, int64_t row, F f) {
  if (logits.softcap != 0.0) return false;
  visit(logits.dtype, logits.data, row * logits.row_stride, [&](auto* z) {
    using T = std::remove_pointer_t<decltype(z)>;
    // Logits of a student are stored as float64 exactly where S is double.
    if constexpr ((sizeof(T) == sizeof(double)) == (sizeof(S) == sizeof(double))) {
      const typename Arithmetic<S>::Value factor(logits.scale / temperature);
      if (logits.scale == temperature) {
        f(ScaledRow<S, T, true>{z, factor});
      } else {
        f(ScaledRow<S, T, false>{z, factor});
      }
    }
  });
  return true;
}

/// Calls f with both sides of a row as ScaledRow; does not, and returns false, where there is a
/// softcap or the sides are stored in different types.
template <class S, class F>
bool visit_scaled(const Logits& student, const Logits& teacher, double temperature, int64_t row,
                  F f) {
  if (student.softcap != 0.0 || teacher.softcap != 0.0 || student.dtype != teacher.dtype) {
    return false;
  }
  using V = typename Arithmetic<S>::Value;
  const bool unit = student.scale == temperature && teacher.scale == temperature;
  visit(student.dtype, student.data, row * student.row_stride, [&](auto* z) {
    using T = std::remove_pointer_t<decltype(z)>;
    // The student is stored as float64 exactly where S is double.
    if constexpr ((sizeof(T) == sizeof(double)) == (sizeof(S) == sizeof(double))) {
      const T* other = static_cast<const T*>(teacher.data) + row * teacher.row_stride;
      const V own_factor(student.scale / temperature), factor(teacher.scale / temperature);
      if (unit) {
        f(ScaledRow<S, T, true>{z, own_factor}, ScaledRow<S, T, true>{other, factor});
      } else {
        f(ScaledRow<S, T, false>{z, own_factor}, ScaledRow<S, T, false>{other, factor});
      }
    }
  });
  return true;
}

/// One logit as x.
template <class S>
S load_one(const Logits& logits, double temperature, int64_t row, int64_t column) {
  S out[Arithmetic<S>::kWidth];
  load_tile(logits, temperature, row, column, 1, out);
  return out[0];
}

/// to[i] = value(i) for i < n, rounded to the storage type.
template <class S, class T, class Value>
FD_INLINE void store_elements(T* to, int64_t n, Value value) {
  constexpr int64_t width = Arithmetic<S>::kWidth;
  int64_t i = 0;
  for (; i + 2 * width <= n; i += 2 * width) {
    write_ahead(to + i);
    store(to + i, value(i), value(i + width));
  }
  for (; i < n; i += width) {
    T rest[width];
    store(rest, value(i));
    memcpy(to + i, rest, (n - i < width ? n - i : width) * sizeof(T));
  }
}

/// Stores value(i) for i < n as the gradient by the logits from `start` on.
template <class S, class Value>
FD_INLINE void store_row_elements(const RowProblem& problem, int64_t row, int64_t start, int64_t n,
                                  Value value) {
  const Logits& to = problem.gradient;
  visit(to.dtype, to.data, row * to.row_stride + start, [&](auto* elements) {
    // The gradient has the student's dtype, which is float64 exactly where S is double.
    if constexpr ((sizeof(*elements) == sizeof(double)) == (sizeof(S) == sizeof(double))) {
      store_elements<S>(elements, n, value);
    }
  });
}

/// Stores the gradients of a tile, completed by the 1 - tanh^2 of a softcap: see by_stored_logit.
template <class S>
void store_gradient(const RowProblem& problem, int64_t row, int64_t start, int64_t n,
                    const Tile<S>& tile) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  const double softcap = problem.student.softcap;
  const auto plain = [&](int64_t i) { return A::load_from(tile.gradient + i); };
  if (softcap == 0.0) return store_row_elements<S>(problem, row, start, n, plain);
  const V into_tanh(problem.temperature / softcap);
  store_row_elements<S>(problem, row, start, n, [&](int64_t i) {
    const V tanh_x = A::load_from(tile.student + i) * into_tanh;
    return plain(i) * (V(1.0) - tanh_x * tanh_x);
  });
}

/// Zeroes gradient columns [start, gradient_width) of a row.
FD_INLINE void zero_gradient(const RowProblem& problem, int64_t row, int64_t start) {
  const Logits& to = problem.gradient;
  visit(to.dtype, to.data, row * to.row_stride + start, [&](auto* elements) {
    memset(elements, 0, (problem.gradient_width - start) * sizeof(*elements));
  });
}

}  // namespace
}  // namespace fastdistill
