// SPDX-License-Identifier: Apache-2.0
#pragma once

#include <cstdint>

namespace netwarp {

// Of feature maps (B, C, H, W).
struct Shape {
  int64_t batch, channels, height, width;
};

// Steps between neighbours, in elements.
struct Strides {
  int64_t batch, channel, row, column;
};

}  // namespace netwarp
