// What a row kernel needs of the machine: the threads that share a row, their memory and barriers.
//
// A row belongs to a cluster of blocks, below compute capability 9.0 to a single block. On a CPU
// (tests/cuda_on_cpu) the same names are given by a header that runs every thread as a coroutine.
#pragma once

#include <cstdint>

#include "../scalar_math.h"

#if defined(FD_CUDA_ON_CPU)
#include "cuda_on_cpu.h"
#else
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#define FD_DEVICE __device__ __forceinline__
/// Registers for so many blocks of a multiprocessor: those of plain rows do with less.
#define FD_LAUNCH_BOUNDS(Format) __launch_bounds__(kMostThreads, Format::kIsPlain ? 3 : 2)
#if defined(__CUDACC__)
#define FD_UNROLL _Pragma("unroll")
#else
#define FD_UNROLL
#endif

namespace fastdistill {

inline constexpr int kWarp = 32;
inline constexpr int kMostThreads = 256;  // of a block
inline constexpr unsigned kAllLanes = 0xffffffffu;

#if !defined(FD_CUDA_ON_CPU)

FD_DEVICE char* shared_memory() {
  extern __shared__ __align__(16) char memory[];
  return memory;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
FD_DEVICE int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
FD_DEVICE int cluster_size() {
  int size;
  asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
  return size;
}
/// A barrier of all threads of the cluster, in halves: between them a thread does what need not
/// wait for the others. They see what a thread did before if it has called cluster_fence() since.
FD_DEVICE void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
FD_DEVICE void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}
FD_DEVICE void cluster_fence() { asm volatile("fence.acq_rel.cluster;" ::: "memory"); }
/// The same place in the shared memory of another block of the cluster.
template <class T>
FD_DEVICE const T* shared_of(int rank, const T* mine) {
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(mine), "r"(rank));
  return reinterpret_cast<const T*>(address);
}

/// Tells when copies into shared memory have arrived. One thread prepares it, and counts and starts
/// the copies; after a barrier of the block any thread may wait.
struct Arrival {
  uint64_t state;

  FD_DEVICE void prepare() {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(address(&state)) : "memory");
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  FD_DEVICE void expect(unsigned bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(address(&state)),
                 "r"(bytes)
                 : "memory");
  }
  /// Both addresses and the size are multiples of 16 bytes.
  FD_DEVICE void copy(char* to, const char* from, unsigned bytes) {
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
            "r"(address(to)),
        "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(address(&state))
        : "memory");
  }
  FD_DEVICE void wait() const {
    asm volatile(
        "{\n"
        ".reg .pred arrived;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 arrived, [%0], 0;\n"
        "@!arrived bra again;\n"
        "}" ::"r"(address(&state))
        : "memory");
  }

 private:
  static FD_DEVICE unsigned address(const void* shared) {
    return static_cast<unsigned>(__cvta_generic_to_shared(shared));
  }
};
#else
FD_DEVICE int cluster_rank() { return 0; }
FD_DEVICE int cluster_size() { return 1; }
FD_DEVICE void cluster_arrive() { __syncthreads(); }
FD_DEVICE void cluster_wait() {}
FD_DEVICE void cluster_fence() {}
template <class T>
FD_DEVICE const T* shared_of(int, const T* mine) {
  return mine;
}
/// There are no such copies: the host keeps no row in shared memory.
struct Arrival {
  uint64_t state;
  FD_DEVICE void prepare() {}
  FD_DEVICE void expect(unsigned) {}
  FD_DEVICE void copy(char*, const char*, unsigned) {}
  FD_DEVICE void wait() const {}
};
#endif

FD_DEVICE float widen_half(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
FD_DEVICE uint32_t narrow_halves(float low, float high) {
  const __half2 pair = __floats2half2_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}
/// To nearest even; a NaN stays one.
FD_DEVICE uint32_t narrow_bfloats(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  uint32_t bits;
  memcpy(&bits, &pair, sizeof bits);
  return bits;
}

FD_DEVICE float exp2(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}
FD_CALL double exp2(double x) { return ::exp2(x); }
FD_DEVICE float fused(float a, float b, float c) { return ::fmaf(a, b, c); }
FD_DEVICE double fused(double a, double b, double c) { return ::fma(a, b, c); }
/// The larger one; of a NaN and a number the number.
FD_DEVICE float largest(float a, float b) { return ::fmaxf(a, b); }
FD_DEVICE double largest(double a, double b) { return ::fmax(a, b); }

#endif

/// 16 bytes, moved in one access.
struct alignas(16) Packet {
  uint32_t words[4];
};

/// The threads that share a row.
struct Team {
  int thread = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  int rank = cluster_rank(), ranks = cluster_size();

  FD_DEVICE int64_t row() const { return static_cast<int64_t>(blockIdx.x) / ranks; }
  FD_DEVICE int index() const { return rank * threads + thread; }
  FD_DEVICE int size() const { return ranks * threads; }
  FD_DEVICE bool leads() const { return rank == 0 && thread == 0; }
};

}  // namespace fastdistill
