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

  /// Takes the whole tiles of the row straight from memory, where they are stored in a way that
  /// allows it; returns the number of tokens taken.
  int64_t take_stored() {
    const int64_t size = problem.vocab / kTile * kTile;
    const bool done =
        !with_hard && visit_scaled<S>(problem.student, problem.temperature, index, [&](auto x) {
          if (taken != nullptr) memset(tile.teacher, 0, sizeof tile.teacher);
          for (int64_t start = 0; start < size; start += kTile) {
            const bool takes_out = taken != nullptr && taken->any_in(start / kTile);
            const bool is_done =
                takes_out ? take_without_listed(x, start)
                          : take_elements(start, [=](int64_t i) { return x(start + i); });
            if (!is_done) take_loaded(start, kTile);
          }
        });
    return done ? size : 0;
  }

  /// Takes a stored tile, its listed tokens moved; false where the level has to be raised. In the
  /// teacher's place is the log of what is left of each token: 0, and -inf of a listed one.
  template <class Row>
  bool take_without_listed(Row x, int64_t start) {
    S* left = tile.teacher;
    taken->for_each_in(start / kTile, [&](int64_t e, int64_t i) {
      const int64_t lane = i % A::kWidth;
      S lanes[A::kWidth];
      store(lanes, x(start + i - lane));
      taken->x[e] = lanes[lane];
      left[i] = static_cast<S>(-__builtin_inf());
    });
    const bool is_done =
        take_elements(start, [=](int64_t i) { return x(start + i) + A::load_from(left + i); });
    taken->for_each_in(start / kTile, [&](int64_t, int64_t i) { left[i] = S(0); });
    return is_done;
  }

  /// Takes a whole tile of x(i) from the level so far; false where it has to be raised.
  template <class X>
  bool take_elements(int64_t start, X x) {
    if (soft.max == -__builtin_inf()) return false;
    S* to = kept.empty() ? tile.student : kept.student + start;
    const V level(soft.max);
    V sum(0.0), highest(-__builtin_inf());
    for_each_vector<S>(kTile, [&](int64_t i) {
      const V from = x(i) - level, e = exp(from);
      highest = max(highest, from);
      store(to + i, e);
      sum = sum + e;
    });
    if (max_lanes(highest) > kHeadroom) return false;
    if (!kept.empty()) kept.level[start / kTile] = {soft.max, 0.0};
    soft.add(sum_lanes(sum));
    return true;
  }
};

}  // namespace
}  // namespace fastdistill
