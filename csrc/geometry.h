// SPDX-License-Identifier: Apache-2.0
// Where a displaced pixel is read. This is the operator's contract about borders and non-finite flow, on every device.
//
// The functions are static because the CPU kernels are compiled once per instruction set: the linker must not merge the
// copies, or one instruction set's code would run for all.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define NETWARP_DEVICE __host__ __device__
#else
#define NETWARP_DEVICE
#endif

namespace netwarp {

// The largest height and width: float32 counts pixels up to here.
constexpr int64_t kLargestSide = int64_t{1} << 24;

// A position on one axis: `fraction` of the way from cell `index` to the next one.
struct Place {
  int32_t index;
  float fraction;
};

// NaN counts as no displacement. Displacements are clamped to the grid's size, so that the sum stays exact and finite.
static NETWARP_DEVICE inline Place locate(int32_t position, float displacement, int32_t size) {
  const float bound = (float)size, last = (float)(size - 1);
  displacement = displacement == displacement ? displacement : 0.0f;
  displacement = displacement < -bound ? -bound : displacement;
  displacement = displacement > bound ? bound : displacement;
  float place = (float)position + displacement;
  place = place < 0.0f ? 0.0f : place;
  place = place > last ? last : place;
  const int32_t index = (int32_t)place;
  return {index, place - (float)index};
}

// Whether the place moves with the displacement: not where it is clamped, and not where it is NaN (which compares false).
static NETWARP_DEVICE inline bool moves(int32_t position, float displacement, int32_t size) {
  const float place = (float)position + displacement;
  return place >= 0.0f && place <= (float)(size - 1);
}

}  // namespace netwarp
