// From a problem to a launch of its kernel.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "backend.h"
#include "dense_rows.cuh"
#include "split.cuh"

namespace fastdistill {

/// Where a problem runs.
struct CudaTarget {
  void* stream = nullptr;  // cudaStream_t of the current device
  Limits limits;
};

inline void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

/// A positive number in an environment variable, for measurements; else `otherwise`.
inline int forced(const char* variable, int otherwise) {
  const char* value = std::getenv(variable);
  const int number = value == nullptr ? 0 : std::atoi(value);
  return number > 0 ? number : otherwise;
}

/// The launch of a problem, unless the environment says otherwise.
template <class Format>
LaunchShape shape_of(const RowProblem& problem, const Limits& limits) {
  const LaunchShape chosen = choose_shape<Format>(problem, limits);
  const int cluster = forced("FASTDISTILL_CUDA_CLUSTER", chosen.cluster);
  const int threads = forced("FASTDISTILL_CUDA_THREADS", chosen.threads);
  if (cluster == chosen.cluster && threads == chosen.threads) return chosen;
  if (threads % kWarp != 0 || threads > kMostThreads) {
    throw std::invalid_argument("FASTDISTILL_CUDA_THREADS must be a multiple of 32 up to " +
                                std::to_string(kMostThreads) + ", got " + std::to_string(threads));
  }
  const LaunchShape kept = launch_shape<Format>(problem, cluster, threads, true);
  const bool fits =
      limits.has_copies && keeps_rows(problem) && kept.shared_bytes <= limits.shared_bytes;
  return fits ? kept : launch_shape<Format>(problem, cluster, threads, false);
}

template <class D, class Format>
void launch_as(const RowProblem& problem, const CudaTarget& target, const LaunchShape& shape) {
  const auto kernel = problem.top_k.k == 0 ? dense_kernel<D, Format> : top_k_kernel<D, Format>;
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  shape.shared_bytes));
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(problem.rows * shape.cluster));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = static_cast<cudaStream_t>(target.stream);
  config.attrs = &attribute;
  if (target.limits.most_blocks > 1) {
    config.numAttrs = 1;
    check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  }
  const Task<D> task{Prepared(problem, shape.split), D(problem.parameters)};
  check_cuda(cudaLaunchKernelEx(&config, kernel, task));
}

template <class D, class Format>
void launch_any(const RowProblem& problem, const CudaTarget& target) {
  constexpr int64_t kMostColumns = 1 << 30;
  if (problem.vocab > kMostColumns || problem.gradient_width > kMostColumns) {
    throw std::invalid_argument("vocab must be at most 2^30 on a GPU, got " +
                                std::to_string(problem.vocab));
  }
  const LaunchShape shape = shape_of<Format>(problem, target.limits);
  if (shape.shared_bytes > target.limits.shared_bytes) {
    throw std::invalid_argument("vocab is too large for a top-k teacher on this GPU: " +
                                std::to_string(problem.vocab));
  }
  if constexpr (sizeof(typename Format::Arithmetic) == sizeof(float)) {
    if (shape.split.is_kept && is_plain(problem)) {
      return launch_as<D, PlainBFloat16>(problem, target, shape);
    }
  }
  launch_as<D, Format>(problem, target, shape);
}

template <class D>
void launch(const RowProblem& problem, const CudaTarget& target) {
  if (problem.student.dtype == DType::kFloat64) {
    launch_any<D, AnyDouble>(problem, target);
  } else {
    launch_any<D, AnyFloat>(problem, target);
  }
}

}  // namespace fastdistill
