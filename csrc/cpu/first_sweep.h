// The first sweep over a row of two sides: what is summed of each, and the exps that are kept.
#pragma once

#include "sweep.h"

namespace fastdistill {
namespace {

/// exp(x - level) of a row, from its first sweep, so that later ones need no exp.
template <class S>
struct KeptExps {
  S* student = nullptr;  // null: not kept
  S* teacher = nullptr;
  TilePair* level = nullptr;  // by tile; afterwards the factor that makes the exps probabilities

  bool empty() const { return student == nullptr; }

  void levels_to_factors(int64_t tiles, TilePair lse) const {
    TilePair last{__builtin_nan(""), __builtin_nan("")}, factor{};
    for (int64_t j = 0; j < tiles; ++j) {
      if (level[j].student != last.student || level[j].teacher != last.teacher) {  // seldom
        last = level[j];
        factor = {exp(last.student - lse.student), exp(last.teacher - lse.teacher)};
      }
      level[j] = factor;
    }
  }
};

/// Both log-sum-exps, with the means and entropies that a divergence asks for.
template <unsigned kMeans, unsigned kEntropies, class S>
struct FirstSweep {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  static constexpr bool kOfStudent = (kEntropies & kStudentEntropy) != 0;
  static constexpr bool kOfTeacher = (kEntropies & kTeacherEntropy) != 0;
  OnlineSoftmax<double, kOfStudent> student;
  OnlineSoftmax<double, kOfTeacher> teacher;

  /// Takes a tile that is loaded.
  void take_loaded(int64_t start, int64_t n, TilePair tile_max, const Tile<S>& tile,
                   const KeptExps<S>& keep) {
    const TilePair level = raise(tile_max);
    TileSums sums(level);
    V q, p;
    const auto add_at = [&](int64_t i) {
      sums.add(A::load_from(tile.student + i), A::load_from(tile.teacher + i), q, p);
    };
    if (keep.empty()) {
      for_each_vector<S>(n, add_at);
    } else {
      keep.level[start / kTile] = level;
      for_each_vector<S>(n, [&](int64_t i) {
        add_at(i);
        store(keep.student + start + i, q);
        store(keep.teacher + start + i, p);
      });
    }
    add(sums);
  }

  /// Takes the whole tiles of a row straight from memory, where they are stored in a way that
  /// allows it; returns the number of tokens taken.
  int64_t take_stored(const RowProblem& problem, int64_t index, Tile<S>& tile,
                      const KeptExps<S>& keep) {
    const int64_t tiles = problem.vocab / kTile;
    const bool taken = visit_scaled<S>(problem.student, problem.teacher, problem.temperature, index,
                                       [&](auto x_s, auto x_t) {
                                         for (int64_t j = 0; j < tiles; ++j)
                                           take_stored_tile(j, x_s, x_t, tile, keep);
                                       });
    return taken ? tiles * kTile : 0;
  }

 private:
  /// Sums over a tile, the exps taken from levels.
  struct TileSums {
    V student_level, teacher_level;
    V student{0.0}, teacher{0.0}, student_moment{0.0}, teacher_moment{0.0};
    FD_INLINE explicit TileSums(TilePair level)
        : student_level(level.student), teacher_level(level.teacher) {}

    /// Adds a vector of either side, whose exps become q and p. A returned pair of them would pass
    /// through memory.
    FD_INLINE void add(V x_s, V x_t, V& q, V& p) {
      const V from_s = x_s - student_level, from_t = x_t - teacher_level;
      q = exp(from_s);
      p = exp(from_t);
      student = student + q;
      teacher = teacher + p;
      if constexpr (kMeans & kTeacherMean) teacher_moment = teacher_moment + weighted(p, x_t - x_s);
      if constexpr (kMeans & kStudentMean) student_moment = student_moment + weighted(q, x_s - x_t);
      if constexpr (kOfTeacher) teacher_moment = teacher_moment + p * above_exp_zero(from_t);
      if constexpr (kOfStudent) student_moment = student_moment + q * above_exp_zero(from_s);
    }
  };

  TilePair level() const { return {level_of(student.max), level_of(teacher.max)}; }
  TilePair raise(TilePair tile_max) {
    return {student.raise(tile_max.student), teacher.raise(tile_max.teacher)};
  }
  void add(const TileSums& sums) {
    student.add(sum_lanes(sums.student), sum_lanes(sums.student_moment));
    teacher.add(sum_lanes(sums.teacher), sum_lanes(sums.teacher_moment));
  }

  /// The exps are taken from the level so far, the maximum is found beside them; a tile that raises
  /// the level, which the maxima of few do, is taken again.
  template <class Row>
  void take_stored_tile(int64_t j, Row student_x, Row teacher_x, Tile<S>& tile,
                        const KeptExps<S>& keep) {
    S* to_s = keep.empty() ? tile.student : keep.student + j * kTile;
    S* to_t = keep.empty() ? tile.teacher : keep.teacher + j * kTile;
    while (true) {
      TileSums sums(level());
      V max_s(-__builtin_inf()), max_t(-__builtin_inf());
      for_each_vector<S>(kTile, [&](int64_t i) {
        const V x_s = student_x(j * kTile + i), x_t = teacher_x(j * kTile + i);
        max_s = max(max_s, x_s);
        max_t = max(max_t, x_t);
        V q, p;
        sums.add(x_s, x_t, q, p);
        store(to_s + i, q);
        store(to_t + i, p);
      });
      const TilePair tile_max{max_lanes(max_s), max_lanes(max_t)};
      if (tile_max.student <= student.max && tile_max.teacher <= teacher.max) {
        if (!keep.empty()) keep.level[j] = level();
        return add(sums);
      }
      raise(tile_max);
    }
  }
};

}  // namespace
}  // namespace fastdistill
