// The sweep over a student whose teacher is a list of tokens: its softmaxes, and the exps that are
// kept.
#pragma once

#include "top_k.h"

namespace fastdistill {
namespace {

template <class S>
struct StudentSweep {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  const RowProblem& problem;
  int64_t index;
  Tile<S>& tile;
  const KeptExps<S>& kept;
  const Listed<S>* taken;  // tokens that are moved to its x and are no part of `soft`; may be null
  bool with_hard;          // whether the softmax at T = 1 is made beside the one at T
  OnlineSoftmax<double> soft{}, hard{};

  void run() {
    for (int64_t start = take_stored(); start < problem.vocab; start += kTile) {
      take_loaded(start, problem.vocab - start < kTile ? problem.vocab - start : kTile);
    }
    if (!kept.empty()) {
      kept.levels_to_factors(tiles_of(problem.vocab), {level_of(soft.lse()), 0.0});
    }
  }

 private:
  void take_loaded(int64_t start, int64_t n) {
    double tile_max =
        load_tile(problem.student, problem.temperature, index, start, n, tile.student);
    if (with_hard) push_hard(hard, tile, n, tile_max, problem.temperature);
    if (taken != nullptr) tile_max = take_listed(*taken, start, n, tile_max, tile);
    const double level = soft.raise(tile_max);
    if (kept.empty()) {
      soft.add(sum_exps(tile.student, n, level));
    } else {
      kept.level[start / kTile] = {level, 0.0};
      soft.add(sum_and_keep_exps(tile.student, n, level, kept.student + start));
    }
  }

  /// Takes the whole tiles of the row, those without tokens to move straight from memory, where
  /// they are stored in a way that allows it; returns the number of tokens taken.
  int64_t take_stored() {
    const int64_t size = problem.vocab / kTile * kTile;
    const bool done =
        !with_hard && visit_scaled<S>(problem.student, problem.temperature, index, [&](auto x) {
          for (int64_t start = 0; start < size; start += kTile) {
            if (taken != nullptr && taken->any_in(start / kTile)) {
              take_loaded(start, kTile);
            } else {
              take_stored_tile(x, start);
            }
          }
        });
    return done ? size : 0;
  }

  /// The exps are taken from the level so far, the maximum is found beside them; a tile that raises
  /// the level, which the maxima of few do, is taken again.
  template <class Row>
  void take_stored_tile(Row x, int64_t start) {
    S* to = kept.empty() ? tile.student : kept.student + start;
    while (true) {
      const double level = level_of(soft.max);
      const V shift(level);
      V sum(0.0), largest(-__builtin_inf());
      for_each_vector<S>(kTile, [&](int64_t i) {
        const V at = x(start + i), e = exp(at - shift);
        largest = max(largest, at);
        store(to + i, e);
        sum = sum + e;
      });
      const double tile_max = max_lanes(largest);
      if (tile_max <= soft.max) {
        if (!kept.empty()) kept.level[start / kTile] = {level, 0.0};
        return soft.add(sum_lanes(sum));
      }
      soft.raise(tile_max);
    }
  }
};

}  // namespace
}  // namespace fastdistill
