// SPDX-License-Identifier: Apache-2.0
// The operator resize_argmax on the CPU: it chooses a kernel and runs it on PyTorch's threads.
#include "resize_argmax.h"

#include <torch/csrc/stable/library.h>

#include <algorithm>

#include "operators.h"

namespace netwarp::cpu {

namespace {

// The widest tile of which two rows fit in the L1 cache; narrower if the tiles of a row are then of equal width.
int64_t tile_width(int64_t classes, int64_t width) {
  constexpr int64_t lanes = 16;  // the most that a vector has
  const int64_t widest = std::min(kWidestTile, kRowElements / classes / lanes * lanes);
  const int64_t tiles = (width + widest - 1) / widest;
  return ((width + tiles - 1) / tiles + lanes - 1) / lanes * lanes;
}

Tensor resize_argmax(const Tensor& scores, int64_t height, int64_t width) {
  const Shape shape = check_scores(scores, height, width);
  Tensor out = empty({shape.batch, height, width}, ScalarType::Byte, scores);
  if (out.numel() == 0) return out;

  const auto adjacent = [&](int64_t axis) { return scores.size(axis) == 1 || scores.stride(axis) == 1; };
  const Tensor from = adjacent(1) || adjacent(3) ? scores : torch::stable::contiguous(scores);
  const Kernels& chosen = kernels();
  ResizeArgmax task{};
  task.shape = shape;
  task.element = element_of(from);
  task.scores = from.const_data_ptr();
  task.strides = strides_of(from);
  if (shape.width == 1) task.strides.column = 1;  // a tensor's stride of an axis of size 1 means nothing
  task.height = height;
  task.width = width;
  task.tile = tile_width(shape.channels, width);
  task.out = out.mutable_data_ptr<uint8_t>();
  const int64_t tiles = (width + task.tile - 1) / task.tile;
  torch::stable::parallel_for(0, shape.batch * tiles * height, grain(task.tile * shape.channels),
                              [&](int64_t begin, int64_t end) { chosen.resize_argmax(task, begin, end); });
  return out;
}

}  // namespace
}  // namespace netwarp::cpu

STABLE_TORCH_LIBRARY_IMPL(netwarp_ros, CPU, library) {
  library.impl("resize_argmax", TORCH_BOX(&netwarp::cpu::resize_argmax));
}
