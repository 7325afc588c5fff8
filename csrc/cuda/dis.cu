// SPDX-License-Identifier: Apache-2.0
// DIS optical flow on CUDA: the pyramid, the search, and the flow of each pixel. See netwarp_ros/ops/dis.py. A pass waits
// for nothing, adds in a fixed order, and takes its memory from PyTorch's, so CUDA graphs can hold it.
#include "dis.cuh"

#include <torch/csrc/stable/library.h>

#include <cmath>
#include <optional>
#include <utility>

namespace netwarp::cuda {

namespace dis {
namespace {

constexpr int kPatch = 8;  // pixels of a side; also the lanes of a patch: each has a row
constexpr int kPatches = 8;  // in a block
constexpr int kThreads = 128;
constexpr unsigned kAllLanes = 0xffffffff;
constexpr float kSingular = 1e-3f;  // a structure tensor of a smaller determinant is given this one
constexpr float kStep = 4.0f;  // Sobel's gradients are 8 times the derivatives: half of a Gauss-Newton step
constexpr float kFarthest = 8.0f;  // pixels that a round of descent may lead away from where it began
constexpr int64_t kMostFinest = 2;  // the greatest first level of a pyramid, and finest level of a search
constexpr int64_t kLargest = 1 << 14;  // height and width

// The pyramid

struct Image {
  const uint8_t* data;
  Strides strides;
  bool color;
};

__device__ inline int32_t grey_of(const Image& image, int64_t b, int64_t y, int64_t x) {
  const uint8_t* pixel = image.data + b * image.strides.batch + y * image.strides.row + x * image.strides.column;
  if (!image.color) return __ldg(pixel);
  const int32_t red = __ldg(pixel), green = __ldg(pixel + image.strides.channel);
  const int32_t blue = __ldg(pixel + 2 * image.strides.channel);
  return (9798 * red + 19235 * green + 3735 * blue + (1 << 14)) >> 15;  // OpenCV's weights
}

// The pixel of a level: each level rounds the mean of four pixels of the one before.
template <int kLevel>
__device__ inline int32_t pixel_of(const Image& image, int64_t b, int64_t y, int64_t x) {
  if constexpr (kLevel == 0) {
    return grey_of(image, b, y, x);
  } else {
    return (pixel_of<kLevel - 1>(image, b, 2 * y, 2 * x) + pixel_of<kLevel - 1>(image, b, 2 * y, 2 * x + 1) +
            pixel_of<kLevel - 1>(image, b, 2 * y + 1, 2 * x) + pixel_of<kLevel - 1>(image, b, 2 * y + 1, 2 * x + 1) + 2) >>
           2;
  }
}

// Writes a level, of height rows and width columns, that is kLevel levels above an image.
template <int kLevel>
__global__ void __launch_bounds__(kThreads) shrink(Image image, int64_t count, int32_t height, int32_t width,
                                                   uint8_t* to, int64_t pixels) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int64_t plane = static_cast<int64_t>(height) * width, b = index / plane, at = index % plane;
  to[b * pixels + at] = static_cast<uint8_t>(pixel_of<kLevel>(image, b, at / width, at % width));
}

// The search

// A flow on another grid, and how many of its columns and rows make one of the grid in use. It is null if there is none.
struct Guess {
  const float* data;
  int32_t height, width;
  Strides strides;
  float columns, rows, from_columns, from_rows;  // the latter are the inverses
};

// The flow of a level, (B, height, width, 2).
Guess guess_of(const float2* flow, int32_t height, int32_t width, double scale) {
  const int64_t row = 2 * static_cast<int64_t>(width);
  return {reinterpret_cast<const float*>(flow), height, width, {height * row, 1, row, 2}, static_cast<float>(scale),
          static_cast<float>(scale), static_cast<float>(1.0 / scale), static_cast<float>(1.0 / scale)};
}

// A flow (B, 2, h, w) that covers the frame, for a level of which the frame has so many columns and rows.
Guess guess_of(const Tensor& flow, double columns, double rows) {
  const double by_x = static_cast<double>(flow.size(3)) / columns, by_y = static_cast<double>(flow.size(2)) / rows;
  return {flow.const_data_ptr<float>(), static_cast<int32_t>(flow.size(2)), static_cast<int32_t>(flow.size(3)),
          strides_of(flow), static_cast<float>(by_x), static_cast<float>(by_y), static_cast<float>(1.0 / by_x),
          static_cast<float>(1.0 / by_y)};
}

// The flow at a place of the grid in use, counted from the edge of the image.
__device__ inline float2 read(const Guess& guess, int64_t b, float y, float x) {
  const Cell at = cell_at(guess.height, guess.width, y * guess.rows - 0.5f, x * guess.columns - 0.5f);
  const float* from = guess.data + b * guess.strides.batch;
  const auto value = [&](int32_t row, int32_t column) {
    return __ldg(from + row * guess.strides.row + column * guess.strides.column);
  };
  const float u = interpolate(at, value);
  from += guess.strides.channel;
  const float v = interpolate(at, value);
  return {u * guess.from_columns, v * guess.from_rows};
}

struct Search {
  Level level;
  int32_t rows, columns, stride;  // of the grid of patches
  Guess coarser, start;
};

// The displacement that a guess gives for a patch; none without a guess.
__device__ inline float2 guess_for_patch(const Search& search, const Guess& guess, int64_t b, int32_t row,
                                         int32_t column) {
  if (!guess.data) return {0.0f, 0.0f};
  const float half = 0.5f * kPatch + 0.5f;
  const float2 flow = read(guess, b, static_cast<float>(row * search.stride) + half,
                           static_cast<float>(column * search.stride) + half);
  const float width = static_cast<float>(search.level.width), height = static_cast<float>(search.level.height);
  return {flow.x == flow.x ? clamp(flow.x, -width, width) : 0.0f,
          flow.y == flow.y ? clamp(flow.y, -height, height) : 0.0f};
}

// What a lane knows of its patch: a row of pixels and gradients, and the sums over the patch.
struct Patch {
  int32_t y, x;
  float pixel[kPatch], gradient_x[kPatch], gradient_y[kPatch];
  float sum_x, sum_y;
  float xx, xy, yy;  // of the inverse of the structure tensor, times the step
};

// The sum over the lanes of a patch.
template <typename T>
__device__ inline T sum_lanes(T value) {
#pragma unroll
  for (int apart = kPatch / 2; apart > 0; apart /= 2) value += __shfl_xor_sync(kAllLanes, value, apart);
  return value;
}

// Outside, the image is mirrored at its border pixels.
__device__ inline int32_t mirrored(int32_t index, int32_t size) {
  index = index < 0 ? -index : index;
  return index < size ? index : 2 * size - 2 - index;
}

__device__ inline Patch read_patch(const Level& level, int64_t b, int32_t y, int32_t x, int32_t lane) {
  Patch patch;
  patch.y = y;
  patch.x = x;
  const uint8_t* image = level.present + b * level.pixels;
  int32_t row[3][kPatch + 2];
#pragma unroll
  for (int i = 0; i < 3; ++i) {
    const uint8_t* from = image + static_cast<int64_t>(mirrored(y + lane + i - 1, level.height)) * level.width;
#pragma unroll
    for (int k = 0; k < kPatch + 2; ++k) row[i][k] = __ldg(from + mirrored(x + k - 1, level.width));
  }
  int32_t sum_x = 0, sum_y = 0, xx = 0, xy = 0, yy = 0;  // exact: at most 64 * 1020 * 1020
#pragma unroll
  for (int k = 0; k < kPatch; ++k) {
    const int32_t across = row[0][k + 2] - row[0][k] + 2 * (row[1][k + 2] - row[1][k]) + row[2][k + 2] - row[2][k];
    const int32_t down = row[2][k] - row[0][k] + 2 * (row[2][k + 1] - row[0][k + 1]) + row[2][k + 2] - row[0][k + 2];
    patch.pixel[k] = static_cast<float>(row[1][k + 1]);
    patch.gradient_x[k] = static_cast<float>(across);
    patch.gradient_y[k] = static_cast<float>(down);
    sum_x += across;
    sum_y += down;
    xx += across * across;
    xy += across * down;
    yy += down * down;
  }
  patch.sum_x = static_cast<float>(sum_lanes(sum_x));
  patch.sum_y = static_cast<float>(sum_lanes(sum_y));
  const float whole_xx = static_cast<float>(sum_lanes(xx)), whole_xy = static_cast<float>(sum_lanes(xy));
  const float whole_yy = static_cast<float>(sum_lanes(yy));
  float determinant = whole_xx * whole_yy - whole_xy * whole_xy;
  if (fabsf(determinant) < kSingular) determinant = kSingular;
  patch.xx = whole_yy / determinant * kStep;
  patch.xy = -whole_xy / determinant * kStep;
  patch.yy = whole_xx / determinant * kStep;
  return patch;
}

// A displacement, how unlike the patch is to the previous frame there, and the step of descent from there.
struct Match {
  float2 displacement;
  float unlikeness;
  float2 step;
};

__device__ inline Match match(const Level& level, int64_t b, const Patch& patch, int32_t lane, float2 displacement) {
  const float y = clamp(static_cast<float>(patch.y) + displacement.y, 1.0f - kPatch,
                        static_cast<float>(level.height) - 1.0f);
  const float x = clamp(static_cast<float>(patch.x) + displacement.x, 1.0f - kPatch,
                        static_cast<float>(level.width) - 1.0f);
  const float top = floorf(y), left = floorf(x), down = y - top, right = x - left;
  const float weight00 = (1.0f - down) * (1.0f - right), weight01 = (1.0f - down) * right;
  const float weight10 = down * (1.0f - right), weight11 = down * right;
  const int32_t first = static_cast<int32_t>(left), row = static_cast<int32_t>(top) + lane;
  const uint8_t* image = level.previous + b * level.pixels;
  const uint8_t* upper = image + static_cast<int64_t>(min(max(row, 0), level.height - 1)) * level.width;
  const uint8_t* lower = image + static_cast<int64_t>(min(max(row + 1, 0), level.height - 1)) * level.width;
  float above[kPatch + 1], below[kPatch + 1];
#pragma unroll
  for (int k = 0; k < kPatch + 1; ++k) {
    const int32_t column = min(max(first + k, 0), level.width - 1);  // outside, the border goes on
    above[k] = grey(upper + column);
    below[k] = grey(lower + column);
  }
  float total, squares, slope_x, slope_y;
#pragma unroll
  for (int k = 0; k < kPatch; ++k) {
    const float difference =
        weight00 * above[k] + weight01 * above[k + 1] + weight10 * below[k] + weight11 * below[k + 1] - patch.pixel[k];
    const float square = difference * difference;
    const float by_x = difference * patch.gradient_x[k], by_y = difference * patch.gradient_y[k];
    total = k ? total + difference : difference;
    squares = k ? squares + square : square;
    slope_x = k ? slope_x + by_x : by_x;
    slope_y = k ? slope_y + by_y : by_y;
  }
  total = sum_lanes(total);
  squares = sum_lanes(squares);
  const float mean = total * (1.0f / (kPatch * kPatch));
  slope_x = sum_lanes(slope_x) - mean * patch.sum_x;
  slope_y = sum_lanes(slope_y) - mean * patch.sum_y;
  return {displacement, squares - total * mean,
          {patch.xx * slope_x + patch.xy * slope_y, patch.xy * slope_x + patch.yy * slope_y}};
}

// A round: each patch takes the best of its own displacement and its neighbours', and goes down from there. Eight lanes
// handle a patch; lanes without one repeat the last. Blocks along y handle the frames of a batch.
template <bool kFirst>
__global__ void __launch_bounds__(kPatches* kPatch) search_round(Search search, const float2* from, float2* to,
                                                                 int64_t steps) {
  const int64_t b = blockIdx.y;
  const int32_t lane = static_cast<int32_t>(threadIdx.x) % kPatch, count = search.rows * search.columns;
  const int32_t place = static_cast<int32_t>(blockIdx.x * kPatches + threadIdx.x / kPatch);
  const int32_t number = min(place, count - 1), row = number / search.columns, column = number % search.columns;
  const Patch patch = read_patch(search.level, b, row * search.stride, column * search.stride, lane);
  const auto found = [&](int32_t down, int32_t right) -> float2 {
    const int32_t y = min(max(row + down, 0), search.rows - 1), x = min(max(column + right, 0), search.columns - 1);
    if constexpr (kFirst) {
      return guess_for_patch(search, search.coarser, b, y, x);
    } else {
      return __ldg(from + b * count + y * search.columns + x);
    }
  };
  Match best = match(search.level, b, patch, lane, found(0, 0));
  const auto attempt = [&](float2 displacement) {
    const Match other = match(search.level, b, patch, lane, displacement);
    if (other.unlikeness < best.unlikeness) best = other;
  };
  if constexpr (kFirst) {
    if (search.start.data) attempt(guess_for_patch(search, search.start, b, row, column));
  }
  attempt(found(0, -1));
  attempt(found(-1, 0));
  attempt(found(0, 1));
  attempt(found(1, 0));

  float2 at = {best.displacement.x - best.step.x, best.displacement.y - best.step.y};
  float least = best.unlikeness;
  bool goes_on = true;
  for (int64_t step = 1; step < steps && __any_sync(kAllLanes, goes_on); ++step) {
    const Match here = match(search.level, b, patch, lane, at);
    if (!goes_on) continue;
    at = {at.x - here.step.x, at.y - here.step.y};
    goes_on = here.unlikeness < least;
    least = here.unlikeness;
  }
  const float moved_x = at.x - best.displacement.x, moved_y = at.y - best.displacement.y;
  const bool near = moved_x * moved_x + moved_y * moved_y <= kFarthest * kFarthest;
  if (lane == 0 && place < count) to[b * count + place] = near ? at : best.displacement;
}

// The flow of each pixel: the mean of the patches over it, weighted by how well each matches the pixel.
__global__ void __launch_bounds__(kThreads) densify(Search search, const float2* found, float2* to, int64_t count) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const Level& level = search.level;
  const int64_t plane = static_cast<int64_t>(level.height) * level.width, b = index / plane;
  const int32_t y = static_cast<int32_t>(index % plane / level.width), x = static_cast<int32_t>(index % level.width);
  const auto last = [&](int32_t pixel, int32_t patches) { return min(pixel / search.stride, patches - 1); };
  const auto first = [&](int32_t pixel, int32_t last) {
    return pixel < kPatch ? 0 : min((pixel - kPatch) / search.stride + 1, last);
  };
  const int32_t last_row = last(y, search.rows), last_column = last(x, search.columns);
  const float own = grey(level.present + b * level.pixels + static_cast<int64_t>(y) * level.width + x);
  float weights = 0.0f;
  float2 sum = {0.0f, 0.0f};
  for (int32_t row = first(y, last_row); row <= last_row; ++row) {
    for (int32_t column = first(x, last_column); column <= last_column; ++column) {
      const float2 flow = __ldg(found + (b * search.rows + row) * search.columns + column);
      const float value = previous_at(level, b, static_cast<float>(y) + flow.y, static_cast<float>(x) + flow.x);
      const float weight = 1.0f / fmaxf(fabsf(value - own), 1.0f);
      weights += weight;
      sum.x += weight * flow.x;
      sum.y += weight * flow.y;
    }
  }
  to[index] = {sum.x / weights, sum.y / weights};
}

// Writes the flow on the grid of the result, (B, 2, height, width).
__global__ void __launch_bounds__(kThreads) enlarge(Guess flow, float* to, int64_t count, int32_t height, int32_t width) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= count) return;
  const int64_t plane = static_cast<int64_t>(height) * width, b = index / plane, at = index % plane;
  const float2 value = read(flow, b, static_cast<float>(at / width) + 0.5f, static_cast<float>(at % width) + 0.5f);
  to[2 * b * plane + at] = value.x;
  to[(2 * b + 1) * plane + at] = value.y;
}

// The calls

void check_levels(int64_t height, int64_t width, int64_t first, int64_t last) {
  STD_TORCH_CHECK(0 <= first && first <= kMostFinest && first <= last, "the levels are ", first, " to ", last,
                  ": begin with 0 to ", kMostFinest);
  STD_TORCH_CHECK(0 < height && height <= kLargest && 0 < width && width <= kLargest && last < 16 &&
                      height >> last >= kPatch && width >> last >= kPatch,
                  "frames are ", width, "x", height, ": give at most ", kLargest,
                  " pixels, and a patch of 8 must fit into the last level, ", last);
}

// The pixels of levels from the first to before the last.
int64_t pixels_of(int64_t height, int64_t width, int64_t first, int64_t last) {
  int64_t pixels = 0;
  for (int64_t level = first; level < last; ++level) pixels += (height >> level) * (width >> level);
  return pixels;
}

template <int kLevel>
void launch_shrink(const Image& image, int64_t batch, int64_t height, int64_t width, uint8_t* to, int64_t pixels,
                   const Tensor& on) {
  const int64_t count = batch * height * width;
  launch(shrink<kLevel>, grid_of(ceil_div(count, kThreads)), dim3(kThreads), on, image, count,
         static_cast<int32_t>(height), static_cast<int32_t>(width), to, pixels);
}

Tensor pyramid(const Tensor& frame, int64_t first, int64_t last) {
  STD_TORCH_CHECK(frame.dim() == 4 && (frame.size(1) == 3 || frame.size(1) == 1) &&
                      frame.scalar_type() == ScalarType::Byte,
                  "frame must be (B, 3, H, W) or (B, 1, H, W) uint8");
  const int64_t batch = frame.size(0), height = frame.size(2), width = frame.size(3);
  check_levels(height, width, first, last);
  const torch::stable::accelerator::DeviceGuard guard(frame.get_device_index());
  const int64_t pixels = pixels_of(height, width, first, last + 1);
  Tensor out = empty({batch, pixels}, ScalarType::Byte, frame);
  if (batch == 0) return out;
  uint8_t* to = out.mutable_data_ptr<uint8_t>();
  const Image image{frame.const_data_ptr<uint8_t>(), strides_of(frame), frame.size(1) == 3};
  const auto begin = first == 0 ? launch_shrink<0> : first == 1 ? launch_shrink<1> : launch_shrink<2>;
  begin(image, batch, height >> first, width >> first, to, pixels, frame);
  for (int64_t level = first + 1; level <= last; ++level) {
    const int64_t row = width >> (level - 1);
    const Image finer{to, {pixels, 0, row, 1}, false};
    to += (height >> (level - 1)) * row;
    launch_shrink<1>(finer, batch, height >> level, width >> level, to, pixels, frame);
  }
  return out;
}

Tensor flow(const Tensor& present, const Tensor& previous, const std::optional<Tensor>& start, int64_t height,
            int64_t width, int64_t level, int64_t first, int64_t finest, int64_t coarsest, int64_t stride,
            int64_t rounds, int64_t steps, int64_t refinements) {
  check_levels(height, width, first, coarsest);
  check_levels(height, width, finest, coarsest);
  STD_TORCH_CHECK(first <= finest, "first is ", first, ", and finest ", finest, ": give a finest level of the pyramid");
  const int64_t least = pixels_of(height, width, first, coarsest + 1);
  STD_TORCH_CHECK(present.dim() == 2 && present.size(1) >= least && present.scalar_type() == ScalarType::Byte,
                  "present must be (B, N) uint8, with ", least, " pixels or more");
  STD_TORCH_CHECK(same_sizes(present, previous) && previous.scalar_type() == ScalarType::Byte,
                  "previous must be as present");
  check_device(previous, present, "previous");
  STD_TORCH_CHECK(0 <= level && level <= 8, "level is ", level, ": give 0 to 8");
  STD_TORCH_CHECK(1 <= stride && stride <= kPatch && rounds >= 1 && steps >= 1 && refinements >= 0,
                  "stride must be 1 to 8, rounds and steps at least 1, and refinements at least 0");
  const int64_t batch = present.size(0);
  if (start) {
    STD_TORCH_CHECK(start->dim() == 4 && start->size(0) == batch && start->size(1) == 2 && start->size(2) > 0 &&
                        start->size(3) > 0 && start->size(2) <= kLargest && start->size(3) <= kLargest &&
                        start->scalar_type() == ScalarType::Float,
                    "start must be (B, 2, h, w) float32");
    check_device(*start, present, "start");
  }
  const torch::stable::accelerator::DeviceGuard guard(present.get_device_index());
  const int64_t cell = int64_t{1} << level, out_rows = ceil_div(height, cell), out_columns = ceil_div(width, cell);
  Tensor out = empty({batch, 2, out_rows, out_columns}, ScalarType::Float, present);
  if (batch == 0) return out;
  const Tensor dense_present = torch::stable::contiguous(present), dense_previous = torch::stable::contiguous(previous);

  // Scratch memory, for the finest level: two flows of patches, two of pixels, and what the refinement needs.
  const auto patches = [&](int64_t side) { return 1 + (side - kPatch) / stride; };
  const int64_t plane = batch * (height >> finest) * (width >> finest);
  const int64_t places = batch * patches(height >> finest) * patches(width >> finest);
  const Tensor memory = empty({2 * places + (refinements ? 8 : 2) * plane, 2}, ScalarType::Float, present);
  float2* free = reinterpret_cast<float2*>(memory.mutable_data_ptr<float>());
  const auto take = [&](int64_t count) { return std::exchange(free, free + count); };
  Refinement refinement{};
  if (refinements) {
    refinement.terms = reinterpret_cast<float4*>(take(2 * plane));
    refinement.scales = take(plane);
    refinement.mean = reinterpret_cast<float*>(take(plane));
    refinement.difference = refinement.mean + plane;
    refinement.changes[0] = take(plane);
    refinement.changes[1] = take(plane);
  }
  float2 *coarser = take(plane), *dense = take(plane), *found = take(places), *other_found = take(places);

  Guess from_coarser{};
  for (int64_t index = coarsest; index >= finest; --index) {
    const int64_t rows = height >> index, columns = width >> index;
    const int64_t begin = pixels_of(height, width, first, index);
    const Level at{static_cast<int32_t>(rows), static_cast<int32_t>(columns),
                   dense_present.const_data_ptr<uint8_t>() + begin, dense_previous.const_data_ptr<uint8_t>() + begin,
                   present.size(1)};
    const double size = static_cast<double>(int64_t{1} << index);
    const Search search{at,
                        static_cast<int32_t>(patches(rows)),
                        static_cast<int32_t>(patches(columns)),
                        static_cast<int32_t>(stride),
                        from_coarser,
                        start ? guess_of(*start, width / size, height / size) : Guess{}};
    const dim3 grid = grid_of(ceil_div(patches(rows) * patches(columns), kPatches), batch), block(kPatches * kPatch);
    launch(search_round<true>, grid, block, present, search, static_cast<const float2*>(nullptr), found, steps);
    for (int64_t round = 1; round < rounds; ++round) {
      launch(search_round<false>, grid, block, present, search, static_cast<const float2*>(found), other_found, steps);
      std::swap(found, other_found);
    }
    const int64_t count = batch * rows * columns;
    launch(densify, grid_of(ceil_div(count, kThreads)), dim3(kThreads), present, search,
           static_cast<const float2*>(found), dense, count);
    if (refinements) {
      refine(at, batch, dense, coarser, refinement, refinements, present);
    } else {
      std::swap(dense, coarser);
    }
    from_coarser = guess_of(coarser, at.height, at.width, 0.5);
  }
  from_coarser = guess_of(coarser, static_cast<int32_t>(height >> finest), static_cast<int32_t>(width >> finest),
                          std::ldexp(1.0, static_cast<int>(level - finest)));
  const int64_t count = batch * out_rows * out_columns;
  launch(enlarge, grid_of(ceil_div(count, kThreads)), dim3(kThreads), present, from_coarser,
         out.mutable_data_ptr<float>(), count, static_cast<int32_t>(out_rows), static_cast<int32_t>(out_columns));
  return out;
}

}  // namespace
}  // namespace dis
}  // namespace netwarp::cuda

STABLE_TORCH_LIBRARY_IMPL(netwarp_ros, CUDA, library) {
  library.impl("dis_pyramid", TORCH_BOX(&netwarp::cuda::dis::pyramid));
  library.impl("dis_flow", TORCH_BOX(&netwarp::cuda::dis::flow));
}
