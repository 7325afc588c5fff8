// SPDX-License-Identifier: Apache-2.0
// Kernels that each keep or break one rule of CUDA. For each, the program prints what the emulation reports; if it
// reports nothing, the number of results that are 1.
#include <cstdio>
#include <vector>

namespace {

constexpr int kThreads = 48;  // a warp and a half

__device__ unsigned all_lanes() { return threadIdx.x < 32 ? 0xffffffff : 0xffff; }

__global__ void warp_functions(float* out) {
  const int lane = threadIdx.x % 32, last = threadIdx.x < 32 ? 31 : 15;
  const unsigned all = all_lanes(), odd = 0xaaaaaaaa & all;
  bool right = __shfl_sync(all, lane, last) == last;
  right &= __shfl_xor_sync(all, int64_t{lane} << 40, 1) == int64_t{lane ^ 1} << 40;
  const double next = __shfl_down_sync(all, 2.5 * lane, 1);
  right &= lane == last || next == 2.5 * (lane + 1);
  right &= __ballot_sync(all, lane % 2) == odd && __any_sync(all, lane == 3) && !__any_sync(all, lane > 31);
  if (lane % 2) right &= __ballot_sync(odd, lane > 1) == (odd & ~2u);
  right &= __ffs(0) == 0 && __ffs(12) == 3 && __popc(0xf0f0) == 8;
  out[threadIdx.x] = right;
}

__global__ void shared_memory(float* out) {
  __shared__ unsigned box[kThreads];
  box[threadIdx.x] = threadIdx.x;
  __syncthreads();
  out[blockIdx.x * kThreads + threadIdx.x] = box[kThreads - 1 - threadIdx.x] == kThreads - 1 - threadIdx.x;
}

__global__ void shared_memory_without_barrier(float* out) {
  __shared__ float box[kThreads];
  box[threadIdx.x] = 1;
  out[threadIdx.x] = box[kThreads - 1 - threadIdx.x];
}

__global__ void shared_memory_of_another_block(float* out) {
  __shared__ float box;
  if (blockIdx.x == 0 && threadIdx.x == 0) box = 1;
  __syncthreads();
  if (blockIdx.x == 1) out[threadIdx.x] = box;
}

__global__ void ended_before_barrier(float* out) {
  out[threadIdx.x] = 1;
  if (threadIdx.x % 2 == 0) __syncthreads();
}

__global__ void barriers_in_two_branches(float*) {
  if (threadIdx.x < 32) {
    __syncthreads();
  } else {
    __syncthreads();
  }
}

__global__ void swap_after_syncwarp(float* out) {
  out[threadIdx.x] = 1;
  __syncwarp(all_lanes());
  const float other = out[threadIdx.x ^ 1];
  __syncwarp(all_lanes());
  out[threadIdx.x] = other;
}

__global__ void swap_after_ballot(float* out) {
  out[threadIdx.x] = 1;
  __ballot_sync(all_lanes(), 1);
  out[threadIdx.x] = out[threadIdx.x ^ 1];
}

__global__ void atomic_additions(float* out) { atomicAdd(out + threadIdx.x / 8, 0.125f); }

__global__ void atomic_and_plain_additions(float* out) {
  if (threadIdx.x == 0) atomicAdd(out, 1);
  if (threadIdx.x == 1) *out += 1;
}

__global__ void own_place(float* out) { out[threadIdx.y * blockDim.x + threadIdx.x] = 1; }

__global__ void same_place_in_two_blocks(float* out) { out[threadIdx.x] = 1; }

__global__ void lane_that_ended(float*) {
  if (threadIdx.x != 5) __shfl_sync(all_lanes(), 1, 0);
}

__global__ void lane_that_waits_elsewhere(float*) {
  if (threadIdx.x == 5) __syncthreads();
  __shfl_sync(all_lanes(), 1, 0);
}

__global__ void lane_that_does_not_exist(float*) { __ballot_sync(0xffffffff, 1); }

__global__ void mask_without_own_lane(float*) { __syncwarp(1); }

struct Rule {
  const char* name;
  void (*kernel)(float*);
  dim3 grid = 1, block = kThreads;
};

#define RULE(kernel, ...) \
  { #kernel, kernel, ##__VA_ARGS__ }

const Rule kRules[] = {
    RULE(warp_functions),
    RULE(shared_memory, 2),
    RULE(shared_memory_without_barrier),
    RULE(shared_memory_of_another_block, 2),
    RULE(ended_before_barrier),
    RULE(barriers_in_two_branches),
    RULE(swap_after_syncwarp),
    RULE(swap_after_ballot),
    RULE(atomic_additions),
    RULE(atomic_and_plain_additions),
    RULE(same_place_in_two_blocks, 2),
    RULE(lane_that_ended),
    RULE(lane_that_waits_elsewhere),
    RULE(lane_that_does_not_exist),
    RULE(mask_without_own_lane),
    {"largest_block", own_place, 1, dim3(32, 32)},
    {"too_large_block", own_place, 1, dim3(32, 33)},
    {"empty_grid", own_place, dim3(1, 0)},
    {"too_high_grid", own_place, dim3(1, 1 << 16)},
    {"too_wide_grid", own_place, 1u << 31},
};

}  // namespace

int main() {
  for (const auto& [name, kernel, grid, block] : kRules) {
    std::vector<float> out(1024);
    emulation::launch(kernel, {grid, block}, out.data());
    if (const cudaError_t error = cudaGetLastError()) {
      std::printf("%s: %s\n", name, cudaGetErrorString(error));
    } else {
      std::printf("%s: %d\n", name, static_cast<int>(std::count(out.begin(), out.end(), 1.0f)));
    }
  }
}
