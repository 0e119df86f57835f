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
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#endif

#define FD_DEVICE __device__ __forceinline__

namespace fastdistill {

inline constexpr int kWarp = 32;
inline constexpr int kMostThreads = 512;  // of a block
inline constexpr int kLeastBlocks = 1;    // of a multiprocessor: room for two would cost spills
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
/// A barrier of all threads of the cluster, behind which all see what each has written.
FD_DEVICE void cluster_sync() {
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}
/// The same place in the shared memory of another block of the cluster.
template <class T>
FD_DEVICE const T* shared_of(int rank, const T* mine) {
  uint64_t address;
  asm("mapa.u64 %0, %1, %2;" : "=l"(address) : "l"(mine), "r"(rank));
  return reinterpret_cast<const T*>(address);
}
#else
FD_DEVICE int cluster_rank() { return 0; }
FD_DEVICE int cluster_size() { return 1; }
FD_DEVICE void cluster_sync() { __syncthreads(); }
template <class T>
FD_DEVICE const T* shared_of(int, const T* mine) {
  return mine;
}
#endif

FD_DEVICE float widen_half(uint16_t bits) { return __half2float(__ushort_as_half(bits)); }
FD_DEVICE uint16_t narrow_half(float x) { return __half_as_ushort(__float2half_rn(x)); }

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
  FD_DEVICE int64_t index() const { return static_cast<int64_t>(rank) * threads + thread; }
  FD_DEVICE int64_t size() const { return static_cast<int64_t>(ranks) * threads; }
  FD_DEVICE bool leads() const { return rank == 0 && thread == 0; }
};

}  // namespace fastdistill
