// SPDX-License-Identifier: Apache-2.0
// What the kernels of DIS share. netwarp_ros/ops/dis_reference.py computes the same, bit for bit: keep the order of all
// sums. These files are compiled without fused multiply-add.
#pragma once

#include "device.cuh"

namespace netwarp::cuda::dis {

// A level of the pyramids of two frames. `pixels` leads from a frame's pyramid to the next one.
struct Level {
  int32_t height, width;
  const uint8_t* present;
  const uint8_t* previous;
  int64_t pixels;
};

__device__ inline float clamp(float value, float least, float most) { return fminf(fmaxf(value, least), most); }

__device__ inline float grey(const uint8_t* from) { return static_cast<float>(__ldg(from)); }

// The four pixels around a place, and how far it is from the upper and from the left ones.
struct Cell {
  int32_t top, bottom, left, right;
  float down, across;
};

// The cell of the nearest place on a grid.
__device__ inline Cell cell_at(int32_t height, int32_t width, float y, float x) {
  y = clamp(y, 0.0f, static_cast<float>(height - 1));
  x = clamp(x, 0.0f, static_cast<float>(width - 1));
  const int32_t top = static_cast<int32_t>(y), left = static_cast<int32_t>(x);
  return {top, min(top + 1, height - 1), left, min(left + 1, width - 1), y - static_cast<float>(top),
          x - static_cast<float>(left)};
}

// The bilinear interpolation at a place; value(row, column) is a float.
template <typename Value>
__device__ inline float interpolate(const Cell& at, const Value& value) {
  const float upper = (1.0f - at.across) * value(at.top, at.left) + at.across * value(at.top, at.right);
  const float lower = (1.0f - at.across) * value(at.bottom, at.left) + at.across * value(at.bottom, at.right);
  return (1.0f - at.down) * upper + at.down * lower;
}

// The previous frame of a level at a place.
__device__ inline float previous_at(const Level& level, int64_t b, float y, float x) {
  const uint8_t* image = level.previous + b * level.pixels;
  return interpolate(cell_at(level.height, level.width, y, x), [&](int32_t row, int32_t column) {
    return grey(image + static_cast<int64_t>(row) * level.width + column);
  });
}

// Scratch memory of the refinement: the mean of the present and the warped previous frame, their difference, the
// equations, and two changes of the flow, of which each iteration reads one and writes the other.
struct Refinement {
  float4* terms;
  float2* scales;
  float* mean;
  float* difference;
  float2* changes[2];
};

// Refines the flow of a level into another place.
void refine(const Level& level, int64_t batch, const float2* flow, float2* refined, const Refinement& scratch,
            int64_t iterations, const Tensor& on);

}  // namespace netwarp::cuda::dis
