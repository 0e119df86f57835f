// A row in hand: the working memory of its thread, and what is written of it.
#pragma once

#include "first_sweep.h"
#include "top_k.h"

namespace fastdistill {
namespace {

/// The working memory of a thread, laid out.
template <class S>
struct Workspace {
  Tile<S>& tile;
  Listed<S> listed;
  KeptExps<S> kept;

  Workspace(const RowProblem& problem, void* scratch) : tile(*static_cast<Tile<S>*>(scratch)) {
    // What is 8 bytes wide comes first: elements of S need no more than that to be aligned.
    const int64_t entries = problem.top_k.k + 1, tiles = tiles_of(problem.vocab);
    char* next = static_cast<char*>(scratch) + sizeof(Tile<S>);
    listed.tile_begin = reinterpret_cast<int64_t*>(next);
    listed.ids = listed.tile_begin + tiles + 2;
    TilePair* level = reinterpret_cast<TilePair*>(listed.ids + entries);
    listed.log_p = reinterpret_cast<S*>(level + (may_keep_exps(problem) ? tiles : 0));
    listed.x = listed.log_p + entries;
    listed.gradient = listed.x + entries;
    if (may_keep_exps(problem)) {
      kept.student = listed.gradient + entries;
      if (problem.top_k.k == 0) kept.teacher = kept.student + tiles * kTile;
      kept.level = level;
    }
  }

  /// Whether a later sweep of the same call can use the exps of the first.
  static bool may_keep_exps(const RowProblem& problem) {
    const bool fused = problem.mode == Mode::kFused;
    if (problem.top_k.k > 0) return fused && problem.top_k.tail == Tail::kBucket;
    return problem.mode != Mode::kBackward;
  }

  static int64_t bytes(const RowProblem& problem) {
    const int64_t tiles = tiles_of(problem.vocab), entries = problem.top_k.k + 1;
    int64_t sum = sizeof(Tile<S>) + 8 * (tiles + 2 + entries) + 3 * entries * sizeof(S);
    const int64_t sides = problem.top_k.k == 0 ? 2 : 1;
    if (may_keep_exps(problem)) sum += tiles * (sides * kTile * sizeof(S) + sizeof(TilePair));
    return sum;
  }
};

int64_t scratch_bytes(const RowProblem& problem) {
  return problem.student.dtype == DType::kFloat64 ? Workspace<double>::bytes(problem)
                                                  : Workspace<float>::bytes(problem);
}

/// Everything that is known of the row in hand.
template <class S>
struct Row {
  const RowProblem& problem;
  int64_t index;
  Workspace<S> work;
  RowStats stats{};

  bool has_label() const { return problem.labels != nullptr; }
  bool wants_values() const { return problem.mode != Mode::kBackward; }
  bool wants_metrics() const { return problem.metrics != nullptr; }
  bool wants_gradient() const { return problem.mode != Mode::kForward; }
  bool wants_soft_gradient() const { return wants_gradient() && problem.grad_soft[index] != 0.0; }
};

template <class S>
void write_values(const Row<S>& row, double soft) {
  const RowProblem& problem = row.problem;
  problem.soft[row.index] = soft;
  if (row.has_label()) {
    const int64_t label = problem.labels[row.index];
    // Rounded like the elements of the sum: nothing is left over at a label that is certain.
    const S x = load_one<S>(problem.student, problem.temperature, row.index, label);
    const S logit = x * static_cast<S>(problem.temperature);
    problem.hard[row.index] = row.stats.hard_lse - static_cast<double>(logit);
  }
  if (problem.stats != nullptr) problem.stats[row.index] = row.stats;
}

/// Completes tile.gradient with the hard-label part and stores it.
template <class S>
void finish_tile(const Row<S>& row, int64_t start, int64_t n, Tile<S>& tile) {
  const RowProblem& problem = row.problem;
  if (row.has_label()) {
    add_hard_gradient(tile, n, problem.temperature, row.stats.hard_lse,
                      by_stored_logit(problem, problem.grad_hard[row.index]),
                      problem.labels[row.index] - start);
  }
  store_gradient(problem, row.index, start, n, tile);
}

}  // namespace
}  // namespace fastdistill
