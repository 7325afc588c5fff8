// SPDX-License-Identifier: Apache-2.0
// Lets g++ compile CUDA sources for the CPU. build.py includes this file before each of them; emulation.cpp runs the
// threads of a launch one after the other.
//
// cudaGetLastError() reports what breaks one of these rules:
//   - A grid and its blocks are not empty, and not larger than a GPU allows.
//   - All lanes in the mask of a warp-level function come to the same call, and all threads of a block that have not
//     ended come to the same __syncthreads().
//   - A thread does not read or write what another thread has written, unless a barrier is in between (__syncthreads(),
//     or __syncwarp() in a warp), or both accesses are atomic. If the read comes first, only another order of the
//     threads shows it.
//   - A block writes shared memory before it reads it.
// The last two need -fsanitize=thread, which calls emulation.cpp at each access.
//
//   EMULATION_ORDER=forward|reversed|SEED   order of the blocks, and of the threads of a block (SEED: random order)
#pragma once

#define __device__
#define __global__
#define __shared__ static  // one block runs at a time
#define __launch_bounds__(...)

#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>

namespace emulation {

constexpr unsigned kWarp = 32;

struct Position {
  uint3 thread, block;
  dim3 threads, blocks;
};
extern Position position;

struct Launch {
  dim3 grid, block;
  size_t dynamic_shared_memory = 0;
  cudaStream_t stream = nullptr;
};

void run(const Launch& launch, const std::function<void()>& thread);

template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), const Launch& launch, const Arguments&... arguments) {
  run(launch, [&] { kernel(arguments...); });
}

struct Call {
  const char* function;
  const char* file;
  int line;
};

// Waits for the other lanes of the mask, or for all threads of the block. Returns the values of the lanes. On a GPU,
// the value of a lane outside of the mask is undefined; here all its bits are 1.
const uint64_t* meet(const Call& call, uint64_t mask, uint64_t value = 0);

constexpr uint64_t kWholeBlock = uint64_t{1} << kWarp;

unsigned lane();

template <typename T>
T shuffle(const Call& call, unsigned mask, T value, unsigned from) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  std::memcpy(&value, meet(call, mask, bits) + (from < kWarp ? from : lane()), sizeof(T));
  return value;
}

}  // namespace emulation

#define threadIdx emulation::position.thread
#define blockIdx emulation::position.block
#define blockDim emulation::position.threads
#define gridDim emulation::position.blocks

using std::max;
using std::min;

#define HERE const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define CALL \
  emulation::Call { __func__, file, line }

inline void __syncthreads(HERE) { emulation::meet(CALL, emulation::kWholeBlock); }
inline void __syncwarp(unsigned mask = 0xffffffff, HERE) { emulation::meet(CALL, mask); }

template <typename T>
T __shfl_sync(unsigned mask, T value, int from, HERE) {
  return emulation::shuffle(CALL, mask, value, from % emulation::kWarp);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, HERE) {
  return emulation::shuffle(CALL, mask, value, emulation::lane() + delta);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits, HERE) {
  return emulation::shuffle(CALL, mask, value, emulation::lane() ^ bits);
}

inline unsigned __ballot_sync(unsigned mask, int predicate, HERE) {
  const uint64_t* predicates = emulation::meet(CALL, mask, predicate != 0);
  unsigned set = 0;
  for (unsigned lane = 0; lane < emulation::kWarp; ++lane) set |= (predicates[lane] & mask >> lane & 1u) << lane;
  return set;
}
inline int __any_sync(unsigned mask, int predicate, HERE) {
  const uint64_t* predicates = emulation::meet(CALL, mask, predicate != 0);
  return std::count(predicates, predicates + emulation::kWarp, 1) > 0;
}

#undef HERE
#undef CALL

inline int __ffs(int bits) { return __builtin_ffs(bits); }
inline int __popc(unsigned bits) { return __builtin_popcount(bits); }

float atomicAdd(float* to, float value);

template <typename T>
T __ldg(const T* from) {
  return *from;
}

#ifdef TORCH_TARGET_VERSION
// The operators are registered for CPU tensors, which have no stream, and no device that could be chosen.
#define aoti_torch_get_current_cuda_stream emulated_stream
#define aoti_torch_create_device_guard emulated_device_guard
#include <torch/csrc/stable/library.h>
#undef STABLE_TORCH_LIBRARY_IMPL
#define STABLE_TORCH_LIBRARY_IMPL(name, key, library) _STABLE_TORCH_LIBRARY_IMPL(name, CPU, library, __COUNTER__)
#endif
