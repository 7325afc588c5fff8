// SPDX-License-Identifier: Apache-2.0
// What the CUDA kernels share: element types, neighbours with their weights, and launches.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>
#include <torch/headeronly/util/shim_utils.h>

#include <cstdint>
#include <cstring>

#include "../arguments.h"
#include "../geometry.h"

// A CPU build of PyTorch lacks this function. The weak symbol lets the library be loaded there too. It is never called
// there, because there are no CUDA tensors.
#pragma weak aoti_torch_get_current_cuda_stream

namespace netwarp::cuda {

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ inline void assign(float& to, float value) { to = value; }
__device__ inline void assign(__half& to, float value) { to = __float2half_rn(value); }
__device__ inline void assign(__nv_bfloat16& to, float value) { to = __float2bfloat16_rn(value); }

// Adjacent elements that are loaded and stored by one instruction.
template <typename T, int kCount>
struct alignas(sizeof(T) * kCount) Pack {
  T element[kCount];
};

template <typename T>
constexpr int kPack = 16 / sizeof(T);

// Reads as read-only data: nothing writes to the inputs while a kernel runs, so these reads need not wait for its writes.
template <typename T, int kCount>
__device__ inline Pack<T, kCount> read_pack(const T* from) {
  Pack<T, kCount> pack;
  if constexpr (sizeof(pack) == sizeof(uint4)) {
    const uint4 bits = __ldg(reinterpret_cast<const uint4*>(from));
    memcpy(&pack, &bits, sizeof(pack));
  } else {
#pragma unroll
    for (int k = 0; k < kCount; ++k) pack.element[k] = __ldg(from + k);
  }
  return pack;
}

template <int kCount>
__device__ inline Pack<float, kCount> read_weights(const float* from) {
  Pack<float, kCount> weights;
  if constexpr (kCount % 4 == 0) {
#pragma unroll
    for (int k = 0; k < kCount; k += 4) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(from + k));
      memcpy(weights.element + k, &four, sizeof(four));
    }
  } else {
#pragma unroll
    for (int k = 0; k < kCount; ++k) weights.element[k] = __ldg(from + k);
  }
  return weights;
}

struct Pixel {
  int64_t b;
  int32_t y, x;
};

__device__ inline Pixel pixel_at(const Shape& shape, int64_t index) {
  const int64_t row = index / shape.width;
  return {row / shape.height, static_cast<int32_t>(row % shape.height), static_cast<int32_t>(index % shape.width)};
}

struct Flow {
  const float* data;
  Strides strides;
};

struct Displacement {
  float u, v;
};

__device__ inline Displacement read(const Flow& flow, int64_t b, int64_t y, int64_t x) {
  const float* from = flow.data + b * flow.strides.batch + y * flow.strides.row + x * flow.strides.column;
  return {__ldg(from), __ldg(from + flow.strides.channel)};
}

// Offsets in the image and weights of the upper left, upper right, lower left and lower right neighbours.
struct Corners {
  int64_t offset[4];
  float weight[4];
};

__device__ inline Corners corners_at(const Shape& shape, Displacement by, int32_t y, int32_t x, int64_t row_stride,
                                     int64_t column_stride) {
  const int32_t width = static_cast<int32_t>(shape.width), height = static_cast<int32_t>(shape.height);
  const Place column = locate(x, by.u, width), row = locate(y, by.v, height);
  const int64_t left = column.index * column_stride, right = left + (column.index < width - 1 ? column_stride : 0);
  const int64_t top = row.index * row_stride, bottom = top + (row.index < height - 1 ? row_stride : 0);
  const float rest_x = 1.0f - column.fraction, rest_y = 1.0f - row.fraction;
  return {{top + left, top + right, bottom + left, bottom + right},
          {rest_x * rest_y, column.fraction * rest_y, rest_x * row.fraction, column.fraction * row.fraction}};
}

// The bilinear interpolation of the values of the four corners; value(corner) is a float.
template <typename Value>
__device__ inline float interpolate(const Corners& corners, const Value& value) {
  float sum = corners.weight[0] * value(0);
#pragma unroll
  for (int corner = 1; corner < 4; ++corner) sum = fmaf(corners.weight[corner], value(corner), sum);
  return sum;
}

inline Flow flow_of(const Tensor& flow) { return {flow.const_data_ptr<float>(), strides_of(flow)}; }

__host__ __device__ inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline dim3 grid_of(int64_t x, int64_t y = 1) {
  STD_TORCH_CHECK(x < (int64_t{1} << 31) && y < (1 << 16), "the maps are too large for a kernel: split the batch");
  return dim3(static_cast<unsigned>(x), static_cast<unsigned>(y));
}

// Launches on the current stream of the tensor's device.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, const Tensor& on, const Arguments&... arguments) {
  void* stream = nullptr;
  TORCH_ERROR_CODE_CHECK(aoti_torch_get_current_cuda_stream(on.get_device_index(), &stream));
  kernel<<<grid, block, 0, static_cast<cudaStream_t>(stream)>>>(arguments...);
  const cudaError_t error = cudaGetLastError();
  STD_TORCH_CHECK(error == cudaSuccess, "the operator could not launch a kernel: ", cudaGetErrorString(error));
}

// Calls body(T{}) with the type of the elements.
template <typename Body>
void with_type(const Tensor& map, const Body& body) {
  switch (map.scalar_type()) {
    case ScalarType::Half: return body(__half{});
    case ScalarType::BFloat16: return body(__nv_bfloat16{});
    default: return body(float{});
  }
}

template <typename T>
const T* data(const Tensor& tensor) {
  return static_cast<const T*>(tensor.const_data_ptr());
}

}  // namespace netwarp::cuda
