// The CPU instruction sets that the row kernels were compiled for, and which one is in use.
#pragma once

#include <string>
#include <vector>

#include "../row_problem.h"

namespace fastdistill {

/// Elementary functions, for the tests of their stated errors.
enum class Elementary : int { kExp, kLog, kTanh };

/// What one instruction set offers. Filled by the file of that instruction set.
struct KernelTable {
  const char* name;
  const RowKernel* float_kernels;  // by divergence, in the order of FASTDISTILL_DIVERGENCES
  const RowKernel* double_kernels;
  int64_t (*scratch_bytes)(const RowProblem&);
  void (*evaluate)(Elementary function, const float* in, float* out, int64_t n);
};

/// Names of those that this machine can run, from least to most capable.
std::vector<std::string> available_isas();
/// Name of the one in use: the most capable, or what FASTDISTILL_ISA or select_isa said.
std::string current_isa();
/// Throws std::invalid_argument where `name` is not available.
void select_isa(const std::string& name);

const KernelTable& kernel_table();

/// Whether GEMMs of bfloat16 are faster here than those of float32. An instruction for them is not
/// enough: with AVX512_BF16 but no AMX an Intel processor was found to be slower.
bool has_fast_bfloat16_gemms();

}  // namespace fastdistill
