#include "dispatch.h"

#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <exception>
#include <memory>
#include <new>

#include "cpu/isa.h"
#include "divergence.h"

namespace fastdistill {
namespace {

struct Free {
  void operator()(void* memory) const { std::free(memory); }
};
using Scratch = std::unique_ptr<void, Free>;

Scratch allocate_scratch(int64_t bytes) {
  const int64_t rounded = (bytes + 63) / 64 * 64;
  Scratch scratch(std::aligned_alloc(64, static_cast<size_t>(rounded)));
  if (!scratch) throw std::bad_alloc();
  return scratch;
}

/// Rows handed to a thread at a time: enough elements to hide the hand-over.
int rows_per_turn(int64_t vocab) {
  constexpr int64_t kElements = 1 << 16;
  return vocab >= kElements ? 1 : static_cast<int>(kElements / vocab);
}

/// Rows, divided among workers: each has a block of its own and then helps with those of others.
///
/// Workers that took turns at neighbouring rows would touch new pages of the gradient at the same
/// time. A system that learns only after it has cleared a huge page that another worker already has
/// one there would clear most of them once for each worker.
class SharedRows {
 public:
  SharedRows(int64_t rows, int64_t turn, int workers) : turn_(turn), blocks_(workers) {
    const int64_t turns = (rows + turn - 1) / turn;
    for (int i = 0; i < workers; ++i) {
      blocks_[i].next = turns * i / workers * turn;
      blocks_[i].end = std::min(turns * (i + 1) / workers * turn, rows);
    }
  }

  /// Calls f(row) for rows that no other worker has or will have.
  template <class F>
  void for_each(int worker, F f) {
    const int workers = static_cast<int>(blocks_.size());
    for (int i = 0; i < workers; ++i) {
      Block& block = blocks_[(worker + i) % workers];
      int64_t start;
      while ((start = block.next.fetch_add(turn_)) < block.end) {
        const int64_t end = std::min(start + turn_, block.end);
        for (int64_t row = start; row < end; ++row) f(row);
      }
    }
  }

 private:
  struct Block {
    std::atomic<int64_t> next;
    int64_t end;
  };
  const int64_t turn_;
  std::vector<Block> blocks_;
};

}  // namespace

const std::vector<DivergenceInfo>& divergences() {
#define FD_INFO(D) {#D, D::kParameters},
  static const std::vector<DivergenceInfo> list{FASTDISTILL_DIVERGENCES(FD_INFO)};
#undef FD_INFO
  return list;
}

void run(const RowProblem& problem, int divergence, int threads) {
  if (problem.rows == 0) return;
  const KernelTable& table = kernel_table();
  const bool wide = problem.student.dtype == DType::kFloat64;
  const RowKernel kernel = (wide ? table.double_kernels : table.float_kernels)[divergence];
  const int64_t bytes = table.scratch_bytes(problem);
  const int turn = rows_per_turn(problem.vocab);
  const int64_t turns = (problem.rows + turn - 1) / turn;
  const int used = turns < threads ? static_cast<int>(turns) : threads;
  std::vector<Scratch> scratch;  // allocated here: an exception must not leave a parallel region
  for (int i = 0; i < used; ++i) scratch.push_back(allocate_scratch(bytes));
  SharedRows rows(problem.rows, turn, used);
  std::atomic<int> next_worker{0};
#pragma omp parallel num_threads(used)
  {
    const int worker = next_worker++;
    void* memory = scratch[static_cast<size_t>(worker)].get();
    rows.for_each(worker, [&](int64_t row) { kernel(problem, row, memory); });
  }
}

void advise_huge_pages(void* data, int64_t bytes) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + page - 1) / page * page;
  const uintptr_t end =
      (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / page * page;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
}

BadId find_bad_id(const TopK& top_k, const bool* counted, int64_t rows, int64_t vocab) {
  std::vector<int64_t> seen_in_row(static_cast<size_t>(vocab), -1);
  for (int64_t row = 0; row < rows; ++row) {
    if (counted != nullptr && !counted[row]) continue;
    for (int64_t slot = 0; slot < top_k.k; ++slot) {
      const int64_t id = top_k.ids[row * top_k.ids_stride + slot];
      if (id == -1) continue;
      if (id < -1 || id >= vocab || seen_in_row[static_cast<size_t>(id)] == row) {
        return {row, slot, id};
      }
      seen_in_row[static_cast<size_t>(id)] = row;
    }
  }
  return {};
}

}  // namespace fastdistill
