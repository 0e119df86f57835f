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

bool current_device_has_clusters() {
  int device = 0, major = 0;
  check_cuda(cudaGetDevice(&device));
  check_cuda(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  return major >= 9;
}

}  // namespace

void run_on_cuda(const RowProblem& problem, int divergence, void* stream) {
  if (problem.rows == 0) return;
  kLaunchers[divergence](problem, {stream, current_device_has_clusters()});
}

std::string cuda_description() {
  constexpr int version = CUDART_VERSION;
  return std::to_string(version / 1000) + "." + std::to_string(version % 1000 / 10) + ": " +
         FD_CUDA_ARCHITECTURES;
}

}  // namespace fastdistill
