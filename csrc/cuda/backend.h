// The CUDA backend, as the rest of the module sees it: no header of CUDA is needed here.
#pragma once

#include <string>
#include <vector>

#include "../row_problem.h"

namespace fastdistill {

/// Queues the kernels of a checked problem, whose addresses are on the current device, on a stream
/// of that device. Does not wait. Throws std::runtime_error where the launch is refused.
void run_on_cuda(const RowProblem& problem, int divergence, void* stream);

/// "12.8: sm_80 sm_90", or empty where the build has no CUDA backend.
std::string cuda_description();

}  // namespace fastdistill
