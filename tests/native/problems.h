// Problems for the row kernels of any backend, and what their results must be.
//
// Every divergence, teacher and storage type is compared with a plain long-double softmax over the
// structs of divergence.h in double; the gradient of that comparison is itself checked by finite
// differences. The metrics are compared, too.
#pragma once

#include <algorithm>
#include <cstdio>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "expected.h"

namespace fastdistill {
namespace {

constexpr double kParameters[] = {0.3, 0.7};  // valid for every divergence
constexpr int64_t kRows = 4, kPadding = 3;

int failures = 0, comparisons = 0;

/// Something that runs a problem, with the divergence of an index.
struct Backend {
  std::string name;
  std::function<void(const RowProblem&, int divergence)> run;
};

// ---- one problem --------------------------------------------------------------------------------

struct Options {
  DType dtype;
  int64_t vocab;
  int64_t k;  // 0: dense
  Tail tail;
  bool plain;  // T = 1, no softcap, no labels
};

constexpr const char* kTails[] = {"bucket", "renormalize", "zero", "uniform"};
constexpr const char* kDTypes[] = {"float32", "bfloat16", "float16", "float64"};

/// Random inputs, with rows longer than the vocabulary and one row that is not counted.
class Problem {
 public:
  explicit Problem(const Options& o)
      : o_(o),
        student_(o.dtype, kRows * stride()),
        teacher_(o.dtype, kRows * stride()),
        log_p_(o.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32, kRows * slots()),
        gradient_(o.dtype, kRows * stride()) {
    for (int64_t row = 0; row < kRows; ++row) fill_row(row);
    problem_.rows = kRows;
    problem_.vocab = o.vocab;
    problem_.temperature = o.plain ? 1.0 : 2.5;
    problem_.student = side(student_, 0.7, 5.0);
    problem_.teacher = side(teacher_, 1.5, 0.0);
    if (o.k > 0) problem_.top_k = list();
    problem_.labels = o.plain ? nullptr : labels_;
    problem_.counted = counted_;
    problem_.grad_soft = grad_soft_;
    problem_.grad_hard = grad_hard_;
    problem_.gradient_width = stride();
    problem_.parameters = kParameters;
    problem_.soft = soft_;
    problem_.hard = hard_;
    problem_.stats = stats_;
    problem_.metrics = metrics_;
  }

  template <class D>
  void check(const char* name, int index, const std::vector<Backend>& backends) {
    std::vector<Expected> expected;
    const D divergence(kParameters);
    for (int64_t row = 0; row < kRows; ++row) {
      expected.emplace_back();
      if (!counted(row)) continue;
      const Categories categories = categorise(row);
      expected.back() = expect(divergence, problem_, categories, student_row(row), row);
      if (o_.vocab <= 64) check_by_differences(divergence, categories, row, expected.back());
    }
    for (const Backend& backend : backends) {
      where_ = std::string(name) + " " + backend.name + " " + kDTypes[static_cast<int>(o_.dtype)] +
               " " + (o_.k == 0 ? "dense" : kTails[static_cast<int>(o_.tail)]) +
               " V=" + std::to_string(o_.vocab) + (o_.plain ? " plain" : "");
      problem_.gradient = side(gradient_, 1.0, 0.0);
      problem_.mode = Mode::kForward;
      backend.run(problem_, index);
      check_values(expected);
      problem_.mode = Mode::kBackward;
      backend.run(problem_, index);
      check_gradient(expected, gradient_);
      Buffer in_place = student_;
      RowProblem fused = problem_;
      fused.mode = Mode::kFused;
      fused.student.data = fused.gradient.data = in_place.data();
      backend.run(fused, index);
      check_values(expected);
      check_gradient(expected, in_place);
    }
  }

 private:
  int64_t stride() const { return o_.vocab + kPadding; }
  int64_t slots() const { return o_.k + (o_.k > 0 ? 1 : 0); }  // one of them stays empty
  bool sums_to_one() const {
    return o_.tail == Tail::kRenormalize || (o_.tail != Tail::kZero && o_.plain);
  }
  bool counted(int64_t row) const { return counted_[row]; }
  double uniform(double low, double high) {
    return low + (high - low) * static_cast<double>(random_() >> 11) * 0x1p-53;
  }

  TopK list() {
    TopK list;
    list.ids = ids_.data();
    list.log_p = log_p_.data();
    list.ids_stride = list.log_p_stride = list.k = slots();
    list.tail = o_.tail;
    list.sums_to_one = sums_to_one();
    list.tail_log_prob = tails_.data();
    return list;
  }

  Logits side(Buffer& buffer, double scale, double softcap) const {
    return {buffer.data(), stride(), buffer.dtype(), o_.plain ? 1.0 : scale,
            o_.plain ? 0.0 : softcap};
  }

  void fill_row(int64_t row) {
    for (int64_t v = 0; v < stride(); ++v) {
      const bool readable = counted(row) && v < o_.vocab;
      student_.set(row * stride() + v, readable ? uniform(-6.0, 6.0) : std::nan(""));
      teacher_.set(row * stride() + v, readable ? uniform(-6.0, 6.0) : std::nan(""));
    }
    if (row == 2 && o_.vocab > 8 && o_.k == 0) {  // padding on both sides, and on the teacher's
      student_.set(row * stride() + 3, -kInf);
      teacher_.set(row * stride() + 3, -kInf);
      teacher_.set(row * stride() + 7, -kInf);
    }
    if (o_.k > 0) list_tokens();
    labels_[row] =
        counted(row) ? static_cast<int64_t>(random_() % static_cast<uint64_t>(o_.vocab)) : -9;
    grad_soft_[row] = row == 0 ? 0.0 : uniform(0.5, 2.0);
    grad_hard_[row] = uniform(0.5, 2.0);
  }

  /// k distinct tokens in any order, an empty slot, and the mass that is left, or not quite.
  void list_tokens() {
    std::vector<double> weight(static_cast<size_t>(o_.vocab));
    double sum = 0.0;
    for (double& w : weight) sum += w = std::exp(uniform(-4.0, 4.0));
    std::vector<int64_t> order(static_cast<size_t>(o_.vocab));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), random_);
    double mass = 0.0;
    for (int64_t slot = 0; slot < slots(); ++slot) {
      const bool empty = slot == o_.k / 2;
      const int64_t id = empty ? -1 : order[static_cast<size_t>(slot > o_.k / 2 ? slot - 1 : slot)];
      const auto at = static_cast<int64_t>(ids_.size());
      log_p_.set(at, empty ? 0.0 : std::log(weight[static_cast<size_t>(id)] / sum));
      ids_.push_back(id);
      if (!empty) mass += std::exp(log_p_.get(at));
    }
    const double tail = o_.k == o_.vocab ? -kInf : std::log(1.0 - mass);
    tails_.push_back(sums_to_one() ? tail : tail + 0.02);
  }

  Reals student_row(int64_t row) const {
    Reals x;
    for (int64_t v = 0; v < o_.vocab; ++v) {
      x.push_back(softcapped(problem_.student, student_.get(row * stride() + v)) /
                  Real(problem_.temperature));
    }
    return x;
  }

  Categories categorise(int64_t row) const {
    Categories result;
    result.of_token.assign(static_cast<size_t>(o_.vocab), -1);
    if (o_.k == 0) {
      Reals y;
      for (int64_t v = 0; v < o_.vocab; ++v) {
        y.push_back(softcapped(problem_.teacher, teacher_.get(row * stride() + v)) /
                    Real(problem_.temperature));
        result.of_token[static_cast<size_t>(v)] = v;
      }
      const Real lse = log_sum_exp(y);
      for (const Real value : y) result.log_p.push_back(static_cast<double>(value - lse));
      return result;
    }
    Reals listed;
    for (int64_t slot = row * slots(); slot < (row + 1) * slots(); ++slot) {
      const int64_t id = ids_[static_cast<size_t>(slot)];
      if (id < 0) continue;
      result.of_token[static_cast<size_t>(id)] = static_cast<int64_t>(result.log_p.size());
      result.log_p.push_back(log_p_.get(slot));
      listed.push_back(log_p_.get(slot));
    }
    add_unlisted(tails_[static_cast<size_t>(row)], log_sum_exp(listed), result);
    if (sums_to_one()) return result;
    result.missing = 1;
    for (const double log_p : result.log_p) result.missing -= std::exp(Real(log_p));
    return result;
  }

  void add_unlisted(double tail, Real listed_lse, Categories& result) const {
    const auto listed = static_cast<int64_t>(result.log_p.size());
    if (o_.tail == Tail::kRenormalize) {
      for (double& log_p : result.log_p) log_p = static_cast<double>(log_p - listed_lse);
      return;
    }
    const double share = tail - std::log(static_cast<double>(o_.vocab - listed));
    for (int64_t& category : result.of_token) {
      if (category >= 0) continue;
      category = o_.tail == Tail::kBucket ? listed : static_cast<int64_t>(result.log_p.size());
      if (category < static_cast<int64_t>(result.log_p.size())) continue;
      result.log_p.push_back(o_.tail == Tail::kBucket    ? tail
                             : o_.tail == Tail::kUniform ? share
                                                         : -kInf);
    }
  }

  template <class D>
  void check_by_differences(const D& divergence, const Categories& categories, int64_t row,
                            const Expected& expected) {
    if (std::isinf(expected.soft)) return;
    constexpr double kStep = 1e-5;
    for (int64_t v = 0; v < o_.vocab; ++v) {
      const double z = student_.get(row * stride() + v);
      if (std::isinf(z)) continue;
      Real loss[2];
      for (int side = 0; side < 2; ++side) {
        Reals x = student_row(row);
        x[static_cast<size_t>(v)] =
            softcapped(problem_.student, side == 0 ? z - kStep : z + kStep) /
            Real(problem_.temperature);
        const Expected moved = expect(divergence, problem_, categories, x, row);
        loss[side] =
            Real(problem_.grad_soft[row]) * moved.soft + Real(problem_.grad_hard[row]) * moved.hard;
      }
      where_ = "finite differences, V=" + std::to_string(o_.vocab);
      compare((loss[1] - loss[0]) / (2 * Real(kStep)), expected.gradient[static_cast<size_t>(v)],
              1e-6L, "d/dz", row, v);
    }
  }

  void check_values(const std::vector<Expected>& expected) {
    const Real error = o_.dtype == DType::kFloat64 ? 1e-12L : 2e-6L;
    for (int64_t row = 0; row < kRows; ++row) {
      check_metrics(row, error);
      const Expected& e = expected[static_cast<size_t>(row)];
      compare(soft_[row], e.soft, error * (1 + std::fabs(e.soft)), "soft", row, 0);
      if (problem_.labels == nullptr) continue;
      compare(hard_[row], e.hard, error * (1 + std::fabs(e.hard)), "hard", row, 0);
    }
  }

  void check_metrics(int64_t row, Real error) {
    const RowMetrics want = counted(row) ? expected_metrics(row) : RowMetrics{};
    const auto *got_at = reinterpret_cast<const double*>(&metrics_[row]),
               *want_at = reinterpret_cast<const double*>(&want);
    for (int64_t i = 0; i < kRowMetrics; ++i) {
      compare(got_at[i], want_at[i], error * (1 + std::fabs(Real(want_at[i]))), "metric", row, i);
    }
  }

  RowMetrics expected_metrics(int64_t row) const {
    const Reals x = student_row(row);
    if (o_.k == 0) return expect_dense_metrics(categorise(row).log_p, x);
    const Real lse = log_sum_exp(x);
    RowMetrics m{};
    for (const Real value : x) {
      m.student_entropy -= static_cast<double>(std::exp(value - lse) * (value - lse));
    }
    for (int64_t slot = row * slots(); slot < (row + 1) * slots(); ++slot) {
      const int64_t id = ids_[static_cast<size_t>(slot)];
      if (id < 0) continue;
      m.teacher_mass += std::exp(log_p_.get(slot));
      m.student_mass += static_cast<double>(std::exp(x[static_cast<size_t>(id)] - lse));
    }
    return m;
  }

  void check_gradient(const std::vector<Expected>& expected, const Buffer& gradient) {
    const Real error = o_.dtype == DType::kFloat64 ? 1e-12L : 2e-6L;
    for (int64_t row = 0; row < kRows; ++row) {
      const Expected& e = expected[static_cast<size_t>(row)];
      if (counted(row) && std::isinf(e.soft)) continue;
      for (int64_t v = 0; v < stride(); ++v) {
        const bool zero = !counted(row) || v >= o_.vocab;
        const Real want = zero ? 0 : e.gradient[static_cast<size_t>(v)];
        const Real allowed = error * (zero ? 0 : 1) + rounding(o_.dtype) * std::fabs(want);
        compare(gradient.get(row * stride() + v), want, allowed + smallest(o_.dtype) * !zero,
                "gradient", row, v);
      }
    }
  }

  void compare(Real got, Real want, Real allowed, const char* what, int64_t row, int64_t column) {
    ++comparisons;
    if (got == want || std::fabs(got - want) <= allowed) return;
    if (++failures <= 20) {
      std::printf("%s: %s[%d, %d] is %.9Lg, expected %.9Lg\n", where_.c_str(), what,
                  static_cast<int>(row), static_cast<int>(column), got, want);
    }
  }

  Options o_;
  RowProblem problem_;
  std::mt19937_64 random_{7};
  Buffer student_, teacher_, log_p_, gradient_;
  std::vector<int64_t> ids_;
  std::vector<double> tails_;
  int64_t labels_[kRows];
  bool counted_[kRows] = {true, false, true, true};
  double grad_soft_[kRows], grad_hard_[kRows], soft_[kRows], hard_[kRows];
  RowStats stats_[kRows];
  RowMetrics metrics_[kRows];
  std::string where_;
};

void check_everything(const Options& options, const std::vector<Backend>& backends) {
  int index = 0;
#define FD_CHECK(D) Problem(options).check<D>(#D, index++, backends);
  FASTDISTILL_DIVERGENCES(FD_CHECK)
#undef FD_CHECK
}

/// Every storage type, teacher and tail at these sizes.
void check_all(const std::vector<int64_t>& vocabs, const std::vector<Backend>& backends) {
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64}) {
    for (const int64_t vocab : vocabs) {
      const bool plain = vocab % 2 == 0;
      check_everything({dtype, vocab, 0, Tail::kBucket, plain}, backends);
      check_everything({dtype, vocab, 0, Tail::kBucket, !plain}, backends);
      for (const Tail tail : {Tail::kBucket, Tail::kRenormalize, Tail::kZero, Tail::kUniform}) {
        check_everything({dtype, vocab, (vocab + 3) / 4, tail, plain}, backends);
      }
      // Nothing is unlisted.
      check_everything({dtype, vocab, vocab, Tail::kBucket, !plain}, backends);
    }
  }
}

/// Says what was found; returns the status of the program.
int conclude(const std::vector<Backend>& backends) {
  for (const Backend& backend : backends) std::printf("%s, ", backend.name.c_str());
  std::printf("%d comparisons, %d failures\n", comparisons, failures);
  return failures == 0 ? 0 : 1;
}

}  // namespace
}  // namespace fastdistill
