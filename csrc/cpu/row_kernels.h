// One row of a problem: from logits to loss, statistics and gradient.
#pragma once

#include "metrics_rows.h"
#include "row.h"
#include "student_sweep.h"

namespace fastdistill {
namespace {

// ---- rows whose teacher is known at every token -----------------------------------------------

template <class S>
TilePair load_dense(const void* source, int64_t start, int64_t n, Tile<S>& tile) {
  const auto& row = *static_cast<const Row<S>*>(source);
  const double t = row.problem.temperature;
  const double teacher = load_tile(row.problem.teacher, t, row.index, start, n, tile.teacher);
  return {load_tile(row.problem.student, t, row.index, start, n, tile.student), teacher};
}

template <class S>
TilePair load_with_made_teacher(const void* source, int64_t start, int64_t n, Tile<S>& tile) {
  const auto& row = *static_cast<const Row<S>*>(source);
  make_teacher_tile(row.work.listed, start, n, tile);
  return {load_tile(row.problem.student, row.problem.temperature, row.index, start, n,
                    tile.student),
          0.0};
}

/// Stores the gradient of a row without a tile in between, from what its sweeps kept and the stored
/// logits; returns the number of tokens done: all of them, those of whole tiles, or none.
template <class D, class S>
int64_t store_gradient_of_kept(const D& divergence, const Row<S>& row, double weight) {
  using V = typename Arithmetic<S>::Value;
  const RowProblem& problem = row.problem;
  const auto gradient_at = [&](int64_t start, auto x) {
    return gradient_of_kept(divergence, row.stats, weight, row.work.kept, start, x);
  };
  if constexpr (!kGradientTakesLogits<D, S>) {
    const auto none = [](int64_t) { return V(0.0); };
    for (int64_t start = 0; start < problem.vocab; start += kTile) {
      const int64_t n = problem.vocab - start < kTile ? problem.vocab - start : kTile;
      store_row_elements<S>(problem, row.index, start, n, gradient_at(start, none));
    }
    return problem.vocab;
  } else {
    const int64_t size = problem.vocab / kTile * kTile;
    const auto store_row = [&](auto x) {
      using T = typename decltype(x)::Stored;  // that of the gradient, too
      T* to = static_cast<T*>(problem.gradient.data) + row.index * problem.gradient.row_stride;
      for (int64_t start = 0; start < size; start += kTile) {
        const auto x_at = [=](int64_t i) { return x(start + i); };
        store_elements<S>(to + start, kTile, gradient_at(start, x_at));
      }
    };
    return visit_scaled<S>(problem.student, problem.temperature, row.index, store_row) ? size : 0;
  }
}

template <bool kKept, class D, class S>
void store_full_gradient(const D& divergence, const Row<S>& row, const RowReader<S>& reader) {
  Tile<S>& tile = row.work.tile;
  const double weight = by_stored_logit(row.problem, row.problem.grad_soft[row.index]);
  constexpr bool kFromKept = kKept && kGradientFromKept<D, S>;
  int64_t start = 0;
  if constexpr (kFromKept) {
    // What is to be added to the gradient, or multiplies it, is made tile by tile.
    const bool is_whole = !row.has_label() && row.problem.student.softcap == 0.0;
    if (is_whole) start = store_gradient_of_kept(divergence, row, weight);
  }
  for (; start < reader.size; start += kTile) {
    const int64_t n = reader.size - start < kTile ? reader.size - start : kTile;
    if constexpr (kFromKept) {
      load_tile(row.problem.student, row.problem.temperature, row.index, start, n, tile.student);
    } else {
      reader.load(reader.source, start, n, tile);
    }
    divergence_gradient<kKept>(divergence, row.stats, weight, start, n, tile, row.work.kept);
    finish_tile(row, start, n, tile);
  }
}

/// The gradient of the cross entropy alone. Where the divergence has no weight, an infinite one has
/// no part in the gradient either.
template <class S>
void store_hard_gradient(const Row<S>& row) {
  const RowProblem& problem = row.problem;
  Tile<S>& tile = row.work.tile;
  for (int64_t start = 0; start < problem.vocab; start += kTile) {
    const int64_t n = problem.vocab - start < kTile ? problem.vocab - start : kTile;
    load_tile(problem.student, problem.temperature, row.index, start, n, tile.student);
    memset(tile.gradient, 0, sizeof tile.gradient);
    finish_tile(row, start, n, tile);
  }
}

template <class D, class S>
void dense_row(const D& divergence, Row<S>& row) {
  Tile<S>& tile = row.work.tile;
  // Exps are kept for the sweeps that follow in this call.
  const bool keep = row.problem.mode == Mode::kFused || !kHasOneSweep<D>;
  if (!keep) row.work.kept = {};
  const RowReader<S> reader{row.problem.vocab, &row, load_dense<S>};
  if (row.wants_values()) {
    write_values(row, measure(divergence, reader, row.problem, row.index, tile, row.stats,
                              row.work.kept));
    if (row.wants_metrics()) {
      row.problem.metrics[row.index] = sweep_dense_metrics(reader, row.stats, tile);
    }
  }
  if (!row.wants_soft_gradient()) return;
  if (row.work.kept.empty()) {
    store_full_gradient<false>(divergence, row, reader);
  } else {
    store_full_gradient<true>(divergence, row, reader);
  }
}

// ---- rows of a top-k teacher ------------------------------------------------------------------

/// The log-sum-exp of the student at T; fills the one at T = 1 if it is asked for. Where `take` is
/// set the listed tokens are moved to listed.x and are no part of the first.
template <class S>
double sweep_student(Row<S>& row, bool with_hard, bool take) {
  const Workspace<S>& work = row.work;
  StudentSweep<S> sweep{row.problem, row.index, work.tile, work.kept, take ? &work.listed : nullptr,
                        with_hard};
  sweep.run();
  if (with_hard) row.stats.hard_lse = sweep.hard.lse();
  return sweep.soft.lse();
}

template <class S>
void write_listed_metrics(const Row<S>& row) {
  row.problem.metrics[row.index] =
      sweep_listed_metrics(row.problem, row.index, row.work.listed, row.work.tile);
}

/// value_as_given for the row in hand.
template <class D, class S>
double as_given(const D& divergence, const Row<S>& row, double value) {
  const Listed<S>& listed = row.work.listed;
  double mass = 0.0;
  for (int64_t e = 0; e < listed.count; ++e) mass += exp(static_cast<double>(listed.log_p[e]));
  return value_as_given(row.problem, row.index, divergence.balance(), value, listed.count, mass);
}

/// kZero and kUniform: the teacher's tiles are made from the list.
template <class D, class S>
void made_row(const D& divergence, Row<S>& row) {
  const RowProblem& problem = row.problem;
  Listed<S>& listed = row.work.listed;
  listed.log_p_unlisted = unlisted_log_prob(problem, row.index, listed.count);
  const RowReader<S> reader{problem.vocab, &row, load_with_made_teacher<S>};
  if (row.wants_values()) {
    const bool own_hard = row.has_label() && problem.temperature != 1.0;
    row.stats.student_lse = sweep_student(row, own_hard, false);
    if (!own_hard) row.stats.hard_lse = row.stats.student_lse;
    const Sums<double> sums = sweep_sums<false>(divergence, reader, row.work.tile, row.stats);
    row.stats.slope = sums.slope;
    write_values(row, as_given(divergence, row, sums.value));
    if (row.wants_metrics()) {
      gather_listed(problem, row.index, listed);
      write_listed_metrics(row);
    }
  }
  if (row.wants_soft_gradient()) store_full_gradient<false>(divergence, row, reader);
}

/// Fills listed.x, and the tail as one more entry for kBucket; returns the size of the short row.
template <class S>
int64_t fill_short_row(Row<S>& row) {
  const RowProblem& problem = row.problem;
  Listed<S>& listed = row.work.listed;
  const bool bucket = problem.top_k.tail == Tail::kBucket;
  // The hard softmax is the soft one at T = 1 unless the short row leaves tokens out.
  const bool own_hard = row.has_label() && (problem.temperature != 1.0 || !bucket);
  if (row.wants_values() && (bucket || own_hard)) {
    row.stats.tail_lse = sweep_student(row, own_hard, true);
  } else {
    gather_listed(problem, row.index, listed);
  }
  if (!bucket || listed.count == problem.vocab) return listed.count;
  listed.x[listed.count] = static_cast<S>(row.stats.tail_lse);
  listed.log_p[listed.count] = static_cast<S>(problem.top_k.tail_log_prob[row.index]);
  return listed.count + 1;
}

/// The value over the short row; fills the statistics.
template <class D, class S>
double measure_short_row(const D& divergence, Row<S>& row, const RowReader<S>& reader) {
  Tile<S>& tile = row.work.tile;
  const Listed<S>& listed = row.work.listed;
  const bool bucket = row.problem.top_k.tail == Tail::kBucket;
  row.stats.student_lse = lse_of(listed.x, reader.size, tile.student);
  row.stats.teacher_lse = bucket ? 0.0 : lse_of(listed.log_p, reader.size, tile.teacher);
  if (bucket && row.problem.temperature == 1.0) row.stats.hard_lse = row.stats.student_lse;
  if (reader.size == 0) return 0.0;
  const Sums<double> sums = sweep_sums<false>(divergence, reader, tile, row.stats);
  row.stats.slope = sums.slope;
  return as_given(divergence, row, sums.value);
}

/// The gradient over the vocabulary from that over the short row: an unlisted token gets its share
/// exp(x - tail_lse) of the tail's, a listed one its own.
template <class S>
void spread_gradient(const Row<S>& row, bool has_tail, Tile<S>& tile) {
  using A = Arithmetic<S>;
  using V = typename A::Value;
  const RowProblem& problem = row.problem;
  const Listed<S>& listed = row.work.listed;
  const KeptExps<S>& kept = row.work.kept;
  constexpr double kNoShare = 1e30;  // every exp from it is zero, of any other it may overflow
  const Normalizer<V> share(has_tail ? level_of(row.stats.tail_lse) : kNoShare);
  const double tail_gradient = has_tail ? static_cast<double>(listed.gradient[listed.count]) : 0.0;
  const bool needs_logits = kept.empty() || row.has_label() || problem.student.softcap != 0.0;
  for (int64_t start = 0, j = 0; start < problem.vocab; start += kTile, ++j) {
    const int64_t n = problem.vocab - start < kTile ? problem.vocab - start : kTile;
    if (needs_logits) {
      load_tile(problem.student, problem.temperature, row.index, start, n, tile.student);
    }
    if (kept.empty()) {
      const V tail(tail_gradient);
      for_each_vector<S>(n, [&](int64_t i) {
        store(tile.gradient + i, tail * exp(share(A::load_from(tile.student + i))));
      });
    } else {
      const V tail(tail_gradient * kept.level[j].student);
      const auto of_kept = [&](int64_t i) { return tail * A::load_from(kept.student + start + i); };
      if (!needs_logits) {  // nothing is to be added
        store_row_elements<S>(problem, row.index, start, n, of_kept);
        listed.for_each_in(j, [&](int64_t e, int64_t i) {
          const auto own = [&](int64_t) { return V(static_cast<double>(listed.gradient[e])); };
          store_row_elements<S>(problem, row.index, start + i, 1, own);
        });
        continue;
      }
      for_each_vector<S>(n, [&](int64_t i) { store(tile.gradient + i, of_kept(i)); });
    }
    listed.for_each_in(j, [&](int64_t e, int64_t i) { tile.gradient[i] = listed.gradient[e]; });
    finish_tile(row, start, n, tile);
  }
}

/// kBucket and kRenormalize: the divergence over the short row.
template <class D, class S>
void short_row(const D& divergence, Row<S>& row) {
  Tile<S>& tile = row.work.tile;
  const Listed<S>& listed = row.work.listed;
  const RowReader<S> reader{fill_short_row(row), &listed, load_listed<S>};
  if (row.wants_values()) {
    write_values(row, measure_short_row(divergence, row, reader));
    if (row.wants_metrics()) write_listed_metrics(row);
  }
  if (!row.wants_soft_gradient()) return;
  const double weight = by_stored_logit(row.problem, row.problem.grad_soft[row.index]);
  reader.for_each_tile(tile, [&](int64_t start, int64_t n, TilePair) {
    divergence_gradient<false>(divergence, row.stats, weight, start, n, tile);
    memcpy(listed.gradient + start, tile.gradient, n * sizeof(S));
  });
  spread_gradient(row, reader.size > listed.count, tile);
}

// ---- the entry --------------------------------------------------------------------------------

template <class S>
void skip_row(const Row<S>& row) {
  const RowProblem& problem = row.problem;
  if (row.wants_values()) {
    problem.soft[row.index] = 0.0;
    if (row.has_label()) problem.hard[row.index] = 0.0;
    if (problem.stats != nullptr) problem.stats[row.index] = RowStats{};
    if (row.wants_metrics()) problem.metrics[row.index] = RowMetrics{};
  }
  if (row.wants_gradient()) zero_gradient(problem, row.index, 0);
}

template <class D, class S>
void row_kernel(const RowProblem& problem, int64_t index, void* scratch) {
  Row<S> row{problem, index, Workspace<S>(problem, scratch)};
  if (problem.counted != nullptr && !problem.counted[index]) return skip_row(row);
  const D divergence(problem.parameters);
  if (!row.wants_values()) row.stats = problem.stats[index];
  if (problem.top_k.k == 0) {
    dense_row(divergence, row);
  } else {
    collect_listed(problem, index, row.work.listed);
    const Tail tail = problem.top_k.tail;
    if (tail == Tail::kBucket || tail == Tail::kRenormalize) {
      short_row(divergence, row);
    } else {
      made_row(divergence, row);
    }
  }
  if (row.wants_gradient()) {
    if (!row.wants_soft_gradient()) store_hard_gradient(row);
    zero_gradient(problem, index, problem.vocab);
  }
}

}  // namespace
}  // namespace fastdistill
