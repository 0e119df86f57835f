// The switch from a divergence to its kernels, which stand in a file for each.
#include "../divergence.h"
#include "backend.h"
#include "launch.cuh"

namespace fastdistill {

#define FD_DECLARE(D) void launch_##D(const RowProblem& problem, const CudaTarget& target);
FASTDISTILL_DIVERGENCES(FD_DECLARE)
#undef FD_DECLARE

namespace {

using Launcher = void (*)(const RowProblem&, const CudaTarget&);
#define FD_LAUNCHER(D) launch_##D,
constexpr Launcher kLaunchers[] = {FASTDISTILL_DIVERGENCES(FD_LAUNCHER)};
#undef FD_LAUNCHER

int attribute_of(int device, cudaDeviceAttr attribute) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, attribute, device));
  return value;
}

/// Clusters and copies in bulk came with compute capability 9.0. Data-centre GPUs allow clusters of
/// 16 blocks, twice what is portable.
Limits limits_of_current_device() {
  int device = 0;
  check_cuda(cudaGetDevice(&device));
  const int major = attribute_of(device, cudaDevAttrComputeCapabilityMajor);
  Limits limits;
  limits.multiprocessors = attribute_of(device, cudaDevAttrMultiProcessorCount);
  limits.has_copies = major >= 9;
  limits.most_blocks = major < 9 ? 1 : major <= 10 ? 16 : 8;
  limits.shared_bytes = attribute_of(device, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  limits.shared_of_all = attribute_of(device, cudaDevAttrMaxSharedMemoryPerMultiprocessor);
  limits.shared_reserved = attribute_of(device, cudaDevAttrReservedSharedMemoryPerBlock);
  return limits;
}

}  // namespace

void run_on_cuda(const RowProblem& problem, int divergence, void* stream) {
  if (problem.rows == 0) return;
  kLaunchers[divergence](problem, {stream, limits_of_current_device()});
}

std::string cuda_description() {
  constexpr int version = CUDART_VERSION;
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10) + ": " +
         FD_CUDA_ARCHITECTURES;
}

}  // namespace fastdistill
