// SPDX-License-Identifier: Apache-2.0
// Where a displaced pixel is read: the operator's contract about borders and non-finite flow, on every device.
//
// The functions are static: the CPU kernels include this once for each instruction set, and the linker must not have
// one copy serve them all.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define NETWARP_DEVICE __host__ __device__
#else
#define NETWARP_DEVICE
#endif

namespace netwarp {

// On one axis: between cell `index` and the next, `fraction` of the way.
struct Place {
  int32_t index;
  float fraction;
};

// NaN is no displacement; displacements are bounded by the grid, so that the sum stays exact and finite.
static NETWARP_DEVICE inline Place locate(int64_t position, float displacement, int64_t size) {
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

// The displacement has a derivative where the place is not clamped; NaN compares false.
static NETWARP_DEVICE inline float derivative(int64_t position, float displacement, int64_t size) {
  const float place = (float)position + displacement;
  return place >= 0.0f && place <= (float)(size - 1) ? 1.0f : 0.0f;
}

}  // namespace netwarp
