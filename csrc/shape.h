// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace netwarp {

// Shape of feature maps (B, C, H, W).
struct Shape {
  int64_t batch, channels, height, width;
};

constexpr int64_t kMostClasses = 256;  // of resize_argmax

// Distance between neighbours on each axis, in elements.
struct Strides {
  int64_t batch, channel, row, column;
};

}  // namespace netwarp
