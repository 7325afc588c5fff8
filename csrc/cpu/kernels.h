// SPDX-License-Identifier: Apache-2.0
// Arguments of the CPU kernels, and the sets of kernels, one for each instruction set.
#pragma once

#include <cstdint>

#include "../shape.h"

namespace netwarp::cpu {

enum class Element { float32, float16, bfloat16 };

struct Flow {
  const float* data;
  Strides strides;  // `channel` leads from u to v
};

// out = features warped along flow; or, with `present`, out = w1 * present + w2 * (features warped along flow).
struct Forward {
  Shape shape;
  Element element;
  Flow flow;
  const void* features;  // for warp_planes, columns are adjacent; for warp_pixels, the maps are dense
  Strides features_strides;
  const void* present;  // null for a plain warp
  Strides present_strides;
  const float* w1;
  const float* w2;
  void* out;      // dense
  bool streamed;  // warp_pixels writes `out` past the caches; then each pixel starts and ends at a multiple of 64 bytes
};

// All feature maps are dense and channels-last. Gradients that are computed are float32.
struct Backward {
  Shape shape;
  Element element;
  Flow flow;
  const void* grad;
  const void* features;  // of the previous frame
  const void* present;
  const float* weight;  // per channel, factor of `grad`; null for 1
  float* grad_features;  // (B, H, W, C), zeros before the call
  float* grad_flow;      // (B, 2, H, W)
  float* grad_w1;        // (C,)
  float* grad_w2;        // (C,)
};

struct ResizeArgmax;  // resize_argmax.h

// A kernel processes the work items [begin, end). How items are divided among threads does not change the result.
struct Kernels {
  // For contiguous maps. Items: for each image, each block of kPlaneBlock channels, each row.
  void (*warp_planes)(const Forward&, int64_t begin, int64_t end);
  // For channels-last maps. Items: the rows of all images.
  void (*warp_pixels)(const Forward&, int64_t begin, int64_t end);
  // Items: for each image, each block of kChannelBlock channels.
  void (*backward_features)(const Backward&, int64_t begin, int64_t end);
  // Items: the rows of all images.
  void (*backward_flow)(const Backward&, int64_t begin, int64_t end);
  // Items: the blocks of kChannelBlock channels.
  void (*backward_weights)(const Backward&, int64_t begin, int64_t end);
  void (*resize_argmax)(const ResizeArgmax&, int64_t begin, int64_t end);
};

constexpr int64_t kPlaneBlock = 16;  // in float32, the channels of a pixel fill a cache line
constexpr int64_t kChannelBlock = 32;

extern const Kernels kernels_baseline;
#ifdef NETWARP_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#elif defined(NETWARP_ARM)
extern const Kernels kernels_neon;
#endif

}  // namespace netwarp::cpu
