// What stands in for the CUDA backend in a build without it.
#include <stdexcept>

#include "backend.h"

namespace fastdistill {

void run_on_cuda(const RowProblem&, int, void*) {
  throw std::runtime_error("this build of fastdistill has no CUDA backend");
}

std::string cuda_description() { return ""; }

}  // namespace fastdistill
