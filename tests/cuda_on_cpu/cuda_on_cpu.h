// The execution model of CUDA on a CPU, for the kernels of csrc/cuda: every thread of every block
// is a coroutine with a stack of its own, and all of a cluster run in one operating-system thread.
//
// A coroutine runs until it waits: at a barrier of its block or cluster, or in an exchange with its
// warp. Of those that can go on the one with the highest priority does. Priorities are drawn at
// random, by thread, by block, or anew at every barrier: in some schedule a thread that reads what
// no barrier lets it rely on finds that it is not there yet, or no longer. Shared memory starts
// out, and ends when the last thread of its block ends, as NaN. A barrier that some thread never
// reaches ends the program.
//
// What is not modelled: the memory order between two barriers (stores are seen at once), the time.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <map>
#include <queue>
#include <random>
#include <utility>
#include <vector>

#include "../native/half.h"

#define __global__
#define __device__
#define __launch_bounds__(threads, blocks)
#define __forceinline__ inline __attribute__((always_inline))

namespace fastdistill::on_cpu {

inline constexpr int kWarpSize = 32;
inline constexpr size_t kStackBytes = 128 << 10;

struct Index {
  unsigned x;
};

struct Thread;

/// A place where a group of threads meets. The last one to arrive lets all go on.
struct Meeting {
  size_t members = 0;
  std::vector<Thread*> waiting;
};

struct Warp {
  Meeting meeting;
  uint64_t exchanged[kWarpSize];
};

/// Copies that have not arrived, and who waits for them to be counted.
struct Copy {
  char* to;
  const char* from;
  size_t bytes;
};
struct UnderWay {
  std::vector<Copy> copies;
  std::vector<Thread*> waiting;
};

struct Block {
  unsigned index = 0;
  int rank = 0;
  int running = 0;
  Meeting meeting;
  std::vector<Warp> warps;
  std::vector<char> shared;
  std::map<const void*, UnderWay> under_way;  // by what tells of their arrival
};

struct Thread {
  Block* block = nullptr;
  unsigned index = 0;
  uint64_t priority = 0;
  std::vector<char> stack;
  jmp_buf here;
  bool started = false;
  size_t phase = 0;  // of the cluster's barrier, in which it arrived last
};

enum class Schedule { kByThread, kByBlock, kAnew, kCount };

/// The cluster that is running.
struct Machine {
  std::vector<Block> blocks;
  std::vector<Thread> threads;
  size_t running = 0;
  Meeting cluster;
  size_t phase = 0, arrived = 0;  // of the cluster's barrier
  std::function<void()> kernel;
  Thread* current = nullptr;
  jmp_buf scheduler;
  Schedule schedule = Schedule::kAnew;
  std::mt19937_64 random;
  std::priority_queue<std::pair<uint64_t, Thread*>> ready;

  void make_ready(Thread* thread) {
    if (schedule == Schedule::kAnew) thread->priority = random();
    ready.emplace(thread->priority, thread);
  }
};
inline Machine machine;

inline void trash(std::vector<char>& memory) { std::memset(memory.data(), 0xff, memory.size()); }

inline void leave() {
  if (_setjmp(machine.current->here) == 0) _longjmp(machine.scheduler, 1);
}

inline void meet(Meeting& meeting) {
  meeting.waiting.push_back(machine.current);
  if (meeting.waiting.size() == meeting.members) {
    for (Thread* thread : meeting.waiting) machine.make_ready(thread);
    meeting.waiting.clear();
  }
  leave();
}

/// The first half of the cluster's barrier; the last one to arrive lets all that wait go on.
inline void arrive_in_cluster() {
  machine.current->phase = machine.phase;
  if (++machine.arrived < machine.threads.size()) return;
  machine.arrived = 0;
  ++machine.phase;
  for (Thread* thread : machine.cluster.waiting) machine.make_ready(thread);
  machine.cluster.waiting.clear();
}
inline void wait_for_cluster() {
  Thread* thread = machine.current;
  if (machine.phase == thread->phase) {
    machine.cluster.waiting.push_back(thread);
  } else {
    machine.make_ready(thread);
  }
  leave();
}

/// The body of a coroutine; it never returns.
inline void run_thread() {
  Block& block = *machine.current->block;
  machine.kernel();
  --machine.running;
  if (--block.running == 0) trash(block.shared);
  _longjmp(machine.scheduler, 1);
}

struct Launch {
  int blocks, cluster, threads;
  size_t shared_bytes;
  uint64_t seed;
};

}  // namespace fastdistill::on_cpu

inline fastdistill::on_cpu::Index threadIdx, blockIdx, blockDim;

namespace fastdistill::on_cpu {

inline void resume(Thread& thread) {
  machine.current = &thread;
  threadIdx.x = thread.index;
  blockIdx.x = thread.block->index;
  if (_setjmp(machine.scheduler) != 0) return;
  if (thread.started) _longjmp(thread.here, 1);
  thread.started = true;
  ucontext_t context;
  getcontext(&context);
  context.uc_stack.ss_sp = thread.stack.data();
  context.uc_stack.ss_size = thread.stack.size();
  context.uc_link = nullptr;
  makecontext(&context, run_thread, 0);
  setcontext(&context);
}

inline void set_up(const Launch& launch, unsigned first_block) {
  const int warps = (launch.threads + kWarpSize - 1) / kWarpSize;
  const bool by_block = machine.schedule == Schedule::kByBlock;
  machine.blocks.assign(static_cast<size_t>(launch.cluster), Block());
  machine.threads.resize(static_cast<size_t>(launch.cluster * launch.threads));
  machine.running = machine.threads.size();
  machine.phase = machine.arrived = 0;
  size_t next = 0;
  for (int rank = 0; rank < launch.cluster; ++rank) {
    Block& block = machine.blocks[static_cast<size_t>(rank)];
    block.index = first_block + static_cast<unsigned>(rank);
    block.rank = rank;
    block.running = launch.threads;
    block.meeting.members = static_cast<size_t>(launch.threads);
    block.warps.resize(static_cast<size_t>(warps));
    block.shared.resize(launch.shared_bytes);
    trash(block.shared);
    const uint64_t block_priority = machine.random();
    for (int i = 0; i < launch.threads; ++i) {
      Thread& thread = machine.threads[next++];
      thread.block = &block;
      thread.index = static_cast<unsigned>(i);
      thread.stack.resize(kStackBytes);
      thread.started = false;
      thread.priority = by_block ? block_priority : machine.random();
      machine.make_ready(&thread);
      ++block.warps[static_cast<size_t>(i / kWarpSize)].meeting.members;
    }
  }
}

inline void run_cluster() {
  while (!machine.ready.empty()) {
    Thread* thread = machine.ready.top().second;
    machine.ready.pop();
    resume(*thread);
  }
  if (machine.running == 0) return;
  std::fprintf(stderr, "a barrier is not reached by all of its threads\n");
  std::abort();
}

/// Runs `kernel` as a launch would; the clusters one after the other.
inline void run_kernel(const Launch& launch, std::function<void()> kernel) {
  machine.random.seed(launch.seed);
  machine.schedule = static_cast<Schedule>(launch.seed % static_cast<uint64_t>(Schedule::kCount));
  machine.kernel = std::move(kernel);
  blockDim.x = static_cast<unsigned>(launch.threads);
  for (int block = 0; block < launch.blocks; block += launch.cluster) {
    set_up(launch, static_cast<unsigned>(block));
    run_cluster();
  }
}

inline Block& this_block() { return *machine.current->block; }

}  // namespace fastdistill::on_cpu

// ---- what the kernels call ---------------------------------------------------------------------

inline void __syncthreads() {
  using namespace fastdistill::on_cpu;
  meet(this_block().meeting);
}

template <class T>
T __shfl_xor_sync(unsigned lanes, T value, int mask) {
  using namespace fastdistill::on_cpu;
  static_assert(sizeof(T) <= sizeof(uint64_t), "a lane exchanges at most 8 bytes");
  if (lanes != 0xffffffffu) std::abort();
  const unsigned thread = machine.current->index, lane = thread % kWarpSize;
  Warp& warp = this_block().warps[thread / kWarpSize];
  std::memcpy(&warp.exchanged[lane], &value, sizeof value);
  meet(warp.meeting);
  std::memcpy(&value, &warp.exchanged[lane ^ static_cast<unsigned>(mask)], sizeof value);
  meet(warp.meeting);
  return value;
}

inline unsigned atomicOr(unsigned* place, unsigned bits) {
  const unsigned before = *place;
  *place |= bits;
  return before;
}

namespace fastdistill {

/// A copy arrives at the first wait for it, and not before; one that is not counted ends the
/// program. Who waits before the copies are counted goes on when they are.
struct Arrival {
  size_t expected, is_counted;

  void prepare() { expected = is_counted = 0; }
  void expect(unsigned bytes) {
    expected = bytes;
    is_counted = 1;
    for (on_cpu::Thread* thread : under_way().waiting) on_cpu::machine.make_ready(thread);
    under_way().waiting.clear();
  }
  void copy(char* to, const char* from, unsigned bytes) {
    const auto misaligned = reinterpret_cast<uintptr_t>(to) | reinterpret_cast<uintptr_t>(from);
    if ((misaligned | bytes) % 16 != 0 || bytes == 0) std::abort();
    under_way().copies.push_back({to, from, bytes});
  }
  void wait() const {
    if (is_counted == 0) {
      under_way().waiting.push_back(on_cpu::machine.current);
      on_cpu::leave();
    }
    size_t arrived = 0;
    for (const on_cpu::Copy& copy : under_way().copies) {
      std::memcpy(copy.to, copy.from, copy.bytes);
      arrived += copy.bytes;
    }
    under_way().copies.clear();
    if (arrived != 0 && arrived != expected) std::abort();
  }

 private:
  on_cpu::UnderWay& under_way() const { return on_cpu::this_block().under_way[this]; }
};

inline char* shared_memory() { return on_cpu::this_block().shared.data(); }
inline int cluster_rank() { return on_cpu::this_block().rank; }
inline int cluster_size() { return static_cast<int>(on_cpu::machine.blocks.size()); }
inline void cluster_arrive() { on_cpu::arrive_in_cluster(); }
inline void cluster_wait() { on_cpu::wait_for_cluster(); }
inline void cluster_fence() {}
template <class T>
const T* shared_of(int rank, const T* mine) {
  const auto offset = reinterpret_cast<const char*>(mine) - shared_memory();
  const std::vector<char>& other = on_cpu::machine.blocks[static_cast<size_t>(rank)].shared;
  return reinterpret_cast<const T*>(other.data() + offset);
}

inline float widen_half(uint16_t bits) { return static_cast<float>(from_half(bits)); }
inline uint32_t narrow_halves(float low, float high) {
  return to_half(static_cast<double>(low)) |
         static_cast<uint32_t>(to_half(static_cast<double>(high))) << 16;
}
inline uint32_t narrow_bfloat(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return (x == x ? bits + 0x7fffu + ((bits >> 16) & 1u) : 0x7fc00000u) >> 16;
}
inline uint32_t narrow_bfloats(float low, float high) {
  return narrow_bfloat(low) | narrow_bfloat(high) << 16;
}

inline float exp2(float x) { return __builtin_exp2f(x); }
inline double exp2(double x) { return __builtin_exp2(x); }
inline float fused(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
inline double fused(double a, double b, double c) { return __builtin_fma(a, b, c); }
inline float largest(float a, float b) { return __builtin_fmaxf(a, b); }
inline double largest(double a, double b) { return __builtin_fmax(a, b); }

}  // namespace fastdistill
