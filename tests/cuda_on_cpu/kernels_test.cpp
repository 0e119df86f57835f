// The CUDA kernels, compiled for the CPU, against the same problems as the CPU's own. Exits with 1
// where anything differs from what it must be.
#define FD_CUDA_ON_CPU
#include "../../csrc/cuda/dense_rows.cuh"
#include "../../csrc/cuda/split.cuh"
#include "../native/problems.h"

namespace fastdistill {
namespace {

struct Shape {
  int cluster, threads;
  bool is_kept;
};

int kept = 0, plain = 0;  // launches that kept their rows, and with those of the plain format

template <class D, class Format>
void run_as(const RowProblem& problem, const LaunchShape& shape, uint64_t seed) {
  const Task<D> task{Prepared(problem, shape.split), D(problem.parameters)};
  const on_cpu::Launch launch{static_cast<int>(problem.rows) * shape.cluster, shape.cluster,
                              shape.threads, static_cast<size_t>(shape.shared_bytes), seed};
  on_cpu::run_kernel(launch, [&] {
    if (problem.top_k.k == 0) {
      dense_kernel<D, Format>(task);
    } else {
      top_k_kernel<D, Format>(task);
    }
  });
}

template <class D>
void run(const RowProblem& problem, Shape shape, uint64_t seed) {
  const bool is_kept = shape.is_kept && keeps_rows(problem);
  if (problem.student.dtype == DType::kFloat64) {
    run_as<D, AnyDouble>(problem,
                         launch_shape<AnyDouble>(problem, shape.cluster, shape.threads, is_kept),
                         seed);
    return;
  }
  const LaunchShape launched =
      launch_shape<AnyFloat>(problem, shape.cluster, shape.threads, is_kept);
  const bool as_plain = is_kept && is_plain(problem);
  kept += is_kept;
  plain += as_plain;
  (as_plain ? run_as<D, PlainBFloat16> : run_as<D, AnyFloat>)(problem, launched, seed);
}

using Run = void (*)(const RowProblem&, Shape, uint64_t);
#define FD_RUN(D) run<D>,
constexpr Run kRuns[] = {FASTDISTILL_DIVERGENCES(FD_RUN)};

/// What the host could not refuse, in the first of two rows: an id or a label that does not exist,
/// or an id named twice. That row is NaN, value and gradient; the other one is as it would be
/// alone.
void check_wrong_data(const std::string& what, Tail tail, const std::vector<int64_t>& ids,
                      int64_t label, const Backend& backend) {
  constexpr int64_t kVocab = 40;
  std::vector<float> logits(2 * kVocab), gradient(2 * kVocab, 0.0f), log_p(2 * ids.size(), -2.0f);
  for (size_t i = 0; i < logits.size(); ++i) logits[i] = std::sin(static_cast<float>(i));
  std::vector<int64_t> all_ids(ids);
  for (size_t slot = 0; slot < ids.size(); ++slot) {
    all_ids.push_back(static_cast<int64_t>(7 * slot));
  }
  const int64_t labels[2] = {label, 3};
  const double upstream[2] = {1.0, 1.0}, tails[2] = {-1.5, -1.5};
  double soft[2] = {}, hard[2] = {};
  RowProblem problem;
  problem.mode = Mode::kFused;
  problem.rows = 2;
  problem.vocab = problem.gradient_width = kVocab;
  problem.student = {logits.data(), kVocab, DType::kFloat32, 1.0, 0.0};
  problem.gradient = {gradient.data(), kVocab, DType::kFloat32, 1.0, 0.0};
  const auto k = static_cast<int64_t>(ids.size());
  problem.top_k = {all_ids.data(), log_p.data(), k, k, k, tail, false, tails};
  problem.labels = labels;
  problem.soft = soft;
  problem.hard = hard;
  problem.grad_soft = problem.grad_hard = upstream;
  backend.run(problem, 0);
  const auto report = [&](bool right, const char* name) {
    ++comparisons;
    if (right || ++failures > 20) return;
    std::printf("%s, %s, %s: %s\n", what.c_str(), kTails[static_cast<int>(tail)],
                backend.name.c_str(), name);
  };
  report(std::isnan(soft[0] + hard[0]), "the value is a number");
  report(std::isnan(gradient[0]), "the gradient of a listed token is a number");
  report(std::isfinite(soft[1]) && std::isfinite(hard[1]), "another row has no value");
  for (int64_t v = 0; v < kVocab; ++v) {
    report(std::isfinite(gradient[static_cast<size_t>(kVocab + v)]), "another row has no gradient");
  }
}

/// The largest numbers of bfloat16: the exponents of two are beyond the largest float.
void check_huge_logits(const Backend& backend) {
  constexpr int64_t kVocab = 40;
  Buffer student(DType::kBFloat16, kVocab), gradient(DType::kBFloat16, kVocab);
  for (int64_t v = 0; v < kVocab; ++v) student.set(v, v == 3 ? 3.3e38 : -1.0);
  const int64_t label = 5;
  const double upstream = 1.0;
  double soft = 0.0, hard = 0.0;
  RowProblem problem;
  problem.mode = Mode::kFused;
  problem.rows = 1;
  problem.vocab = problem.gradient_width = kVocab;
  problem.student = problem.teacher = {student.data(), kVocab, DType::kBFloat16, 1.0, 0.0};
  problem.gradient = {gradient.data(), kVocab, DType::kBFloat16, 1.0, 0.0};
  problem.labels = &label;
  problem.soft = &soft;
  problem.hard = &hard;
  problem.grad_soft = problem.grad_hard = &upstream;
  backend.run(problem, 0);
  for (int64_t v = 0; v < kVocab; ++v) {
    const double want = v == 3 ? 1.0 : v == label ? -1.0 : 0.0;
    ++comparisons;
    if (gradient.get(v) == want || ++failures > 20) continue;
    std::printf("huge logits, %s: gradient[%d] is %g\n", backend.name.c_str(), static_cast<int>(v),
                gradient.get(v));
  }
}

/// Logits that rise from chunk to chunk, beyond what an exp from the first one's level can be: the
/// gradient of the cross entropy is the softmax.
void check_rising_logits(const Backend& backend) {
  constexpr int64_t kVocab = 2085;
  std::vector<float> logits, gradient(kVocab);
  for (int64_t v = 0; v < kVocab; ++v) logits.push_back(0.2f * static_cast<float>(v));
  const int64_t label = 0;
  const double upstream[] = {0.0, 1.0};
  double soft = 0.0, hard = 0.0;
  RowProblem problem;
  problem.mode = Mode::kFused;
  problem.rows = 1;
  problem.vocab = problem.gradient_width = kVocab;
  problem.student = problem.teacher = {logits.data(), kVocab + 3, DType::kFloat32, 1.0, 0.0};
  problem.gradient = {gradient.data(), kVocab + 3, DType::kFloat32, 1.0, 0.0};
  problem.labels = &label;
  problem.soft = &soft;
  problem.hard = &hard;
  problem.grad_soft = &upstream[0];
  problem.grad_hard = &upstream[1];
  backend.run(problem, 0);
  const Reals exact(logits.begin(), logits.end());
  const Real lse = log_sum_exp(exact);
  for (int64_t v = 0; v < kVocab; ++v) {
    const auto at = static_cast<size_t>(v);
    const Real want = std::exp(exact[at] - lse) - (v == label ? 1 : 0);
    ++comparisons;
    if (std::fabs(gradient[at] - want) <= 2e-6L || ++failures > 20) continue;
    std::printf("rising logits, %s: gradient[%d] is %g\n", backend.name.c_str(),
                static_cast<int>(v), static_cast<double>(gradient[at]));
  }
}

/// What is chosen for problems of all sizes can be launched and leaves no column out.
void check_shapes() {
  Limits limits;
  limits.multiprocessors = 132;
  limits.shared_of_all = 228 << 10;
  limits.shared_bytes = 227 << 10;
  limits.shared_reserved = 1 << 10;
  for (const int most_blocks : {1, 8, 16}) {
    limits.most_blocks = most_blocks;
    limits.has_copies = most_blocks > 1;
    for (const int64_t k : {0, 64}) {
      for (int64_t vocab = 1; vocab < 2'000'000; vocab += 1 + vocab / 3) {
        RowProblem problem;
        problem.rows = 64;
        problem.vocab = vocab;
        problem.top_k.k = k;
        problem.student.row_stride = problem.teacher.row_stride = vocab / 8 * 8 + 8;
        problem.student.dtype = problem.teacher.dtype = DType::kBFloat16;
        const LaunchShape shape = choose_shape<AnyFloat>(problem, limits);
        const Split& split = shape.split;
        const bool is_right =
            1 <= shape.cluster && shape.cluster <= most_blocks && shape.threads % kWarp == 0 &&
            kWarp <= shape.threads && shape.threads <= kMostThreads &&
            shape.shared_bytes <= limits.shared_bytes && split.shared_from % 16 == 0 &&
            int64_t{split.columns} * shape.cluster >= vocab && split.columns % 8 == 0 &&
            split.stage % 8 == 0 && int64_t{split.stage} * kMostStages >= split.columns;
        ++comparisons;
        if (is_right || ++failures > 20) continue;
        std::printf("V = %d cannot be launched with %d blocks\n", static_cast<int>(vocab),
                    shape.cluster);
      }
    }
  }
}

}  // namespace
}  // namespace fastdistill

int main() {
  using namespace fastdistill;
  std::vector<Backend> backends;
  for (const Shape shape :
       {Shape{1, 32, true}, Shape{1, 96, false}, Shape{3, 64, true}, Shape{2, 32, false}}) {
    const std::string name = std::to_string(shape.cluster) + " x " + std::to_string(shape.threads) +
                             " threads" + (shape.is_kept ? ", kept" : "");
    backends.push_back(
        {name, [shape, seed = uint64_t{0}](const RowProblem& problem, int divergence) mutable {
           kRuns[divergence](problem, shape, ++seed);
         }});
  }
  check_all({1, 2, 19, 2085}, backends);
  // Stages of several chunks per thread, and long lists.
  for (const Tail tail : {Tail::kBucket, Tail::kRenormalize, Tail::kZero, Tail::kUniform}) {
    check_everything({DType::kFloat32, 16389, 500, tail, false}, backends);
  }
  check_shapes();
  for (const Backend& backend : backends) {
    check_huge_logits(backend);
    check_rising_logits(backend);
    for (const Tail tail : {Tail::kBucket, Tail::kRenormalize, Tail::kZero, Tail::kUniform}) {
      check_wrong_data("id too large", tail, {0, 40, 5}, 2, backend);
      check_wrong_data("id too small", tail, {0, -7, 5}, 2, backend);
      check_wrong_data("repeated id", tail, {0, 5, 5}, 2, backend);
      check_wrong_data("label too large", tail, {0, 6, 5}, 40, backend);
      check_wrong_data("label too small", tail, {0, 6, 5}, -1, backend);
    }
  }
  std::printf("%d launches kept their rows, %d of them plain\n", kept, plain);
  if (plain == 0 || plain == kept) return 1;
  return conclude(backends);
}
