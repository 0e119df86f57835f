// The CUDA kernels, compiled for the CPU, against the same problems as the CPU's own. Exits with 1
// where anything differs from what it must be.
#define FD_CUDA_ON_CPU
#include "../../csrc/cuda/dense_rows.cuh"
#include "../../csrc/cuda/top_k_rows.cuh"
#include "../native/problems.h"

namespace fastdistill {
namespace {

struct Shape {
  int cluster, threads;
};

template <class D, class S>
void run_typed(const RowProblem& problem, Shape shape, uint64_t seed) {
  const Task<D> task{problem, D(problem.parameters)};
  const on_cpu::Launch launch{static_cast<int>(problem.rows) * shape.cluster, shape.cluster,
                              shape.threads, static_cast<size_t>(shared_bytes<S>(problem)), seed};
  on_cpu::run_kernel(launch, [&] {
    if (problem.top_k.k == 0) {
      dense_kernel<D, S>(task);
    } else {
      top_k_kernel<D, S>(task);
    }
  });
}

template <class D>
void run(const RowProblem& problem, Shape shape, uint64_t seed) {
  if (problem.student.dtype == DType::kFloat64) {
    run_typed<D, double>(problem, shape, seed);
  } else {
    run_typed<D, float>(problem, shape, seed);
  }
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

}  // namespace
}  // namespace fastdistill

int main() {
  using namespace fastdistill;
  std::vector<Backend> backends;
  for (const Shape shape : {Shape{1, 32}, Shape{1, 96}, Shape{3, 64}}) {
    const std::string name =
        std::to_string(shape.cluster) + " x " + std::to_string(shape.threads) + " threads";
    backends.push_back(
        {name, [shape, seed = uint64_t{0}](const RowProblem& problem, int divergence) mutable {
           kRuns[divergence](problem, shape, ++seed);
         }});
  }
  check_all({1, 2, 19, 2085}, backends);
  // Several segments of the list turned around for each block.
  for (const Tail tail : {Tail::kBucket, Tail::kRenormalize, Tail::kZero, Tail::kUniform}) {
    check_everything({DType::kFloat32, 4 * SlotMap<float>::kSegment + 5, 500, tail, false},
                     backends);
  }
  for (const Backend& backend : backends) {
    for (const Tail tail : {Tail::kBucket, Tail::kRenormalize, Tail::kZero, Tail::kUniform}) {
      check_wrong_data("id too large", tail, {0, 40, 5}, 2, backend);
      check_wrong_data("id too small", tail, {0, -7, 5}, 2, backend);
      check_wrong_data("repeated id", tail, {0, 5, 5}, 2, backend);
      check_wrong_data("label too large", tail, {0, 6, 5}, 40, backend);
      check_wrong_data("label too small", tail, {0, 6, 5}, -1, backend);
    }
  }
  return conclude(backends);
}
