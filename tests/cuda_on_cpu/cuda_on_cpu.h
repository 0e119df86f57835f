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

struct Block {
  unsigned index = 0;
  int rank = 0;
  int running = 0;
  Meeting meeting;
  std::vector<Warp> warps;
  std::vector<char> shared;
};

struct Thread {
  Block* block = nullptr;
  unsigned index = 0;
  uint64_t priority = 0;
  std::vector<char> stack;
  jmp_buf here;
  bool started = false;
};

enum class Schedule { kByThread, kByBlock, kAnew, kCount };

/// The cluster that is running.
struct Machine {
  std::vector<Block> blocks;
  std::vector<Thread> threads;
  size_t running = 0;
  Meeting cluster;
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
  machine.running = machine.cluster.members = machine.threads.size();
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

// ---- what the kernels call
// ------------------------------------------------------------------------

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

namespace fastdistill {

inline char* shared_memory() { return on_cpu::this_block().shared.data(); }
inline int cluster_rank() { return on_cpu::this_block().rank; }
inline int cluster_size() { return static_cast<int>(on_cpu::machine.blocks.size()); }
inline void cluster_sync() { on_cpu::meet(on_cpu::machine.cluster); }
template <class T>
const T* shared_of(int rank, const T* mine) {
  const auto offset = reinterpret_cast<const char*>(mine) - shared_memory();
  const std::vector<char>& other = on_cpu::machine.blocks[static_cast<size_t>(rank)].shared;
  return reinterpret_cast<const T*>(other.data() + offset);
}

inline float widen_half(uint16_t bits) { return static_cast<float>(from_half(bits)); }
inline uint16_t narrow_half(float x) { return to_half(static_cast<double>(x)); }

}  // namespace fastdistill
