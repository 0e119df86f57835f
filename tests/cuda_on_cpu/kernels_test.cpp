// The CUDA kernels, compiled for the CPU, against the same problems as the CPU's own. Exits with 1
// where anything differs from what it must be.
#define FD_CUDA_ON_CPU
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
  return conclude(backends);
}
