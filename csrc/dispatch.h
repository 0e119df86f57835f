// From a problem to the kernel that handles its rows.
#pragma once

#include <string>
#include <vector>

#include "row_problem.h"

namespace fastdistill {

struct DivergenceInfo {
  std::string name;  // of the struct in divergence.h
  int parameters;
};

/// Every divergence, in the order in which `run` counts them.
const std::vector<DivergenceInfo>& divergences();

/// Runs all rows of a checked problem on at most `threads` threads. Each row is handled by one
/// thread in one fixed order: results do not depend on `threads`.
void run(const RowProblem& problem, int divergence, int threads);

/// Asks the kernel for huge pages behind a buffer that is not touched yet: page faults on a fresh
/// gradient cost more than its arithmetic.
void advise_huge_pages(void* data, int64_t bytes);

/// The first slot whose id is outside [-1, vocab) or repeats an earlier one of its row. Rows that
/// do not count, where `counted` says so, are not looked at.
struct BadId {
  int64_t row = -1, slot = -1, id = 0;
  bool found() const { return row >= 0; }
};
BadId find_bad_id(const TopK& top_k, const bool* counted, int64_t rows, int64_t vocab);

}  // namespace fastdistill
