// SPDX-License-Identifier: Apache-2.0
// Arguments of the kernel of resize_argmax.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace netwarp::cpu {

struct ResizeArgmax {
  Shape shape;  // of the scores: a channel is a class
  Element element;
  const void* scores;
  Strides strides;        // of the scores: classes or columns are adjacent
  int64_t height, width;  // of the result
  int64_t tile;           // the result is computed in tiles so many pixels wide; a multiple of 16
  uint8_t* out;           // (B, height, width), dense
};

constexpr int64_t kWidestTile = 512;
constexpr int64_t kRowElements = 4096;  // classes * tile at most: two rows of a tile fit in the L1 cache

#ifdef NETWARP_ISA
namespace NETWARP_ISA {
void resize_argmax(const ResizeArgmax& task, int64_t begin, int64_t end);
}  // namespace NETWARP_ISA
#endif

}  // namespace netwarp::cpu
