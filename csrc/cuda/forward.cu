// SPDX-License-Identifier: Apache-2.0
// warp and warp_combine on CUDA. They allocate nothing but the result (and a copy of features in another layout), and
// do not wait for the device.
#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "device.cuh"

namespace netwarp::cuda {

namespace {

constexpr int kThreads = 128;
constexpr int64_t kManyThreads = 1 << 18;  // with more threads than this, each gets more than one pixel

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

// Channels-last: a thread computes kCount channels of kPixels neighbours in a row. In smooth flow, neighbouring pixels
// read two of the same four pixels, which the second one finds in the L1 cache. threadIdx.x counts along the channels.
template <typename T, bool kCombine, int kCount, int kPixels>
__global__ void __launch_bounds__(kThreads) warp_pixels(Forward<T> task, unsigned runs) {
  using Values = Pack<T, kCount>;
  const auto [batch, channels, height, width] = task.shape;
  const int64_t c = (static_cast<int64_t>(blockIdx.y) * blockDim.x + threadIdx.x) * kCount;
  const int64_t row = blockIdx.x / runs;
  const int64_t first = (static_cast<int64_t>(blockIdx.x % runs) * blockDim.y + threadIdx.y) * kPixels;
  if (c >= channels) return;
  const int64_t b = row / height, y = row % height;
  const T* image = task.features + b * task.features_strides.batch + c;

  float w1[kCount], w2[kCount];
  if constexpr (kCombine) {
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      w1[k] = __ldg(task.w1 + c + k);
      w2[k] = __ldg(task.w2 + c + k);
    }
  }
#pragma unroll
  for (int pixel = 0; pixel < kPixels; ++pixel) {
    const int64_t x = first + pixel;
    if (x >= width) return;
    const Corners corners = corners_at(task.shape, read(task.flow, b, y, x), y, x, task.features_strides.row,
                                       task.features_strides.column);
    Values from[4];
#pragma unroll
    for (int k = 0; k < 4; ++k) from[k] = *reinterpret_cast<const Values*>(image + corners.offset[k]);
    const int64_t at = (row * width + x) * channels + c;
    Values present;
    if constexpr (kCombine) present = *reinterpret_cast<const Values*>(task.present + at);
    Values out;
#pragma unroll
    for (int k = 0; k < kCount; ++k) {
      float value = corners.weight[0] * to_float(from[0].element[k]);
#pragma unroll
      for (int corner = 1; corner < 4; ++corner)
        value = fmaf(corners.weight[corner], to_float(from[corner].element[k]), value);
      if constexpr (kCombine) value = fmaf(w2[k], value, w1[k] * to_float(present.element[k]));
      assign(out.element[k], value);
    }
    *reinterpret_cast<Values*>(task.out + at) = out;
  }
}

// Any strides: a thread computes `count` channels of one pixel; neighbouring threads compute neighbouring pixels.
template <typename T, bool kCombine>
__global__ void __launch_bounds__(kThreads) warp_planes(Forward<T> task, int64_t count) {
  const auto [batch, channels, height, width] = task.shape;
  const Strides from = task.features_strides, with = task.present_strides;
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, plane = height * width;
  if (pixel >= batch * plane) return;
  const int64_t b = pixel / plane, y = pixel % plane / width, x = pixel % width;
  const Corners corners = corners_at(task.shape, read(task.flow, b, y, x), y, x, from.row, from.column);
  const int64_t begin = blockIdx.y * count, end = min(begin + count, channels);
  const T* image = task.features + b * from.batch;
  const T* present = task.present + b * with.batch + y * with.row + x * with.column;
  T* out = task.out + b * channels * plane + y * width + x;
#pragma unroll 4
  for (int64_t c = begin; c < end; ++c) {
    const T* source = image + c * from.channel;
    float value = corners.weight[0] * to_float(source[corners.offset[0]]);
#pragma unroll
    for (int corner = 1; corner < 4; ++corner)
      value = fmaf(corners.weight[corner], to_float(source[corners.offset[corner]]), value);
    if constexpr (kCombine)
      value = fmaf(__ldg(task.w2 + c), value, __ldg(task.w1 + c) * to_float(present[c * with.channel]));
    assign(out[c * plane], value);
  }
}

template <typename T, bool kCombine, int kCount, int kPixels>
void launch_pixels(const Forward<T>& task, const Tensor& on) {
  const int64_t vectors = ceil_div(task.shape.channels, kCount);
  int along_channels = 1;
  while (along_channels < vectors && along_channels < kThreads) along_channels *= 2;
  const dim3 block(along_channels, kThreads / along_channels);
  const int64_t runs = ceil_div(task.shape.width, block.y * kPixels);
  launch(warp_pixels<T, kCombine, kCount, kPixels>,
         grid_of(task.shape.batch * task.shape.height * runs, ceil_div(vectors, along_channels)), block, on, task,
         static_cast<unsigned>(runs));
}

template <typename T, bool kCombine>
void launch_any(const Forward<T>& task, bool channels_last, const Tensor& on) {
  const Shape& shape = task.shape;
  if (!channels_last) {
    const int64_t pixels = shape.batch * shape.height * shape.width;
    const int64_t count = std::clamp<int64_t>(pixels * shape.channels / kManyThreads, 4, 64);
    launch(warp_planes<T, kCombine>, grid_of(ceil_div(pixels, kThreads), ceil_div(shape.channels, count)),
           dim3(kThreads), on, task, count);
    return;
  }
  const auto aligned = [](const void* pointer) { return reinterpret_cast<uintptr_t>(pointer) % 16 == 0; };
  const bool packs = shape.channels % kPack<T> == 0 && aligned(task.features) && aligned(task.out) &&
                     (!kCombine || aligned(task.present));
  if (!packs) {
    launch_pixels<T, kCombine, 1, 1>(task, on);
  } else if (shape.batch * shape.height * shape.width * (shape.channels / kPack<T>) < kManyThreads) {
    launch_pixels<T, kCombine, kPack<T>, 1>(task, on);
  } else {
    launch_pixels<T, kCombine, kPack<T>, 4>(task, on);
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
