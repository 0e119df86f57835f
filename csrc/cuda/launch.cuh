// From a problem to a launch of its kernel.
#pragma once

#include <cstdlib>
#include <stdexcept>
#include <string>

#include "backend.h"
#include "dense_rows.cuh"
#include "top_k_rows.cuh"

namespace fastdistill {

inline void check_cuda(cudaError_t error) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + cudaGetErrorString(error));
}

/// The threads that share a row.
struct TeamShape {
  int cluster, threads;
};

/// A positive number in an environment variable, for measurements; else `otherwise`.
inline int forced(const char* variable, int otherwise) {
  const char* value = std::getenv(variable);
  const int number = value == nullptr ? 0 : std::atoi(value);
  return number > 0 ? number : otherwise;
}

/// Enough threads that each has a few chunks of the row, and no more.
template <class S>
TeamShape team_shape(int64_t vocab, bool clusters) {
  constexpr int kMostBlocks = 8, kChunksPerThread = 4;
  const int64_t wanted = vocab / (kChunk<S> * kChunksPerThread);
  int threads = kWarp, cluster = 1;
  while (threads < kMostThreads && threads < wanted) threads *= 2;
  while (clusters && cluster < kMostBlocks && 2 * cluster * threads <= wanted) cluster *= 2;
  if (clusters) cluster = forced("FASTDISTILL_CUDA_CLUSTER", cluster);
  threads = forced("FASTDISTILL_CUDA_THREADS", threads);
  if (threads % kWarp != 0 || threads > kMostThreads) {
    throw std::invalid_argument(
        "FASTDISTILL_CUDA_THREADS must be a multiple of 32 up to 512, got " +
        std::to_string(threads));
  }
  return {cluster, threads};
}

template <class D, class S>
void launch_typed(const RowProblem& problem, const CudaTarget& target) {
  const TeamShape shape = team_shape<S>(problem.vocab, target.has_clusters);
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(shape.cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(problem.rows * shape.cluster));
  config.blockDim = dim3(static_cast<unsigned>(shape.threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes<S>(problem));
  config.stream = static_cast<cudaStream_t>(target.stream);
  config.attrs = &attribute;
  config.numAttrs = target.has_clusters ? 1 : 0;
  const Task<D> task{problem, D(problem.parameters)};
  check_cuda(problem.top_k.k == 0 ? cudaLaunchKernelEx(&config, dense_kernel<D, S>, task)
                                  : cudaLaunchKernelEx(&config, top_k_kernel<D, S>, task));
}

template <class D>
void launch(const RowProblem& problem, const CudaTarget& target) {
  if (problem.student.dtype == DType::kFloat64) {
    launch_typed<D, double>(problem, target);
  } else {
    launch_typed<D, float>(problem, target);
  }
}

}  // namespace fastdistill
