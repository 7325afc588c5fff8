// SPDX-License-Identifier: Apache-2.0
// What the CPU kernels take, and the sets of them that were compiled for different instructions.
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
  const void* features;
  Strides features_strides;
  const void* present;  // null for a plain warp
  Strides present_strides;
  const float* w1;
  const float* w2;
  void* out;      // dense
  bool streamed;  // write it past the caches; then all runs of pixels (planes) or channels (pixels) are 64 bytes or more
                  // and aligned to that
};

// All maps are dense and channels-last; gradients are float32.
struct Backward {
  Shape shape;
  Element element;
  Flow flow;
  const void* grad;
  const void* features;  // of the previous frame
  const void* present;
  const float* weight;  // per channel, that `grad` is multiplied by; null for 1
  float* grad_features;  // (B, H, W, C), zeros at first
  float* grad_flow;      // (B, 2, H, W)
  float* grad_w1;        // (C,)
  float* grad_w2;        // (C,)
};

// Each kernel does the work items [begin, end); which thread does which item does not change the result.
struct Kernels {
  // Neighbouring pixels adjoin. Items: for each image, for each tile of kTile of its pixels, each channel.
  void (*warp_planes)(const Forward&, int64_t begin, int64_t end);
  // Channels adjoin. Items: the rows of all images.
  void (*warp_pixels)(const Forward&, int64_t begin, int64_t end);
  // Items: for each image, each block of kChannelBlock channels.
  void (*backward_features)(const Backward&, int64_t begin, int64_t end);
  // Items: the rows of all images.
  void (*backward_flow)(const Backward&, int64_t begin, int64_t end);
  // Items: the blocks of kChannelBlock channels.
  void (*backward_weights)(const Backward&, int64_t begin, int64_t end);
};

constexpr int64_t kTile = 4096;
constexpr int64_t kChannelBlock = 32;

extern const Kernels kernels_baseline;
#ifdef NETWARP_X86
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

}  // namespace netwarp::cpu
