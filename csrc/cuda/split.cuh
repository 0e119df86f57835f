// How a row is shared by the blocks of a cluster, for a problem and a GPU.
#pragma once

#include "top_k_rows.cuh"

namespace fastdistill {

/// What a GPU gives.
struct Limits {
  int multiprocessors = 1;
  int most_blocks = 1;      // of a cluster
  bool has_copies = false;  // in bulk, into shared memory
  int shared_bytes = 0;     // of a block
  int shared_of_all = 0;    // of a multiprocessor
  int shared_reserved = 0;  // for each block

  /// Of a block where so many share a multiprocessor.
  int shared_of(int blocks) const {
    const int share = shared_of_all / blocks - shared_reserved;
    return share < shared_bytes ? share : shared_bytes;
  }
};

/// A launch of row kernels.
struct LaunchShape {
  int cluster = 1, threads = kWarp;
  int shared_bytes = 0;
  Split split{};
};

inline int64_t round_up(int64_t x, int64_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

/// Whether every row starts where copies in bulk may start.
inline bool is_aligned(const Logits& logits) {
  const int64_t row_bytes = logits.row_stride * width(logits.dtype);
  return (reinterpret_cast<uintptr_t>(logits.data) | static_cast<uintptr_t>(row_bytes)) %
             sizeof(Packet) ==
         0;
}

/// Whether a row kernel looks at every logit more than once, so that it pays to keep them.
inline bool keeps_rows(const RowProblem& problem) {
  const bool has_list = problem.top_k.k > 0;
  if (!is_aligned(problem.student) || !(has_list || is_aligned(problem.teacher))) return false;
  return !has_list || problem.top_k.tail != Tail::kRenormalize || problem.labels != nullptr ||
         problem.metrics != nullptr;
}

/// Whether every row is of the plain format, if it is kept.
inline bool is_plain(const RowProblem& problem) {
  const auto plain = [](const Logits& logits) {
    return logits.dtype == DType::kBFloat16 && logits.softcap == 0.0 && is_aligned(logits);
  };
  return plain(problem.student) && (problem.top_k.k > 0 || plain(problem.teacher)) &&
         (problem.mode == Mode::kForward || plain(problem.gradient));
}

/// Shared memory that a block needs beside its slice, and of its slice per column.
template <class Format>
int64_t fixed_bytes(const RowProblem& problem, int64_t columns) {
  const bool has_list = problem.top_k.k > 0;
  return kFrameBytes<Format> +
         (has_list ? ListedBits<Format>::bytes(static_cast<int>(columns)) : 0);
}
inline int64_t bytes_per_column(const RowProblem& problem) {
  return width(problem.student.dtype) + (problem.top_k.k > 0 ? 0 : width(problem.teacher.dtype));
}

/// The launch with so many blocks and threads, the slices kept or not.
template <class Format>
LaunchShape launch_shape(const RowProblem& problem, int cluster, int threads, bool is_kept) {
  using S = typename Format::Arithmetic;
  constexpr int64_t kAlignment = kChunk<float>;
  LaunchShape shape{cluster, threads};
  const int64_t columns = round_up((problem.vocab + cluster - 1) / cluster, kAlignment);
  const int64_t step = threads * kChunk<S>;
  const int64_t steps = is_kept ? (columns + step - 1) / step : 1;
  const int64_t fixed = fixed_bytes<Format>(problem, columns);
  shape.split.columns = static_cast<int>(columns);
  shape.split.stage = static_cast<int>(
      is_kept ? (steps + kMostStages - 1) / kMostStages * round_up(step, kAlignment) : columns);
  shape.split.is_kept = is_kept;
  shape.split.shared_from = static_cast<int>(fixed);
  shape.shared_bytes =
      static_cast<int>(fixed + (is_kept ? columns * bytes_per_column(problem) : 0));
  return shape;
}

/// Whether clusters of this size leave at most one place of eight empty, where a multiprocessor has
/// places for so many blocks. Clusters are placed within groups of 16 or 18 multiprocessors.
inline bool fill_groups(int cluster, int blocks) {
  const int places = 16 * blocks;
  return 8 * (places % cluster) <= places;
}

/// The fewest blocks with whose slices several fit into a multiprocessor, so that one may wait for
/// memory while another computes. Where the slices cannot be kept more blocks than one are of use
/// only if there are few rows.
template <class Format>
LaunchShape choose_shape(const RowProblem& problem, const Limits& limits) {
  using S = typename Format::Arithmetic;
  constexpr int kChunksPerThread = 4, kPortableBlocks = 8, kWaves = 2;
  int threads = kWarp;
  while (2 * threads <= kMostThreads && threads * kChunk<S> * kChunksPerThread < problem.vocab) {
    threads *= 2;
  }
  if (limits.has_copies && keeps_rows(problem)) {
    const bool plain = is_plain(problem);
    for (const int blocks : {3, 2, 1}) {
      for (int cluster = 1; cluster <= limits.most_blocks; ++cluster) {
        const bool is_good =
            plain ? fill_groups(cluster, blocks) : 16 % cluster == 0 && cluster <= kPortableBlocks;
        const LaunchShape shape = launch_shape<Format>(problem, cluster, threads, true);
        if (is_good && shape.shared_bytes <= limits.shared_of(blocks)) return shape;
      }
    }
  }
  int64_t cluster = 1;
  while (2 * cluster <= limits.most_blocks && 2 * cluster <= kPortableBlocks &&
         problem.rows * cluster < kWaves * limits.multiprocessors &&
         2 * cluster * threads * kChunk<S> * kChunksPerThread <= problem.vocab) {
    cluster *= 2;
  }
  return launch_shape<Format>(problem, static_cast<int>(cluster), threads, false);
}

}  // namespace fastdistill
