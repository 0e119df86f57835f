// Rows of numbers in their storage types, and in long double what the kernels' results must be.
#pragma once

#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "../../csrc/divergence.h"
#include "../../csrc/row_problem.h"
#include "half.h"

namespace fastdistill {
namespace {

using Real = long double;
using Reals = std::vector<Real>;
constexpr double kInf = __builtin_inf();

// ---- storage ------------------------------------------------------------------------------------

uint16_t to_bfloat(double x) {
  const auto bits = static_cast<uint32_t>(float_to_bits(static_cast<float>(x)));
  return static_cast<uint16_t>(std::isnan(x) ? 0x7fc0u
                                             : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

/// `size` numbers in their storage type, with no byte to spare behind them.
class Buffer {
 public:
  Buffer(DType dtype, int64_t size) : dtype_(dtype), bytes_(static_cast<size_t>(size * width())) {}

  void* data() { return bytes_.data(); }
  DType dtype() const { return dtype_; }

  void set(int64_t i, double x) {
    const auto f = static_cast<float>(x);
    const uint16_t half = dtype_ == DType::kFloat16 ? to_half(x) : to_bfloat(x);
    const void* source = dtype_ == DType::kFloat64   ? static_cast<const void*>(&x)
                         : dtype_ == DType::kFloat32 ? static_cast<const void*>(&f)
                                                     : &half;
    memcpy(&bytes_[static_cast<size_t>(i * width())], source, static_cast<size_t>(width()));
  }

  double get(int64_t i) const {
    const unsigned char* source = &bytes_[static_cast<size_t>(i * width())];
    double d;
    float f;
    uint16_t half;
    switch (dtype_) {
      case DType::kFloat64:
        memcpy(&d, source, sizeof d);
        return d;
      case DType::kFloat32:
        memcpy(&f, source, sizeof f);
        return static_cast<double>(f);
      default:
        memcpy(&half, source, sizeof half);
    }
    if (dtype_ == DType::kFloat16) return from_half(half);
    return static_cast<double>(bits_to_float(static_cast<int32_t>(uint32_t{half} << 16)));
  }

 private:
  int64_t width() const {
    return dtype_ == DType::kFloat64 ? 8 : dtype_ == DType::kFloat32 ? 4 : 2;
  }

  DType dtype_;
  std::vector<unsigned char> bytes_;
};

/// The relative and the absolute error of one rounding to a storage type.
Real rounding(DType dtype) {
  return dtype == DType::kBFloat16 ? 0x1p-8L : dtype == DType::kFloat16 ? 0x1p-11L : 0.0L;
}
Real smallest(DType dtype) { return dtype == DType::kFloat16 ? 0x1p-24L : 0.0L; }

// ---- what is compared with ----------------------------------------------------------------------

/// One row as categories: single tokens, or all unlisted ones together. A token with category -1 is
/// conditioned away.
struct Categories {
  std::vector<int64_t> of_token;
  std::vector<double> log_p;
  Real missing = 0;  // 1 - sum p
};

Real log_sum_exp(const Reals& x) {
  Real largest = -kInf, sum = 0;
  for (const Real value : x) largest = std::fmax(largest, value);
  if (std::isinf(largest)) return largest;
  for (const Real value : x) sum += std::exp(value - largest);
  return largest + std::log(sum);
}

Real softcapped(const Logits& side, double z) {
  const Real x = Real(side.scale) * Real(z);
  return side.softcap == 0.0 ? x : Real(side.softcap) * std::tanh(x / Real(side.softcap));
}

struct Expected {
  Real soft = 0, hard = 0;
  Reals gradient;  // by the stored logits, of grad_soft soft + grad_hard hard
};

template <class D>
Expected expect(const D& divergence, const RowProblem& problem, const Categories& categories,
                const Reals& x, int64_t row) {
  const size_t vocab = x.size(), count = categories.log_p.size();
  std::vector<Reals> members(count);
  Reals included;
  for (size_t v = 0; v < vocab; ++v) {
    if (categories.of_token[v] < 0) continue;
    members[static_cast<size_t>(categories.of_token[v])].push_back(x[v]);
    included.push_back(x[v]);
  }
  const Real lse = log_sum_exp(included);
  Reals member_lse, exponents, slopes;
  std::vector<Token<double>> tokens;
  Expected expected;
  for (size_t c = 0; c < count; ++c) {
    member_lse.push_back(log_sum_exp(members[c]));
    const auto log_q = static_cast<double>(member_lse[c] - lse);
    const double log_p = categories.log_p[c];
    tokens.push_back({log_p, log_q, exp(log_p), exp(log_q)});
    exponents.push_back(divergence(tokens[c]).value);
    expected.soft += exponents[c];
  }
  expected.soft -= Real(divergence.balance()) * categories.missing;
  Real log_sum = 0, total = 0;
  if constexpr (D::kLogSum) {
    log_sum = log_sum_exp(exponents);
    expected.soft = Real(divergence.factor()) * log_sum;
  }
  for (const Token<double>& token : tokens) {
    slopes.push_back(slope_of(divergence, token, static_cast<double>(log_sum)));
    total += slopes.back();
  }
  const Real temperature = problem.temperature;
  Reals at_one;
  for (const Real value : x) at_one.push_back(value * temperature);
  const Real hard_lse = log_sum_exp(at_one);
  const bool labelled = problem.labels != nullptr;
  const auto label = static_cast<size_t>(labelled ? problem.labels[row] : 0);
  if (labelled) expected.hard = hard_lse - at_one[label];
  for (size_t v = 0; v < vocab; ++v) {
    Real by_x = 0;
    if (const int64_t c = categories.of_token[v]; c >= 0 && x[v] != -kInf) {
      const Real share = std::exp(x[v] - member_lse[static_cast<size_t>(c)]);
      by_x = Real(problem.grad_soft[row]) *
             (slopes[static_cast<size_t>(c)] * share - std::exp(x[v] - lse) * total);
    }
    if (labelled) {
      const Real onehot = v == label ? 1 : 0;
      by_x +=
          Real(problem.grad_hard[row]) * temperature * (std::exp(at_one[v] - hard_lse) - onehot);
    }
    const Real capped =
        problem.student.softcap == 0.0 ? 0 : at_one[v] / Real(problem.student.softcap);
    expected.gradient
        .push_back(by_x * Real(problem.student.scale) / temperature * (1 - capped * capped));
  }
  return expected;
}

/// The metrics of a dense row: the first largest token of both sides, and sums over the tokens.
RowMetrics expect_dense_metrics(const std::vector<double>& log_p, const Reals& x) {
  const Real lse = log_sum_exp(x);
  RowMetrics m{};
  size_t top_p = 0, top_q = 0;
  for (size_t v = 0; v < x.size(); ++v) {
    const Real p = std::exp(Real(log_p[v])), log_q = x[v] - lse, q = std::exp(log_q);
    if (p > 0) m.forward_kl += static_cast<double>(p * (log_p[v] - log_q));
    if (q > 0) m.reverse_kl += static_cast<double>(q * (log_q - log_p[v]));
    if (p > 0) m.teacher_entropy -= static_cast<double>(p * log_p[v]);
    if (q > 0) m.student_entropy -= static_cast<double>(q * log_q);
    m.acceptance_rate += static_cast<double>(std::fmin(p, q));
    if (log_p[v] > log_p[top_p]) top_p = v;
    if (x[v] > x[top_q]) top_q = v;
  }
  m.top1_agreement = top_p == top_q ? 1.0 : 0.0;
  return m;
}

}  // namespace
}  // namespace fastdistill
