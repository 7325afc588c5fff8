// SPDX-License-Identifier: Apache-2.0
// Runs CUDA launches on the CPU; emulation.h says what is checked. One launch runs at a time.
#include "emulation.h"

#include <setjmp.h>
#include <ucontext.h>

#include <array>
#include <cstdlib>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#endif

// The linker's names for the ends of the memory that is 0 at the start. The shared memory of kernels is in it.
extern char __bss_start[] __attribute__((visibility("hidden")));
extern char _end[] __attribute__((visibility("hidden")));

namespace emulation {

Position position{{}, {}, {1}, {1}};  // not 0, so that it does not count as shared memory

namespace {

constexpr unsigned kMostThreads = 1024;  // in a block
constexpr size_t kStack = 256 << 10;

// A stack, and the place where its code was left.
struct Fiber {
  ucontext_t begin;
  jmp_buf left;
  bool has_begun = false;
  std::unique_ptr<char[]> memory;
  const void* stack = nullptr;
  size_t size = 0;
  void* of_sanitizer = nullptr;
};

struct Thread {
  uint3 index;
  Fiber* fiber = nullptr;
  bool waits = false, ended = false;
  Call call;
  uint64_t mask, value, values[kWarp];
};

// The last write of a byte: which thread wrote it, and how many barriers its block and its warp had passed.
struct Write {
  uint64_t written : 1, atomic : 1, thread : 10, block : 52;
  uint32_t barriers, warp_barriers;
};

std::string error, fetched_error;

const std::function<void()>* kernel;
std::vector<Thread> threads;  // of the block that runs
std::vector<unsigned> order;  // of these threads
std::vector<unsigned> lanes[kMostThreads / kWarp];  // of each warp, in this order
unsigned started;
uint64_t block;
uint32_t barriers, warp_barriers[kMostThreads / kWarp];
Thread* running;  // null in host code

Fiber scheduler;  // on the stack of the operator's caller
std::vector<std::unique_ptr<Fiber>> fibers;
std::vector<Fiber*> idle;

constexpr size_t kPage = 1024;
using Page = std::array<Write, kPage>;
std::unordered_map<uintptr_t, Page> pages;  // writes of this launch

void fail(const std::string& what) {
  if (error.empty()) error = "CUDA emulation: " + what;
}

unsigned number(const Thread& thread) { return &thread - threads.data(); }

std::string name(unsigned thread, uint64_t block) {
  return "thread " + std::to_string(thread) + " of block " + std::to_string(block);
}

std::string name(const Call& call) {
  const std::string file = call.file;
  return std::string(call.function) + " (" + file.substr(file.rfind('/') + 1) + ":" + std::to_string(call.line) + ")";
}

// Fibers

// _longjmp() is faster than swapcontext(), which calls the operating system.
void switch_fiber(Fiber& from, Fiber& to) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&from.of_sanitizer, to.stack, to.size);
#endif
  if (_setjmp(from.left) == 0) {
    if (to.has_begun) _longjmp(to.left, 1);
    to.has_begun = true;
    setcontext(&to.begin);
  }
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(from.of_sanitizer, nullptr, nullptr);
#endif
}

// Runs threads of the block one after the other. If one of them waits, another fiber runs those that have not started.
void work() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &scheduler.stack, &scheduler.size);
#endif
  Fiber& self = *idle.back();
  for (;;) {
    idle.pop_back();
    while (started < threads.size()) {
      running = &threads[order[started++]];
      running->fiber = &self;
      position.thread = running->index;
      (*kernel)();
      running->ended = true;
    }
    idle.push_back(&self);
    switch_fiber(self, scheduler);
  }
}

void add_fiber() {
  fibers.push_back(std::make_unique<Fiber>());
  Fiber& fiber = *fibers.back();
  fiber.memory.reset(new char[kStack]);
  fiber.stack = fiber.memory.get();
  fiber.size = kStack;
  getcontext(&fiber.begin);
  fiber.begin.uc_stack.ss_sp = fiber.memory.get();
  fiber.begin.uc_stack.ss_size = kStack;
  makecontext(&fiber.begin, work, 0);
  idle.push_back(&fiber);
}

// Meetings of threads

bool is_invited(const Thread& thread, const Thread& by) {
  if (by.mask == kWholeBlock) return !thread.ended;
  return number(thread) / kWarp == number(by) / kWarp && (by.mask >> number(thread) % kWarp & 1);
}

bool is_at(const Thread& thread, const Thread& other) {
  return thread.waits && thread.mask == other.mask && thread.call.line == other.call.line &&
         thread.call.function == other.call.function;
}

// Lets the threads that meet at this one's call go on, if all of them are there.
bool release(const Thread& first) {
  if (!is_invited(first, first)) return false;
  const bool whole_block = first.mask == kWholeBlock;
  static std::vector<Thread*> group;
  group.clear();
  for (unsigned index : whole_block ? order : lanes[number(first) / kWarp])
    if (is_invited(threads[index], first)) group.push_back(&threads[index]);
  if (!whole_block && static_cast<int>(group.size()) != __popc(first.mask)) return false;
  for (const Thread* thread : group)
    if (!is_at(*thread, first)) return false;
  if (whole_block) ++barriers;
  // Other warp-level functions do not order accesses to memory. Lanes outside of the mask are taken to be ordered too.
  if (first.call.function == std::string("__syncwarp")) ++warp_barriers[number(first) / kWarp];

  uint64_t values[kWarp];
  std::fill(values, values + kWarp, ~uint64_t{0});
  for (const Thread* thread : group) values[number(*thread) % kWarp] = thread->value;
  for (Thread* thread : group) {
    thread->waits = false;
    std::copy(values, values + kWarp, thread->values);
  }
  for (Thread* thread : group) {
    running = thread;
    position.thread = thread->index;
    switch_fiber(scheduler, *thread->fiber);
  }
  return true;
}

std::string why_stuck(const Thread& at) {
  const std::string waits = name(number(at), block) + " waits at " + name(at.call) + ", but ";
  if (!is_invited(at, at)) return waits + "its mask does not name its lane";
  const unsigned first = number(at) / kWarp * kWarp;
  for (unsigned lane = 0; at.mask != kWholeBlock && lane < kWarp; ++lane)
    if ((at.mask >> lane & 1) && (first + lane >= threads.size() || threads[first + lane].ended))
      return waits + "lane " + std::to_string(lane) + " of its mask has ended or does not exist";
  for (const Thread& thread : threads)
    if (is_invited(thread, at) && !is_at(thread, at))
      return waits + name(number(thread), block) + " waits at " + name(thread.call);
  return waits + "nothing lets it go on";
}

void run_block() {
  started = barriers = 0;
  std::fill(std::begin(warp_barriers), std::end(warp_barriers), 0);
  for (Thread& thread : threads) thread.waits = thread.ended = false;
  while (started < threads.size()) {
    if (idle.empty()) add_fiber();
    switch_fiber(scheduler, *idle.back());
  }
  for (bool progress = true; progress;) {
    progress = false;
    for (unsigned index : order)
      if (threads[index].waits && release(threads[index])) progress = true;
  }
  running = nullptr;
  for (const Thread& thread : threads) {
    if (!thread.waits) continue;
    fail(why_stuck(thread));
    fibers.clear();  // some of them wait for ever
    idle.clear();
    return;
  }
}

// Accesses to memory

Page* page_of(uintptr_t byte, bool create) {
  if (create) return &pages[byte / kPage];
  const auto found = pages.find(byte / kPage);
  return found == pages.end() ? nullptr : &found->second;
}

// Whether the thread that runs comes after this write of its block, because of a barrier or because it wrote it.
bool comes_after(const Write& write, unsigned me) {
  if (write.thread == me || write.barriers < barriers) return true;
  return write.thread / kWarp == me / kWarp && write.warp_barriers < warp_barriers[me / kWarp];
}

void access(const void* at, size_t size, bool writes, bool atomic = false) {
  const uintptr_t begin = reinterpret_cast<uintptr_t>(at), end = begin + size;
  if (!running || !error.empty() || begin - reinterpret_cast<uintptr_t>(running->fiber->stack) < kStack) return;
  const bool shared = at >= static_cast<void*>(__bss_start) && at < static_cast<void*>(_end);
  const unsigned me = number(*running);
  Page* page = nullptr;
  for (uintptr_t byte = begin; byte < end; ++byte) {
    if (byte == begin || byte % kPage == 0) page = page_of(byte, writes || shared);
    if (!page) continue;  // nothing was written there
    Write& last = (*page)[byte % kPage];
    const bool in_block = last.block == block;
    const bool written = last.written && (in_block || !shared);  // each block has its own shared memory
    if (shared && !writes && !written) fail(name(me, block) + " reads shared memory that nothing has written");
    if (written && !(in_block && comes_after(last, me)) && !(atomic && last.atomic))
      fail("race: " + name(me, block) + (writes ? " writes" : " reads") + " what " + name(last.thread, last.block) +
           " writes");
    if (writes) last = {1, atomic, me, block, barriers, warp_barriers[me / kWarp]};
  }
}

// Launches

bool is_allowed(const Launch& launch) {
  const auto& [grid, block, dynamic_shared_memory, stream] = launch;
  for (unsigned size : {grid.x, grid.y, grid.z, block.x, block.y, block.z})
    if (size == 0) return false;
  return grid.x < 1u << 31 && grid.y < 1 << 16 && grid.z < 1 << 16 && block.x <= kMostThreads &&
         block.y <= kMostThreads && block.z <= 64 && uint64_t{block.x} * block.y * block.z <= kMostThreads &&
         dynamic_shared_memory == 0;  // of which the emulation has none
}

uint3 place(uint64_t index, const dim3& in) {
  return {unsigned(index % in.x), unsigned(index / in.x % in.y), unsigned(index / in.x / in.y)};
}

template <typename T>
std::vector<T> all_in_order(size_t count) {
  std::vector<T> indices(count);
  std::iota(indices.begin(), indices.end(), T{0});
  const char* chosen = std::getenv("EMULATION_ORDER");
  const std::string how = chosen ? chosen : "forward";
  if (how == "reversed") {
    std::reverse(indices.begin(), indices.end());
  } else if (how != "forward") {
    std::shuffle(indices.begin(), indices.end(), std::mt19937(std::stoul(how)));
  }
  return indices;
}

}  // namespace

unsigned lane() { return number(*running) % kWarp; }

const uint64_t* meet(const Call& call, uint64_t mask, uint64_t value) {
  Thread& self = *running;
  self.call = call;
  self.mask = mask;
  self.value = value;
  self.waits = true;
  switch_fiber(*self.fiber, scheduler);
  return self.values;
}

void run(const Launch& launch, const std::function<void()>& thread) {
  if (!is_allowed(launch)) return fail("the sizes of the grid or of its blocks are not allowed");
  const auto [grid, size, dynamic_shared_memory, stream] = launch;
  position.blocks = grid;
  position.threads = size;
  kernel = &thread;
  threads.resize(size.x * size.y * size.z);
  for (Thread& each : threads) each.index = place(number(each), size);
  order = all_in_order<unsigned>(threads.size());
  for (std::vector<unsigned>& warp : lanes) warp.clear();
  for (unsigned index : order) lanes[index / kWarp].push_back(index);
  pages.clear();
  scheduler.has_begun = true;
  for (uint64_t index : all_in_order<uint64_t>(uint64_t{grid.x} * grid.y * grid.z)) {
    block = index;
    position.block = place(index, grid);
    run_block();
    if (!error.empty()) return;
  }
}

}  // namespace emulation

cudaError_t cudaGetLastError() {
  emulation::fetched_error = std::exchange(emulation::error, "");
  return emulation::fetched_error.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}
const char* cudaGetErrorString(cudaError_t) { return emulation::fetched_error.c_str(); }

float atomicAdd(float* to, float value) {
  emulation::access(to, sizeof(float), true, true);
  return std::exchange(*to, *to + value);
}

extern "C" {

int32_t emulated_stream(int32_t, void** stream) {
  *stream = nullptr;
  return 0;
}
int32_t emulated_device_guard(int32_t, void** guard) {
  *guard = nullptr;
  return 0;
}

// -fsanitize=thread calls these before accesses. The sanitizer's own library is not linked.

#define ACCESSES(size)                                                                   \
  void __tsan_read##size(void* from) { emulation::access(from, size, false); }           \
  void __tsan_write##size(void* to) { emulation::access(to, size, true); }               \
  void __tsan_unaligned_read##size(void* from) { emulation::access(from, size, false); } \
  void __tsan_unaligned_write##size(void* to) { emulation::access(to, size, true); }
ACCESSES(1)
ACCESSES(2)
ACCESSES(4)
ACCESSES(8)
ACCESSES(16)
void __tsan_read_range(void* from, size_t size) { emulation::access(from, size, false); }
void __tsan_write_range(void* to, size_t size) { emulation::access(to, size, true); }

// Host code calls these.
int8_t __tsan_atomic8_load(const int8_t* from, int) { return __atomic_load_n(from, __ATOMIC_SEQ_CST); }
int64_t __tsan_atomic64_load(const int64_t* from, int) { return __atomic_load_n(from, __ATOMIC_SEQ_CST); }
int32_t __tsan_atomic32_fetch_add(int32_t* to, int32_t term, int) {
  return __atomic_fetch_add(to, term, __ATOMIC_SEQ_CST);
}
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_read(void*) {}
void __tsan_vptr_update(void**, void*) {}

}  // extern "C"
