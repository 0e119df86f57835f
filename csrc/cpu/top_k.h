// The listed tokens of a top-k teacher, and the two ways in which they become a row.
//
// Bucket and renormalize: the divergence runs over a short row - the listed tokens and, for bucket,
// one category with everything else. An unlisted token v moves that category by its share
// q_v / q_tail, so its gradient is that share of the category's.
// Zero and uniform: the teacher is dense and known everywhere; its tiles are made, not read.
#pragma once

#include "divergence_rows.h"

namespace fastdistill {
namespace {

/// The non-empty slots of one row, ordered by tile. The arrays have room for k + 1 entries.
template <class S>
struct Listed {
  int64_t count = 0;
  int64_t* ids;
  S* log_p;
  S* x;                   // of the student
  S* gradient;            // by x
  int64_t* tile_begin;    // entries of tile j are [tile_begin[j], tile_begin[j + 1])
  double log_p_unlisted;  // of each unlisted token (kZero, kUniform)

  bool any_in(int64_t tile) const { return tile_begin[tile] < tile_begin[tile + 1]; }

  /// Calls f(entry, place in the tile) for each entry of a tile.
  template <class F>
  FD_INLINE void for_each_in(int64_t tile, F f) const {
    for (int64_t e = tile_begin[tile]; e < tile_begin[tile + 1]; ++e) f(e, ids[e] - tile * kTile);
  }
};

/// Collects the slots of `row` by a counting sort over tiles.
template <class S>
void collect_listed(const RowProblem& problem, int64_t row, Listed<S>& listed) {
  const TopK& top_k = problem.top_k;
  const int64_t* ids = top_k.ids + row * top_k.ids_stride;
  const S* log_p = static_cast<const S*>(top_k.log_p) + row * top_k.log_p_stride;
  const auto is_empty = [&](int64_t slot) {
    return ids[slot] < 0 || log_p[slot] == static_cast<S>(-__builtin_inf());
  };
  const int64_t tiles = tiles_of(problem.vocab);
  int64_t* begin = listed.tile_begin;
  memset(begin, 0, (tiles + 2) * sizeof *begin);
  // Counts go two places up, their prefix sums one place up: filling then leaves begin[j] in place.
  for (int64_t slot = 0; slot < top_k.k; ++slot) {
    if (!is_empty(slot)) ++begin[ids[slot] / kTile + 2];
  }
  for (int64_t j = 2; j < tiles + 2; ++j) begin[j] += begin[j - 1];
  listed.count = begin[tiles + 1];
  for (int64_t slot = 0; slot < top_k.k; ++slot) {
    if (is_empty(slot)) continue;
    const int64_t entry = begin[ids[slot] / kTile + 1]++;
    listed.ids[entry] = ids[slot];
    listed.log_p[entry] = log_p[slot];
  }
}

/// Fills tile.teacher: the listed log-probabilities over a constant.
template <class S>
void make_teacher_tile(const Listed<S>& listed, int64_t start, int64_t n, Tile<S>& tile) {
  for (int64_t i = 0; i < n; ++i) tile.teacher[i] = static_cast<S>(listed.log_p_unlisted);
  for (int64_t i = n; i < round_up_to_vector<S>(n); ++i) {
    tile.teacher[i] = static_cast<S>(-__builtin_inf());
  }
  listed.for_each_in(start / kTile,
                     [&](int64_t e, int64_t i) { tile.teacher[i] = listed.log_p[e]; });
}

/// Moves the listed tokens of a student tile into listed.x; returns the maximum of the rest.
template <class S>
double take_listed(const Listed<S>& listed, int64_t start, int64_t n, double tile_max,
                   Tile<S>& tile) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  if (!listed.any_in(start / kTile)) return tile_max;
  listed.for_each_in(start / kTile, [&](int64_t e, int64_t i) {
    listed.x[e] = tile.student[i];
    tile.student[i] = static_cast<S>(-__builtin_inf());
  });
  V largest(-__builtin_inf());
  for_each_vector<S>(n, [&](int64_t i) { largest = max(largest, A::load_from(tile.student + i)); });
  return max_lanes(largest);
}

/// Reads listed.x from the student's row.
template <class S>
void gather_listed(const RowProblem& problem, int64_t row, const Listed<S>& listed) {
  for (int64_t e = 0; e < listed.count; ++e) {
    listed.x[e] = load_one<S>(problem.student, problem.temperature, row, listed.ids[e]);
  }
}

/// Copies n elements into a tile buffer, -inf up to a full vector; returns their maximum.
template <class S>
FD_INLINE double copy_into_tile(const S* from, int64_t n, S* to) {
  return map_elements<S>(from, n, to, [](auto x) { return x; });
}

/// Loads a tile of the short row.
template <class S>
TilePair load_listed(const void* source, int64_t start, int64_t n, Tile<S>& tile) {
  const auto& listed = *static_cast<const Listed<S>*>(source);
  const double student = copy_into_tile(listed.x + start, n, tile.student);
  const double teacher = copy_into_tile(listed.log_p + start, n, tile.teacher);
  return {student, teacher};
}

/// Log-sum-exp of a short array, with one tile as buffer.
template <class S>
double lse_of(const S* x, int64_t size, S* buffer) {
  OnlineSoftmax<double> state;
  for (int64_t start = 0; start < size; start += kTile) {
    const int64_t n = size - start < kTile ? size - start : kTile;
    const double level = state.raise(copy_into_tile(x + start, n, buffer));
    state.add(sum_exps(buffer, n, level));
  }
  return state.lse();
}

}  // namespace
}  // namespace fastdistill
