// SPDX-License-Identifier: Apache-2.0
// The gradients on CUDA. The kernels work on channels-last maps; other maps are converted first. Sums are float32.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <tuple>

#include "device.cuh"

namespace netwarp::cuda {

namespace {

constexpr int kWarp = 32;
constexpr int kWarps = 8;
constexpr int64_t kManyWarps = 1 << 13;  // as many as a large GPU runs at a time

template <typename T>
struct Backward {
  Shape shape;
  Flow flow;
  const T* grad;
  const T* features;
  const T* present;
  const float* weight;
};

struct Pixel {
  int64_t b;
  int32_t y, x;
};

__device__ inline Pixel pixel_at(const Shape& shape, int64_t index) {
  const int64_t row = index / shape.width;
  return {row / shape.height, static_cast<int32_t>(row % shape.height), static_cast<int32_t>(index % shape.width)};
}

__device__ inline Pixel next(const Shape& shape, Pixel at) {
  if (++at.x < shape.width) return at;
  if (++at.y < shape.height) return {at.b, at.y, 0};
  return {at.b + 1, 0, 0};
}

template <typename T>
__device__ inline Corners corners_of(const Backward<T>& task, Pixel at) {
  const Shape& shape = task.shape;
  return corners_at(shape, read(task.flow, at.b, at.y, at.x), at.y, at.x, shape.width * shape.channels, shape.channels);
}

template <typename T>
__device__ inline float scaled_grad(const Backward<T>& task, int64_t pixel, int64_t c) {
  const float grad = to_float(task.grad[pixel * task.shape.channels + c]);
  return task.weight ? grad * __ldg(task.weight + c) : grad;
}

// A warp handles one pixel, its lanes the channels. Pixels whose flow leads to the same place add to the same sums with
// atomics, so the order of the additions, and the rounding, differs from run to run.
template <typename T>
__global__ void scatter(Backward<T> task, float* sums) {
  const auto [batch, channels, height, width] = task.shape;
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  if (pixel >= batch * height * width) return;
  const Pixel at = pixel_at(task.shape, pixel);
  const Corners corners = corners_of(task, at);
  float* image = sums + at.b * height * width * channels;
  for (int64_t c = threadIdx.x; c < channels; c += kWarp) {
    const float grad = scaled_grad(task, pixel, c);
#pragma unroll
    for (int corner = 0; corner < 4; ++corner)
      atomicAdd(image + corners.offset[corner] + c, corners.weight[corner] * grad);
  }
}

// A thread handles one channel of an image, and adds its pixels in order: slow, but deterministic.
template <typename T>
__global__ void scatter_in_order(Backward<T> task, float* sums) {
  const auto [batch, channels, height, width] = task.shape;
  const int64_t groups = ceil_div(channels, kWarp), plane = height * width;
  const int64_t b = blockIdx.x / groups, c = blockIdx.x % groups * kWarp + threadIdx.x;
  if (c >= channels) return;
  float* image = sums + b * plane * channels + c;
  Pixel at{b, 0, 0};
  for (int64_t i = 0; i < plane; ++i, at = next(task.shape, at)) {
    const Corners corners = corners_of(task, at);
    const float grad = scaled_grad(task, b * plane + i, c);
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) image[corners.offset[corner]] += corners.weight[corner] * grad;
  }
}

// A warp handles one pixel; its lanes sum over the channels, then over the lanes. No atomics.
template <typename T>
__global__ void flow_gradient(Backward<T> task, float* out) {
  const auto [batch, channels, height, width] = task.shape;
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y, plane = height * width;
  if (pixel >= batch * plane) return;
  const Pixel at = pixel_at(task.shape, pixel);
  const Displacement by = read(task.flow, at.b, at.y, at.x);
  const Corners corners = corners_of(task, at);
  const int32_t columns = static_cast<int32_t>(width), rows = static_cast<int32_t>(height);
  const float x = locate(at.x, by.u, columns).fraction, y = locate(at.y, by.v, rows).fraction;
  const T* image = task.features + at.b * plane * channels;
  float along_x = 0, along_y = 0;
  for (int64_t c = threadIdx.x; c < channels; c += kWarp) {
    float value[4];
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) value[corner] = to_float(image[corners.offset[corner] + c]);
    const float grad = scaled_grad(task, pixel, c), top = value[1] - value[0], left = value[2] - value[0];
    along_x = fmaf(grad, fmaf(y, (value[3] - value[2]) - top, top), along_x);
    along_y = fmaf(grad, fmaf(x, (value[3] - value[1]) - left, left), along_y);
  }
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
    along_x += __shfl_down_sync(0xffffffff, along_x, lanes);
    along_y += __shfl_down_sync(0xffffffff, along_y, lanes);
  }
  if (threadIdx.x == 0) {
    float* to = out + at.b * plane + pixel;  // `pixel` counts b planes, of u alone; v is one plane after u
    to[0] = moves(at.x, by.u, columns) ? along_x : 0.0f;  // not multiplied: the sums may be infinite
    to[plane] = moves(at.y, by.v, rows) ? along_y : 0.0f;
  }
}

// A thread handles one channel of one chunk of pixels. `partial` is (2, chunks, C): the sums of w1, then those of w2.
template <typename T>
__global__ void weight_gradients(Backward<T> task, float* partial, int64_t chunks, int64_t chunk) {
  const auto [batch, channels, height, width] = task.shape;
  const int64_t c = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const int64_t index = static_cast<int64_t>(blockIdx.y) * kWarps + threadIdx.y;
  if (c >= channels || index >= chunks) return;
  const int64_t plane = height * width, end = min((index + 1) * chunk, batch * plane);
  float sum1 = 0, sum2 = 0;
  Pixel at = pixel_at(task.shape, index * chunk);
  for (int64_t pixel = index * chunk; pixel < end; ++pixel, at = next(task.shape, at)) {
    const Corners corners = corners_of(task, at);
    const T* image = task.features + at.b * plane * channels + c;
    const float warped = interpolate(corners, [&](int corner) { return to_float(image[corners.offset[corner]]); });
    const float grad = to_float(task.grad[pixel * channels + c]);
    sum1 = fmaf(grad, to_float(task.present[pixel * channels + c]), sum1);
    sum2 = fmaf(grad, warped, sum2);
  }
  partial[index * channels + c] = sum1;
  partial[(chunks + index) * channels + c] = sum2;
}

Tensor backward_features(const Tensor& grad, const Tensor& flow, const std::optional<Tensor>& weight,
                         bool deterministic) {
  const Shape shape = check_features(grad);
  check_flow(flow, grad);
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Tensor dense = channels_last(grad);
  Tensor sums = empty({shape.batch, shape.channels, shape.height, shape.width}, ScalarType::Float, grad,
                      MemoryFormat::ChannelsLast);
  torch::stable::zero_(sums);
  const std::optional<Tensor> factor = weight ? std::optional(check_weight(*weight, grad)) : std::nullopt;
  if (sums.numel() > 0) {
    with_type(grad, [&](auto type) {
      using T = decltype(type);
      const Backward<T> task{shape,   flow_of(flow), data<T>(dense),
                             nullptr, nullptr,       factor ? data<float>(*factor) : nullptr};
      float* to = sums.mutable_data_ptr<float>();
      if (deterministic) {
        launch(scatter_in_order<T>, grid_of(shape.batch * ceil_div(shape.channels, kWarp)), dim3(kWarp), grad, task, to);
      } else {
        launch(scatter<T>, grid_of(ceil_div(shape.batch * shape.height * shape.width, kWarps)), dim3(kWarp, kWarps),
               grad, task, to);
      }
    });
  }
  return torch::stable::to(sums, grad.scalar_type());
}

Tensor backward_flow(const Tensor& grad, const Tensor& features, const Tensor& flow,
                     const std::optional<Tensor>& weight) {
  const Shape shape = check_features(features);
  check_like(grad, features, "grad");
  check_flow(flow, features);
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Tensor dense_grad = channels_last(grad), dense_features = channels_last(features);
  const std::optional<Tensor> factor = weight ? std::optional(check_weight(*weight, grad)) : std::nullopt;
  Tensor out = empty({shape.batch, 2, shape.height, shape.width}, ScalarType::Float, grad);
  if (out.numel() == 0) return out;
  with_type(grad, [&](auto type) {
    using T = decltype(type);
    const Backward<T> task{shape,   flow_of(flow), data<T>(dense_grad), data<T>(dense_features),
                           nullptr, factor ? data<float>(*factor) : nullptr};
    launch(flow_gradient<T>, grid_of(ceil_div(shape.batch * shape.height * shape.width, kWarps)), dim3(kWarp, kWarps),
           grad, task, out.mutable_data_ptr<float>());
  });
  return out;
}

std::tuple<Tensor, Tensor> backward_weights(const Tensor& grad, const Tensor& present, const Tensor& previous,
                                            const Tensor& flow) {
  const Shape shape = check_features(present);
  check_like(previous, present, "previous");
  check_like(grad, present, "grad");
  check_flow(flow, present);
  const torch::stable::accelerator::DeviceGuard guard(grad.get_device_index());
  const Tensor dense_grad = channels_last(grad), dense_present = channels_last(present);
  const Tensor dense_previous = channels_last(previous);
  const int64_t pixels = shape.batch * shape.height * shape.width, groups = ceil_div(shape.channels, kWarp);
  const int64_t chunks = std::clamp<int64_t>(kManyWarps / std::max<int64_t>(groups, 1), 32, 4096);
  Tensor partial = empty({2, chunks, shape.channels}, ScalarType::Float, grad);
  torch::stable::zero_(partial);
  if (grad.numel() > 0) {
    with_type(grad, [&](auto type) {
      using T = decltype(type);
      const Backward<T> task{shape,   flow_of(flow), data<T>(dense_grad), data<T>(dense_previous), data<T>(dense_present),
                             nullptr};
      launch(weight_gradients<T>, grid_of(groups, ceil_div(chunks, kWarps)), dim3(kWarp, kWarps), grad, task,
             partial.mutable_data_ptr<float>(), chunks, ceil_div(pixels, chunks));
    });
  }
  const auto total = [&](int64_t index) {
    const int64_t chunks[] = {0};
    return torch::stable::sum(torch::stable::select(partial, 0, index), torch::headeronly::IntHeaderOnlyArrayRef(chunks, 1));
  };
  return {total(0), total(1)};
}

}  // namespace
}  // namespace netwarp::cuda

STABLE_TORCH_LIBRARY_IMPL(netwarp_ros, CUDA, library) {
  library.impl("warp_backward_features", TORCH_BOX(&netwarp::cuda::backward_features));
  library.impl("warp_backward_flow", TORCH_BOX(&netwarp::cuda::backward_flow));
  library.impl("warp_combine_backward_weights", TORCH_BOX(&netwarp::cuda::backward_weights));
}
