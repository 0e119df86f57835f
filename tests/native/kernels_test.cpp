// The row kernels of every instruction set that this machine has, without Python. Exits with 1
// where anything differs from what it must be.
#include "../../csrc/cpu/isa.h"
#include "../../csrc/dispatch.h"
#include "problems.h"

int main() {
  using namespace fastdistill;
  std::vector<Backend> backends;
  for (const std::string& isa : available_isas()) {
    backends.push_back({isa, [isa](const RowProblem& problem, int divergence) {
                          select_isa(isa);
                          run(problem, divergence, 2);
                        }});
  }
  RowProblem nothing;
  nothing.vocab = 5;
  run(nothing, 0, 2);
  check_all({1, 2, 19, 2085}, backends);
  // A list's tiles straight from memory: with many listed tokens each, and with few or none.
  for (const DType dtype : {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64}) {
    for (const int64_t k : {522, 3}) {
      check_everything({dtype, 2085, k, Tail::kBucket, true}, backends);
    }
  }
  return conclude(backends);
}
