// SPDX-License-Identifier: Apache-2.0
// warp and warp_combine on CUDA. They allocate nothing but the result (and a copy of features in another layout), and
// do not wait for the device.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "device.cuh"

namespace netwarp::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int64_t kManyThreads = 1 << 18;  // with more threads than this, each gets a tile of pixels
constexpr int kTileColumns = 4, kTileRows = 1;  // the fastest of four on an H100; see docs/operator.md
constexpr int64_t kLargestGrid = (1 << 16) - 1;  // of blocks in y

template <typename T>
struct Forward {
  Shape shape;
  Flow flow;
  const T* features;
  Strides features_strides;
  const T* present;
  Strides present_strides;
  const float* w1;
  const float* w2;
  T* out;
};

// Channels-last: a thread computes kCount channels of a tile of pixels, row by row. It reads all that a row of the tile
// needs before it writes, so that the reads are under way together. In smooth flow, neighbouring pixels read the same
// pixels, which are then in the L1 cache. threadIdx.x counts along the channels. `across` and `down` are the numbers of
// blocks in a row of tiles, and of rows of tiles in an image.
template <typename T, bool kCombine, int kCount, int kColumns, int kRows>
__global__ void __launch_bounds__(kThreads) warp_pixels(Forward<T> task, unsigned across, unsigned down) {
  using Values = Pack<T, kCount>;
  const int32_t height = static_cast<int32_t>(task.shape.height), width = static_cast<int32_t>(task.shape.width);
  const int64_t channels = task.shape.channels;
  const int64_t c = static_cast<int64_t>(blockIdx.y * blockDim.x + threadIdx.x) * kCount;
  const int32_t first_x = static_cast<int32_t>((blockIdx.x % across) * blockDim.y + threadIdx.y) * kColumns;
  const int32_t first_y = static_cast<int32_t>(blockIdx.x / across % down) * kRows;
  const int64_t b = blockIdx.x / across / down;
  if (c >= channels || first_x >= width) return;
  const T* image = task.features + b * task.features_strides.batch + c;

  Pack<float, kCount> w1, w2;
  if constexpr (kCombine) {
    w1 = read_weights<kCount>(task.w1 + c);
    w2 = read_weights<kCount>(task.w2 + c);
  }
#pragma unroll
  for (int row = 0; row < kRows; ++row) {
    const int32_t y = first_y + row;
    if (y >= height) return;
    const int64_t at = ((b * height + y) * width + first_x) * channels + c;
    Corners corners[kColumns];
    Values from[kColumns][4], present[kColumns];
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      const int32_t x = min(first_x + column, width - 1);
      corners[column] = corners_at(task.shape, read(task.flow, b, y, x), y, x, task.features_strides.row,
                                   task.features_strides.column);
    }
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
#pragma unroll
      for (int corner = 0; corner < 4; ++corner)
        from[column][corner] = read_pack<T, kCount>(image + corners[column].offset[corner]);
      if constexpr (kCombine) {
        if (first_x + column < width) present[column] = read_pack<T, kCount>(task.present + at + column * channels);
      }
    }
#pragma unroll
    for (int column = 0; column < kColumns; ++column) {
      if (first_x + column >= width) continue;
      Values out;
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        float value =
            interpolate(corners[column], [&](int corner) { return to_float(from[column][corner].element[k]); });
        if constexpr (kCombine)
          value = fmaf(w2.element[k], value, w1.element[k] * to_float(present[column].element[k]));
        assign(out.element[k], value);
      }
      *reinterpret_cast<Values*>(task.out + at + column * channels) = out;
    }
  }
}

// Any strides: a thread computes `count` channels of one pixel, kStep at a time; neighbouring threads compute
// neighbouring pixels. `count` is a multiple of kStep, and the weights of kStep channels are aligned to their size. With
// the 64 registers that eight blocks leave, the compiler starts the reads of at least four channels before it waits for
// the first. By itself it uses 32, and waits after a few reads.
template <typename T, bool kCombine, int kStep>
__global__ void __launch_bounds__(kThreads, 8) warp_planes(Forward<T> task, int64_t count) {
  const auto [batch, channels, height, width] = task.shape;
  const Strides from = task.features_strides, with = task.present_strides;
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, plane = height * width;
  if (pixel >= batch * plane) return;
  const auto [b, y, x] = pixel_at(task.shape, pixel);
  const Corners corners = corners_at(task.shape, read(task.flow, b, y, x), y, x, from.row, from.column);
  const int64_t begin = blockIdx.y * count, end = min(begin + count, channels);
  const T* source = task.features + b * from.batch + begin * from.channel;
  const T* present = task.present + b * with.batch + y * with.row + x * with.column + begin * with.channel;
  T* out = task.out + (b * channels + begin) * plane + y * width + x;
  for (int64_t first = begin; first < end; first += kStep) {
    Pack<float, kStep> w1, w2;
    if constexpr (kCombine) {
      w1 = read_weights<kStep>(task.w1 + first);
      w2 = read_weights<kStep>(task.w2 + first);
    }
#pragma unroll
    for (int k = 0; k < kStep; ++k) {
      float value = interpolate(corners, [&](int corner) { return to_float(__ldg(source + corners.offset[corner])); });
      if constexpr (kCombine) {
        value = fmaf(w2.element[k], value, w1.element[k] * to_float(__ldg(present)));
        present += with.channel;
      }
      assign(*out, value);
      source += from.channel;
      out += plane;
    }
  }
}

template <typename T, bool kCombine, int kCount, int kColumns, int kRows>
void launch_pixels(const Forward<T>& task, const Tensor& on) {
  const int64_t vectors = ceil_div(task.shape.channels, kCount);
  int along_channels = 1;
  while (along_channels < vectors && along_channels < kThreads) along_channels *= 2;
  const dim3 block(along_channels, kThreads / along_channels);
  const int64_t across = ceil_div(task.shape.width, block.y * kColumns), down = ceil_div(task.shape.height, kRows);
  launch(warp_pixels<T, kCombine, kCount, kColumns, kRows>,
         grid_of(task.shape.batch * down * across, ceil_div(vectors, along_channels)), block, on, task,
         static_cast<unsigned>(across), static_cast<unsigned>(down));
}

template <typename T, bool kCombine>
void launch_any(const Forward<T>& task, bool channels_last, const Tensor& on) {
  const Shape& shape = task.shape;
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  if (!channels_last) {
    const int64_t pixels = shape.batch * shape.height * shape.width;
    const int64_t wanted = std::max(std::clamp<int64_t>(pixels * shape.channels / kManyThreads, 4, 64),
                                    ceil_div(shape.channels, kLargestGrid));
    const int64_t count = ceil_div(wanted, 4) * 4;
    const dim3 grid = grid_of(ceil_div(pixels, kThreads), ceil_div(shape.channels, count));
    if (shape.channels % 4 == 0 && aligned(task.w1) && aligned(task.w2)) {
      launch(warp_planes<T, kCombine, 4>, grid, dim3(kThreads), on, task, count);
    } else {
      launch(warp_planes<T, kCombine, 1>, grid, dim3(kThreads), on, task, count);
    }
    return;
  }
  const bool packs = shape.channels % kPack<T> == 0 && aligned(task.features) && aligned(task.out) &&
                     (!kCombine || (aligned(task.present) && aligned(task.w1) && aligned(task.w2)));
  if (!packs) {
    launch_pixels<T, kCombine, 1, 1, 1>(task, on);
  } else if (shape.batch * shape.height * shape.width * (shape.channels / kPack<T>) < kManyThreads) {
    launch_pixels<T, kCombine, kPack<T>, 1, 1>(task, on);
  } else {
    launch_pixels<T, kCombine, kPack<T>, kTileColumns, kTileRows>(task, on);
  }
}

struct Combine {
  const Tensor &present, &w1, &w2;
};

Tensor forward(const Tensor& features, const Tensor& flow, MemoryFormat format, const Combine* combine) {
  const Shape shape = check_features(features);
  check_flow(flow, features);
  const torch::stable::accelerator::DeviceGuard guard(features.get_device_index());
  Tensor out = empty_like(features, format);
  if (out.numel() == 0) return out;
  const bool pixels = format == MemoryFormat::ChannelsLast;
  const Tensor from = pixels ? channels_last(features) : features;
  with_type(features, [&](auto type) {
    using T = decltype(type);
    Forward<T> task{shape, flow_of(flow), data<T>(from), pixels ? dense_pixels(shape) : strides_of(from)};
    task.out = static_cast<T*>(out.mutable_data_ptr());
    if (combine) {
      task.present = data<T>(combine->present);
      task.present_strides = strides_of(combine->present);
      task.w1 = data<float>(combine->w1);
      task.w2 = data<float>(combine->w2);
      launch_any<T, true>(task, pixels, out);
    } else {
      launch_any<T, false>(task, pixels, out);
    }
  });
  return out;
}

Tensor warp(const Tensor& features, const Tensor& flow) {
  check_features(features);
  return forward(features, flow, format_of(features), nullptr);
}

Tensor warp_combine(const Tensor& present, const Tensor& previous, const Tensor& flow, const Tensor& w1,
                    const Tensor& w2) {
  check_features(present);
  check_like(previous, present, "previous");
  const Tensor weight1 = check_weight(w1, present), weight2 = check_weight(w2, present);
  const Combine combine{present, weight1, weight2};
  return forward(previous, flow, format_of(present), &combine);
}

}  // namespace
}  // namespace netwarp::cuda

STABLE_TORCH_LIBRARY_IMPL(netwarp_ros, CUDA, library) {
  library.impl("warp", TORCH_BOX(&netwarp::cuda::warp));
  library.impl("warp_combine", TORCH_BOX(&netwarp::cuda::warp_combine));
}
