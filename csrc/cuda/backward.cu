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
constexpr int kThreads = kWarp * kWarps;
constexpr int64_t kManyWarps = 1 << 13;  // as many as a large GPU runs at a time
constexpr unsigned kAllLanes = 0xffffffff;

template <typename T>
struct Backward {
  Shape shape;
  Flow flow;
  const T* grad;
  const T* features;
  const T* present;
  const float* weight;
};

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

// The corners that another lane holds. All lanes of a warp must call it together.
__device__ inline Corners of_lane(const Corners& corners, int lane) {
  Corners result;
#pragma unroll
  for (int corner = 0; corner < 4; ++corner) {
    result.offset[corner] = __shfl_sync(kAllLanes, corners.offset[corner], lane);
    result.weight[corner] = __shfl_sync(kAllLanes, corners.weight[corner], lane);
  }
  return result;
}

template <typename T>
__device__ inline float scaled_grad(const Backward<T>& task, int64_t pixel, int64_t c) {
  const float grad = to_float(__ldg(task.grad + pixel * task.shape.channels + c));
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

// A run is kWarp successive pixels of an image, its reach the first and the last pixel that they add to.
struct Reach {
  int64_t first, last;
};

// A thread handles a run.
__global__ void find_reaches(Shape shape, Flow flow, Reach* reaches, int64_t runs) {
  const int64_t index = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (index >= shape.batch * runs) return;
  const int64_t plane = shape.height * shape.width, begin = index % runs * kWarp, end = min(begin + kWarp, plane);
  Reach reach{plane, 0};
  Pixel at = pixel_at(shape, index / runs * plane + begin);
  for (int64_t i = begin; i < end; ++i, at = next(shape, at)) {
    const Corners corners = corners_at(shape, read(flow, at.b, at.y, at.x), at.y, at.x, shape.width, 1);
    reach = {min(reach.first, corners.offset[0]), max(reach.last, corners.offset[3])};
  }
  reaches[index] = reach;
}

// Deterministic: each sum belongs to one thread, which adds to it in the order of the pixels. A warp handles the sums of
// `band` successive pixels of an image, for kWarp channels. It finds the runs that reach its band, kWarp at a time. In
// such a run, each lane checks whether one pixel adds to the band. Then the warp adds these pixels, one after another.
template <typename T>
__global__ void __launch_bounds__(kThreads, 4)  // at most 64 registers
    scatter_in_order(Backward<T> task, const Reach* reaches, float* sums, int64_t band) {
  const auto [batch, channels, height, width] = task.shape;
  const int64_t plane = height * width, runs = ceil_div(plane, kWarp);
  const int64_t bands = ceil_div(plane, band), groups = ceil_div(channels, kWarp);
  const int64_t index = static_cast<int64_t>(blockIdx.x) * kWarps + threadIdx.y;
  const int64_t b = index / groups / bands;
  if (b >= batch) return;
  const int64_t first = index / groups % bands * band, last = min(first + band, plane) - 1;
  const int64_t begin = first * channels, end = (last + 1) * channels;
  const int64_t c = index % groups * kWarp + threadIdx.x;
  const int lane = threadIdx.x;
  float* image = sums + b * plane * channels + c;
  for (int64_t run = 0; run < runs; run += kWarp) {
    bool reached = false;
    if (run + lane < runs) {
      const Reach reach = reaches[b * runs + run + lane];
      reached = reach.first <= last && reach.last >= first;
    }
    for (unsigned left = __ballot_sync(kAllLanes, reached); left; left &= left - 1) {
      const int64_t pixel = b * plane + (run + __ffs(left) - 1) * kWarp;
      Corners corners{};
      unsigned inside = 0;  // a bit for each corner in the band
      if (pixel + lane < (b + 1) * plane) {
        corners = corners_of(task, pixel_at(task.shape, pixel + lane));
#pragma unroll
        for (int corner = 0; corner < 4; ++corner)
          if (begin <= corners.offset[corner] && corners.offset[corner] < end) inside |= 1u << corner;
      }
      for (unsigned sources = __ballot_sync(kAllLanes, inside != 0); sources; sources &= sources - 1) {
        const int source = __ffs(sources) - 1;
        const unsigned adds = __shfl_sync(kAllLanes, inside, source);
        const Corners to = of_lane(corners, source);
        if (c >= channels) continue;
        const float grad = scaled_grad(task, pixel + source, c);
#pragma unroll
        for (int corner = 0; corner < 4; ++corner)
          if (adds >> corner & 1) image[to.offset[corner]] += to.weight[corner] * grad;
      }
    }
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
    along_x += __shfl_down_sync(kAllLanes, along_x, lanes);
    along_y += __shfl_down_sync(kAllLanes, along_y, lanes);
  }
  if (threadIdx.x == 0) {
    float* to = out + at.b * plane + pixel;  // `pixel` counts b planes, of u alone; v is one plane after u
    to[0] = moves(at.x, by.u, columns) ? along_x : 0.0f;  // not multiplied: the sums may be infinite
    to[plane] = moves(at.y, by.v, rows) ? along_y : 0.0f;
  }
}

// A thread handles one channel of one chunk of pixels. `partial` is (2, chunks, C): the sums of w1, then those of w2.
// The lanes of a warp need the same corners: each lane computes those of one pixel for all.
template <typename T>
__global__ void __launch_bounds__(kThreads, 3)  // at most 80 registers: enough for the reads of three pixels
    weight_gradients(Backward<T> task, float* partial, int64_t chunks, int64_t chunk) {
  const auto [batch, channels, height, width] = task.shape;
  const int64_t index = static_cast<int64_t>(blockIdx.y) * kWarps + threadIdx.y;
  if (index >= chunks) return;
  const int64_t own = static_cast<int64_t>(blockIdx.x) * kWarp + threadIdx.x;
  const int64_t c = min(own, channels - 1);  // lanes without a channel read the last one, and write nothing
  const int64_t plane = height * width, end = min((index + 1) * chunk, batch * plane);
  float sum1 = 0, sum2 = 0;
  for (int64_t first = index * chunk; first < end; first += kWarp) {
    Corners corners{};
    if (first + threadIdx.x < end) {
      const Pixel at = pixel_at(task.shape, first + threadIdx.x);
      corners = corners_of(task, at);
#pragma unroll
      for (int corner = 0; corner < 4; ++corner) corners.offset[corner] += at.b * plane * channels;
    }
    const int count = static_cast<int>(min(end - first, int64_t{kWarp}));
#pragma unroll 4
    for (int lane = 0; lane < count; ++lane) {
      const Corners from = of_lane(corners, lane);
      const float warped =
          interpolate(from, [&](int corner) { return to_float(__ldg(task.features + from.offset[corner] + c)); });
      const int64_t at = (first + lane) * channels + c;
      const float grad = to_float(__ldg(task.grad + at));
      sum1 = fmaf(grad, to_float(__ldg(task.present + at)), sum1);
      sum2 = fmaf(grad, warped, sum2);
    }
  }
  if (own >= channels) return;
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
        const int64_t plane = shape.height * shape.width, runs = ceil_div(plane, kWarp);
        const int64_t groups = ceil_div(shape.channels, kWarp);
        const int64_t band = std::max<int64_t>(ceil_div(shape.batch * groups * plane, kManyWarps), kWarp);
        Tensor reaches = empty({shape.batch, runs, 2}, ScalarType::Long, grad);
        Reach* reach = reinterpret_cast<Reach*>(reaches.mutable_data_ptr<int64_t>());
        launch(find_reaches, grid_of(ceil_div(shape.batch * runs, kThreads)), dim3(kThreads), grad, shape,
               task.flow, reach, runs);
        launch(scatter_in_order<T>, grid_of(ceil_div(shape.batch * groups * ceil_div(plane, band), kWarps)),
               dim3(kWarp, kWarps), grad, task, reach, to, band);
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
