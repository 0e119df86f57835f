// The first sweep over a row of two sides: what is summed of each, and the exps that are kept.
#pragma once

#include "sweep.h"

namespace fastdistill {
namespace {

/// exp(x - level) of a row, from its first sweep, so that later ones need no exp. What a gradient
/// needs more than the teacher's takes their place.
template <class S>
struct KeptExps {
  S* student = nullptr;  // null: not kept
  S* teacher = nullptr;
  TilePair* level = nullptr;  // by tile; afterwards the factor that makes the exps probabilities

  bool empty() const { return student == nullptr; }

  /// kRatio: the teacher's place has the differences of what the exps were taken of. Its factor is
  /// then what is to be subtracted from them to make them log q - log p.
  template <bool kRatio = false>
  void levels_to_factors(int64_t tiles, TilePair lse) const {
    TilePair last{__builtin_nan(""), __builtin_nan("")}, factor{};
    for (int64_t j = 0; j < tiles; ++j) {
      if (level[j].student != last.student || level[j].teacher != last.teacher) {  // seldom
        last = level[j];
        const TilePair below{last.student - lse.student, last.teacher - lse.teacher};
        factor = {exp(below.student), kRatio ? below.teacher - below.student : exp(below.teacher)};
      }
      level[j] = factor;
    }
  }
};

/// Both log-sum-exps, with the means and entropies that D asks for.
template <class D, class S>
struct FirstSweep {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  static constexpr bool kOfStudent = (D::kEntropies & kStudentEntropy) != 0;
  static constexpr bool kOfTeacher = (D::kEntropies & kTeacherEntropy) != 0;
  OnlineSoftmax<double, kOfStudent> student;
  OnlineSoftmax<double, kOfTeacher> teacher;

  /// Takes a tile that is loaded.
  void take_loaded(int64_t start, int64_t n, TilePair tile_max, const Tile<S>& tile,
                   const KeptExps<S>& keep) {
    const TilePair level{student.raise(tile_max.student), teacher.raise(tile_max.teacher)};
    TileSums<true> sums(level);
    V q, other;
    const auto add_at = [&](int64_t i) {
      sums.add(A::load_from(tile.student + i), A::load_from(tile.teacher + i), q, other);
    };
    if (keep.empty()) {
      for_each_vector<S>(n, add_at);
    } else {
      keep.level[start / kTile] = level;
      for_each_vector<S>(n, [&](int64_t i) {
        add_at(i);
        store(keep.student + start + i, q);
        store(keep.teacher + start + i, other);
      });
    }
    add(sums);
  }

  /// Takes the whole tiles of a row, most of them straight from memory, where they are stored in a
  /// way that allows it; returns the number of tokens taken. Those that rise too far above a
  /// level, or have an infinite term of weight zero, are loaded by load(start).
  template <class Load>
  int64_t take_stored(const RowProblem& problem, int64_t index, Tile<S>& tile,
                      const KeptExps<S>& keep, Load load) {
    const int64_t size = problem.vocab / kTile * kTile;
    const bool taken = visit_scaled<S>(problem.student, problem.teacher, problem.temperature, index,
                                       [&](auto x_s, auto x_t) {
                                         for (int64_t start = 0; start < size; start += kTile) {
                                           if (!take_stored_tile(start, x_s, x_t, tile, keep)) {
                                             take_loaded(start, kTile, load(start), tile, keep);
                                           }
                                         }
                                       });
    return taken ? size : 0;
  }

 private:
  /// Sums over a tile, the exps taken from levels. kWithCare: a term of weight zero vanishes. Else
  /// an infinite one makes a NaN, and the highest element above its level is found.
  template <bool kWithCare>
  struct TileSums {
    V student_level, teacher_level;
    V student{0.0}, teacher{0.0}, student_moment{0.0}, teacher_moment{0.0};
    V highest{-__builtin_inf()};
    FD_INLINE explicit TileSums(TilePair level)
        : student_level(level.student), teacher_level(level.teacher) {}

    /// Adds a vector of either side. q becomes the student's exps, `other` what is kept beside
    /// them. A returned pair of them would pass through memory.
    FD_INLINE void add(V x_s, V x_t, V& q, V& other) {
      const V from_s = x_s - student_level, from_t = x_t - teacher_level;
      if constexpr (!kWithCare) highest = max(max(highest, from_s), from_t);
      q = exp(from_s);
      const V p = exp(from_t);
      other = D::kSlopeIsRatio ? from_s - from_t : p;
      student = student + q;
      teacher = teacher + p;
      if constexpr (D::kMoments & kTeacherMean) {
        teacher_moment = teacher_moment + term(p, x_t - x_s);
      }
      if constexpr (D::kMoments & kStudentMean) {
        student_moment = student_moment + term(q, x_s - x_t);
      }
      if constexpr (kOfTeacher) teacher_moment = teacher_moment + p * above_exp_zero(from_t);
      if constexpr (kOfStudent) student_moment = student_moment + q * above_exp_zero(from_s);
    }
    static FD_INLINE V term(V weight, V x) { return kWithCare ? weighted(weight, x) : weight * x; }
  };

  template <bool kWithCare>
  void add(const TileSums<kWithCare>& sums) {
    student.add(sum_lanes(sums.student), sum_lanes(sums.student_moment));
    teacher.add(sum_lanes(sums.teacher), sum_lanes(sums.teacher_moment));
  }

  bool needs_care = false;  // a tile had infinite terms of weight zero: others will have them too

  /// Takes a tile from the levels so far, without care; false where that is not enough.
  template <class Row>
  bool take_stored_tile(int64_t start, Row student_x, Row teacher_x, Tile<S>& tile,
                        const KeptExps<S>& keep) {
    if (needs_care) return false;
    const TilePair level{student.max, teacher.max};
    if (level.student == -__builtin_inf() || level.teacher == -__builtin_inf()) return false;
    S* to_s = keep.empty() ? tile.student : keep.student + start;
    S* to_t = keep.empty() ? tile.teacher : keep.teacher + start;
    TileSums<false> sums(level);
    const auto take_vector = [&](int64_t i) __attribute__((always_inline)) {
      V q, other;
      sums.add(student_x(start + i), teacher_x(start + i), q, other);
      store(to_s + i, q);
      store(to_t + i, other);
    };
    // Two in a turn: gcc then moves fewer of its sums between registers and memory.
    for (int64_t i = 0; i < kTile; i += 2 * A::kWidth) {
      take_vector(i);
      take_vector(i + A::kWidth);
    }
    if (max_lanes(sums.highest) > kHeadroom) return false;
    const double moments = sum_lanes(sums.student_moment) + sum_lanes(sums.teacher_moment);
    needs_care = moments != moments;
    if (needs_care) return false;
    if (!keep.empty()) keep.level[start / kTile] = level;
    add(sums);
    return true;
  }
};

}  // namespace
}  // namespace fastdistill
