// The seam between Python and the kernels: one call, described by pointers, sizes and options.
#pragma once

#include <cstdint>

namespace fastdistill {

enum class DType : int { kFloat32, kBFloat16, kFloat16, kFloat64 };

/// (rows, vocab) logits in memory. What the loss sees of a stored z is softcap(scale z) / T with
/// softcap(x) = c tanh(x / c); c = 0 means none.
struct Logits {
  void* data = nullptr;
  int64_t row_stride = 0;  // elements; 0 repeats one row
  DType dtype = DType::kFloat32;
  double scale = 1.0;
  double softcap = 0.0;
};

/// What is known of the teacher outside the listed ids.
///  kBucket       all unlisted tokens are one category, for the teacher and for the student
///  kRenormalize  both are conditioned on the listed ids
///  kZero         every unlisted token has teacher probability 0
///  kUniform      every unlisted token has the same share of the tail mass
enum class Tail : int { kBucket, kRenormalize, kZero, kUniform };

/// (rows, k) ids and log-probabilities; slots with id -1 or log-probability -inf are empty. The ids
/// of a row are distinct but for -1, also those of other empty slots.
struct TopK {
  const int64_t* ids = nullptr;
  const void* log_p = nullptr;  // float, or double where the student is float64
  int64_t ids_stride = 0, log_p_stride = 0;
  int64_t k = 0;  // 0: the teacher is dense
  Tail tail = Tail::kBucket;
  bool sums_to_one = true;                // listed and tail mass together, but for rounding
  const double* tail_log_prob = nullptr;  // (rows,) log of the unlisted mass
};

/// What the backward needs of a row: everything that needed a sweep.
struct RowStats {
  double student_lse;  // at temperature T, over the row that the divergence runs over
  double teacher_lse;  // likewise; 0 where the teacher comes as log-probabilities
  double slope;        // R of divergence.h
  double log_sum;      // of divergences that are the logarithm of a sum
  double tail_lse;     // kBucket: of the student's unlisted tokens, whose gradient is made of it
  double hard_lse;     // of the student at T = 1, where labels are given
};
inline constexpr int kRowStats = sizeof(RowStats) / sizeof(double);

/// What is reported of a row beside its loss, at the temperature of the loss.
struct RowMetrics {
  double forward_kl, reverse_kl;           // dense teachers, as the next three
  double acceptance_rate, top1_agreement;  // sum min(p, q); 1 where the argmax is the same
  double teacher_entropy;
  double student_entropy;             // over the whole vocabulary
  double teacher_mass, student_mass;  // top-k teachers: of the listed ids
};
inline constexpr int kRowMetrics = sizeof(RowMetrics) / sizeof(double);

enum class Mode : int { kForward, kBackward, kFused };

struct RowProblem {
  Mode mode = Mode::kForward;
  int64_t rows = 0, vocab = 0;
  Logits student, teacher;
  TopK top_k;
  double temperature = 1.0;
  const int64_t* labels = nullptr;  // (rows,) cross entropy at T = 1 is computed where given
  const bool* counted = nullptr;    // (rows,) false: value 0, gradient 0, inputs never read

  // Forward and fused: values in nats, unweighted.
  double* soft = nullptr;  // (rows,) the divergence
  double* hard = nullptr;  // (rows,) the cross entropy
  // Written with the values unless null, read by the backward.
  RowStats* stats = nullptr;  // (rows,)
  // Written with the values unless null, at the cost of one more sweep.
  RowMetrics* metrics = nullptr;  // (rows,)
  // Backward and fused: d loss / d soft and d loss / d hard of each row, and where the gradient by
  // the stored logits goes. It may be the student's own memory.
  const double* grad_soft = nullptr;
  const double* grad_hard = nullptr;
  Logits gradient;  // columns [vocab, gradient_width) are zeroed
  int64_t gradient_width = 0;

  const double* parameters = nullptr;  // of the divergence
};

/// Handles one row. One per divergence and arithmetic type. `scratch` is this thread's own, 64-byte
/// aligned.
using RowKernel = void (*)(const RowProblem& problem, int64_t row, void* scratch);

}  // namespace fastdistill
