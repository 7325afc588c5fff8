// SPDX-License-Identifier: Apache-2.0
// resize_argmax on CUDA: a thread interpolates the scores of one pixel, class after class, and keeps the greatest.
// Neighbouring pixels read the same scores, which are then in the L1 cache.
#include <torch/csrc/stable/library.h>

#include "device.cuh"

namespace netwarp::cuda {

namespace {

constexpr int kThreads = 128;

struct Scores {
  Shape shape;
  Strides strides;
  int64_t height, width;  // of the result
};

// Where a pixel of the result is on an axis of the scores; see csrc/cpu/resize_argmax_kernel.cpp, which computes the same.
struct Span {
  int64_t index, next;
  float fraction;
};

__device__ inline Span span_of(int64_t position, int64_t size, int64_t resized) {
  const int64_t unit = 2 * resized, place = max((2 * position + 1) * size - resized, int64_t{0}), index = place / unit;
  return {index, size == resized ? index : min(index + 1, size - 1),
          static_cast<float>(place % unit) / static_cast<float>(unit)};
}

template <typename T, bool kResized>
__global__ void __launch_bounds__(kThreads) find_greatest(Scores task, const T* scores, uint8_t* out) {
  const int64_t pixel = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x, plane = task.height * task.width;
  if (pixel >= task.shape.batch * plane) return;
  const int64_t b = pixel / plane, y = pixel / task.width % task.height, x = pixel % task.width;
  const Span row = span_of(y, task.shape.height, task.height), column = span_of(x, task.shape.width, task.width);
  const T* upper = scores + b * task.strides.batch + row.index * task.strides.row;
  const T* lower = scores + b * task.strides.batch + row.next * task.strides.row;
  const int64_t left = column.index * task.strides.column, right = column.next * task.strides.column;
  const auto along = [&](const T* from) {
    const float value = to_float(__ldg(from + left));
    return kResized ? fmaf(column.fraction, to_float(__ldg(from + right)), (1.0f - column.fraction) * value) : value;
  };
  float greatest = 0.0f;
  int64_t chosen = 0;
  for (int64_t k = 0; k < task.shape.channels; ++k) {
    float value = along(upper);
    if constexpr (kResized) value = fmaf(row.fraction, along(lower), (1.0f - row.fraction) * value);
    // As in torch.argmax, NaN is greater than any number, and the first of equals counts.
    if (k == 0 || (!(value <= greatest) && greatest == greatest)) {
      greatest = value;
      chosen = k;
    }
    upper += task.strides.channel;
    lower += task.strides.channel;
  }
  out[pixel] = static_cast<uint8_t>(chosen);
}

Tensor resize_argmax(const Tensor& scores, int64_t height, int64_t width) {
  const Shape shape = check_scores(scores, height, width);
  const torch::stable::accelerator::DeviceGuard guard(scores.get_device_index());
  Tensor out = empty({shape.batch, height, width}, ScalarType::Byte, scores);
  if (out.numel() == 0) return out;
  const Scores task{shape, strides_of(scores), height, width};
  const bool resized = height != shape.height || width != shape.width;
  with_type(scores, [&](auto type) {
    using T = decltype(type);
    launch(resized ? find_greatest<T, true> : find_greatest<T, false>, grid_of(ceil_div(out.numel(), kThreads)),
           dim3(kThreads), out, task, data<T>(scores), out.mutable_data_ptr<uint8_t>());
  });
  return out;
}

}  // namespace
}  // namespace netwarp::cuda

STABLE_TORCH_LIBRARY_IMPL(netwarp_ros, CUDA, library) {
  library.impl("resize_argmax", TORCH_BOX(&netwarp::cuda::resize_argmax));
}
