// SPDX-License-Identifier: Apache-2.0
// The variational refinement of DIS on CUDA. Its equations are in netwarp_ros/ops/dis_reference.py, `_refine`.
#include "dis.cuh"

namespace netwarp::cuda::dis {

namespace {

constexpr int kThreads = 128;
constexpr int kSweeps = 5;  // of over-relaxation, in each iteration
constexpr float kAlpha = 20.0f, kDelta = 5.0f, kGamma = 10.0f;  // weights of smoothness, grey values, gradients
constexpr float kOmega = 1.6f, kRest = static_cast<float>(1.0 - 1.6);  // over-relaxation
constexpr float kZeta2 = 0.01f, kEpsilon2 = 1e-4f;

// A block sweeps over a tile of pixels, and all that they depend on: each half of a sweep, over the red or the black
// pixels, reaches one pixel further.
constexpr int kTileWidth = 32, kTileHeight = 16, kHalo = 2 * kSweeps;
constexpr int kWidth = kTileWidth + 2 * kHalo, kHeight = kTileHeight + 2 * kHalo;
constexpr int kPairs = kWidth / 2, kRows = 18, kPerColor = kHeight / kRows;  // threads along x and y, pixels of each color
static_assert(kHeight % kRows == 0 && kPairs * kRows <= 512 && kTileWidth % 2 + kTileHeight % 2 + kHalo % 2 == 0);

__global__ void __launch_bounds__(kThreads) warp_frame(Level level, const float2* flow, float* mean, float* difference,
                                                       int64_t count) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int64_t plane = static_cast<int64_t>(level.height) * level.width, b = index / plane, at = index % plane;
  const float2 by = __ldg(flow + index);
  const float warped = previous_at(level, b, static_cast<float>(at / level.width) + by.y,
                                   static_cast<float>(at % level.width) + by.x);
  const float present = grey(level.present + b * level.pixels + at);
  mean[index] = (present + warped) * 0.5f;
  difference[index] = warped - present;
}

// A plane of the level; outside, its border goes on.
struct Plane {
  const float* data;
  int32_t height, width;
};

__device__ inline float value(const Plane& plane, int32_t y, int32_t x) {
  return __ldg(plane.data + static_cast<int64_t>(y) * plane.width + x);
}
__device__ inline int32_t before(int32_t index) { return max(index - 1, 0); }
__device__ inline int32_t after(int32_t index, int32_t size) { return min(index + 1, size - 1); }
__device__ inline float slope_x(const Plane& plane, int32_t y, int32_t x) {
  return value(plane, y, after(x, plane.width)) - value(plane, y, before(x));
}
__device__ inline float slope_y(const Plane& plane, int32_t y, int32_t x) {
  return value(plane, after(y, plane.height), x) - value(plane, before(y), x);
}

// The linear equations of a pixel's change, without smoothness.
struct Equations {
  float a11, a12, a22, b1, b2;
};

__device__ inline Equations equations_at(const Plane& mean, const Plane& difference, int32_t y, int32_t x,
                                         float2 change) {
  const float ix = slope_x(mean, y, x), iy = slope_y(mean, y, x), iz = value(difference, y, x);
  const float ixz = slope_x(difference, y, x), iyz = slope_y(difference, y, x);
  const float ixx = slope_x(mean, y, after(x, mean.width)) - slope_x(mean, y, before(x));
  const float ixy = slope_x(mean, after(y, mean.height), x) - slope_x(mean, before(y), x);
  const float iyy = slope_y(mean, after(y, mean.height), x) - slope_y(mean, before(y), x);
  const float norm = ix * ix + iy * iy + kZeta2;
  const float norm_x = ixx * ixx + ixy * ixy + kZeta2, norm_y = iyy * iyy + ixy * ixy + kZeta2;

  const float error = iz + ix * change.x + iy * change.y;
  float weight = 1.0f / sqrtf(error * error / norm + kEpsilon2) * (0.5f * kDelta) / norm;
  Equations is{weight * (ix * ix) + kZeta2, weight * (ix * iy), weight * (iy * iy) + kZeta2, -weight * (iz * ix),
               -weight * (iz * iy)};
  const float error_x = ixz + ixx * change.x + ixy * change.y, error_y = iyz + ixy * change.x + iyy * change.y;
  weight = 1.0f / sqrtf(error_x * error_x / norm_x + error_y * error_y / norm_y + kEpsilon2) * (0.5f * kGamma);
  const float by_x = weight / norm_x, by_y = weight / norm_y;
  is.a11 += by_x * (ixx * ixx) + by_y * (ixy * ixy);
  is.a12 += by_x * (ixx * ixy) + by_y * (ixy * iyy);
  is.a22 += by_x * (ixy * ixy) + by_y * (iyy * iyy);
  is.b1 -= by_x * (ixx * ixz) + by_y * (ixy * iyz);
  is.b2 -= by_x * (ixy * ixz) + by_y * (iyy * iyz);
  return is;
}

// How strongly smoothness ties a pixel to the next one and to the one below, at the present flow.
__device__ inline float link_at(const Level& level, const float2* flow, const float2* change, int32_t y, int32_t x) {
  const auto present = [&](int32_t y, int32_t x) -> float2 {
    const int64_t at = static_cast<int64_t>(y) * level.width + x;
    const float2 by = __ldg(flow + at), added = change ? __ldg(change + at) : float2{0.0f, 0.0f};
    return {by.x + added.x, by.y + added.y};
  };
  const float2 here = present(y, x), beside = present(y, after(x, level.width)), below = present(after(y, level.height), x);
  const float across_u = beside.x - here.x, across_v = beside.y - here.y;
  const float down_u = below.x - here.x, down_v = below.y - here.y;
  const float slopes = across_u * across_u + across_v * across_v + (down_u * down_u + down_v * down_v);
  return 1.0f / sqrtf(slopes + kEpsilon2) * (0.5f * kAlpha);
}

// A pixel's links to its neighbours; 0 where there is none. `link` is its own, the others are those of two neighbours.
struct Links {
  float left, right, up, down;
};

__device__ inline Links links_of(const Level& level, int32_t y, int32_t x, float left, float up, float link) {
  return {left, x < level.width - 1 ? link : 0.0f, up, y < level.height - 1 ? link : 0.0f};
}

// The sum of the neighbours, by their links; those without a link must be finite.
__device__ inline float2 around(const Links& links, float2 left, float2 right, float2 up, float2 down) {
  return {links.left * left.x + links.right * right.x + links.up * up.x + links.down * down.x,
          links.left * left.y + links.right * right.y + links.up * up.y + links.down * down.y};
}

// Makes the equations of all pixels at the present flow. There is no change yet if `change` is null. By itself, the
// compiler would use 48 registers on sm_90, and spill.
__global__ void __launch_bounds__(kThreads, 8) linearise(Level level, const float2* flow, Refinement scratch,
                                                      const float2* change, int64_t count) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int64_t plane = static_cast<int64_t>(level.height) * level.width, first = index / plane * plane;
  const int32_t y = static_cast<int32_t>(index % plane / level.width), x = static_cast<int32_t>(index % level.width);
  flow += first;
  const float2* before_change = change ? change + first : nullptr;
  const float link = link_at(level, flow, before_change, y, x);
  const Links links = links_of(level, y, x, x > 0 ? link_at(level, flow, before_change, y, x - 1) : 0.0f,
                               y > 0 ? link_at(level, flow, before_change, y - 1, x) : 0.0f, link);
  const auto at = [&](int32_t y, int32_t x) { return __ldg(flow + static_cast<int64_t>(y) * level.width + x); };
  const float2 here = at(y, x);
  const float2 sum = around(links, at(y, before(x)), at(y, after(x, level.width)), at(before(y), x),
                            at(after(y, level.height), x));
  const Plane mean{scratch.mean + first, level.height, level.width};
  const Plane difference{scratch.difference + first, level.height, level.width};
  const Equations is = equations_at(mean, difference, y, x, change ? __ldg(change + index) : float2{0.0f, 0.0f});
  const float total = links.left + links.right + links.up + links.down;
  scratch.terms[index] = {is.a12, is.b1 + (sum.x - total * here.x), is.b2 + (sum.y - total * here.y), link};
  scratch.scales[index] = {1.0f / (is.a11 + total) * kOmega, 1.0f / (is.a22 + total) * kOmega};
}

// Sweeps over the equations. The last time, the result is added to the flow. A thread has red and black pixels that lie
// side by side, so that all threads are at work in each half of a sweep.
__global__ void __launch_bounds__(kPairs* kRows) sweep(Level level, const float2* flow, Refinement scratch,
                                                       const float2* change_before, float2* to, bool is_last) {
  __shared__ float2 change[kHeight][kWidth];
  __shared__ float link[kHeight][kWidth];
  const int64_t first = static_cast<int64_t>(blockIdx.z) * level.height * level.width;
  const int32_t left = static_cast<int32_t>(blockIdx.x) * kTileWidth - kHalo;
  const int32_t top = static_cast<int32_t>(blockIdx.y) * kTileHeight - kHalo;
  const auto row_of = [](int k) { return static_cast<int32_t>(threadIdx.y) + k * kRows; };
  // Row and column of a red pixel (color 0) have an even sum, in the tile and in the image.
  const auto column_of = [](int32_t row, int color) {
    return 2 * static_cast<int32_t>(threadIdx.x) + ((row + color) & 1);
  };
  const auto is_inside = [&](int32_t y, int32_t x) { return y >= 0 && y < level.height && x >= 0 && x < level.width; };
  const auto index = [&](int32_t y, int32_t x) { return first + static_cast<int64_t>(y) * level.width + x; };

  float4 terms[2][kPerColor];
  float2 scales[2][kPerColor];
#pragma unroll
  for (int color = 0; color < 2; ++color) {
#pragma unroll
    for (int k = 0; k < kPerColor; ++k) {
      const int32_t row = row_of(k), column = column_of(row, color), y = top + row, x = left + column;
      const bool inside = is_inside(y, x), reads = inside && change_before;
      // Outside of the image, nothing is tied to anything.
      terms[color][k] = inside ? __ldg(scratch.terms + index(y, x)) : float4{0.0f, 0.0f, 0.0f, 0.0f};
      scales[color][k] = inside ? __ldg(scratch.scales + index(y, x)) : float2{0.0f, 0.0f};
      link[row][column] = terms[color][k].w;
      change[row][column] = reads ? __ldg(change_before + index(y, x)) : float2{0.0f, 0.0f};
    }
  }
  __syncthreads();
  for (int round = 0; round < kSweeps; ++round) {
#pragma unroll
    for (int color = 0; color < 2; ++color) {
#pragma unroll
      for (int k = 0; k < kPerColor; ++k) {
        const int32_t row = row_of(k), column = column_of(row, color), y = top + row, x = left + column;
        const bool is_edge = row == 0 || row == kHeight - 1 || column == 0 || column == kWidth - 1;  // of what is known
        if (is_edge || !is_inside(y, x)) continue;
        const Links links = links_of(level, y, x, link[row][column - 1], link[row - 1][column], terms[color][k].w);
        const float2 here = change[row][column];
        const float2 sum = around(links, change[row][column - 1], change[row][column + 1], change[row - 1][column],
                                  change[row + 1][column]);
        const float u = kRest * here.x + scales[color][k].x * (sum.x + terms[color][k].y - here.y * terms[color][k].x);
        const float v = kRest * here.y + scales[color][k].y * (sum.y + terms[color][k].z - u * terms[color][k].x);
        change[row][column] = {u, v};
      }
      __syncthreads();
    }
  }
#pragma unroll
  for (int color = 0; color < 2; ++color) {
#pragma unroll
    for (int k = 0; k < kPerColor; ++k) {
      const int32_t row = row_of(k), column = column_of(row, color), y = top + row, x = left + column;
      const bool is_own = row >= kHalo && row < kHalo + kTileHeight && column >= kHalo && column < kHalo + kTileWidth;
      if (!is_own || !is_inside(y, x)) continue;
      float2 result = change[row][column];
      if (is_last) {
        const float2 by = __ldg(flow + index(y, x));
        result = {by.x + result.x, by.y + result.y};
      }
      to[index(y, x)] = result;
    }
  }
}

}  // namespace

void refine(const Level& level, int64_t batch, const float2* flow, float2* refined, const Refinement& scratch,
            int64_t iterations, const Tensor& on) {
  const int64_t count = batch * level.height * level.width;
  launch(warp_frame, grid_of(ceil_div(count, kThreads)), dim3(kThreads), on, level, flow, scratch.mean,
         scratch.difference, count);
  dim3 grid = grid_of(ceil_div(level.width, kTileWidth), ceil_div(level.height, kTileHeight));
  grid.z = static_cast<unsigned>(batch);
  const float2* before = nullptr;  // no change
  for (int64_t iteration = 0; iteration < iterations; ++iteration) {
    const bool is_last = iteration == iterations - 1;
    float2* to = is_last ? refined : scratch.changes[iteration % 2];
    launch(linearise, grid_of(ceil_div(count, kThreads)), dim3(kThreads), on, level, flow, scratch, before, count);
    launch(sweep, grid, dim3(kPairs, kRows), on, level, flow, scratch, before, to, is_last);
    before = to;
  }
}

}  // namespace netwarp::cuda::dis
