// The table of one instruction set. A file defines FD_ISA and includes this, nothing else.
#include "isa.h"
#include "row_kernels.h"

namespace fastdistill {
namespace {

void evaluate(Elementary function, const float* in, float* out, int64_t n) {
  const auto map = [&](auto f) { map_elements<float>(in, n, out, f); };
  switch (function) {
    case Elementary::kExp:
      return map([](Vec x) { return exp(x); });
    case Elementary::kLog:
      return map([](Vec x) { return log(x); });
    case Elementary::kTanh:
      return map([](Vec x) { return tanh(x); });
  }
}

#define FD_KERNEL_FLOAT(D) row_kernel<D, float>,
#define FD_KERNEL_DOUBLE(D) row_kernel<D, double>,
constexpr RowKernel kFloatKernels[] = {FASTDISTILL_DIVERGENCES(FD_KERNEL_FLOAT)};
constexpr RowKernel kDoubleKernels[] = {FASTDISTILL_DIVERGENCES(FD_KERNEL_DOUBLE)};

}  // namespace

#define FD_STRINGIFY(name) #name
#define FD_TABLE_NAME(isa) FD_STRINGIFY(isa)
#define FD_CONCATENATE(a, b) a##b
#define FD_TABLE_SYMBOL(isa) FD_CONCATENATE(isa, _table)

extern const KernelTable FD_TABLE_SYMBOL(FD_ISA);
const KernelTable FD_TABLE_SYMBOL(FD_ISA) = {FD_TABLE_NAME(FD_ISA), kFloatKernels, kDoubleKernels,
                                             scratch_bytes, evaluate};

}  // namespace fastdistill
