// SPDX-License-Identifier: Apache-2.0
// Checks of the operators' arguments, on any device. `netwarp_ros.ops` checks the same with better messages; these keep
// direct calls through torch.ops within bounds.
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/MemoryFormat.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <cstdint>
#include <initializer_list>
#include <optional>

#include "geometry.h"
#include "shape.h"

namespace netwarp {

using torch::headeronly::MemoryFormat;
using torch::headeronly::ScalarType;
using torch::stable::Tensor;

inline Strides strides_of(const Tensor& map) { return {map.stride(0), map.stride(1), map.stride(2), map.stride(3)}; }

// The strides of a dense channels-last map.
inline Strides dense_pixels(const Shape& shape) {
  return {shape.height * shape.width * shape.channels, 1, shape.width * shape.channels, shape.channels};
}

inline bool same_sizes(const Tensor& a, const Tensor& b) {
  if (a.dim() != b.dim()) return false;
  for (int64_t i = 0; i < a.dim(); ++i)
    if (a.size(i) != b.size(i)) return false;
  return true;
}

inline void check_device(const Tensor& tensor, const Tensor& features, const char* name) {
  STD_TORCH_CHECK(tensor.device() == features.device(), name, " and the features are on different devices");
}

inline Shape check_features(const Tensor& features) {
  STD_TORCH_CHECK(features.dim() == 4, "features have ", features.dim(), " dimensions: give (B, C, H, W)");
  const auto type = features.scalar_type();
  STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Half || type == ScalarType::BFloat16,
                  "features must be float32, float16 or bfloat16");
  STD_TORCH_CHECK(features.size(2) <= kLargestSide && features.size(3) <= kLargestSide, "features have ",
                  features.size(2), " x ", features.size(3), " pixels: give at most 2^24 in each direction");
  return {features.size(0), features.size(1), features.size(2), features.size(3)};
}

// Scores for resize_argmax, of classes that uint8 counts.
inline Shape check_scores(const Tensor& scores, int64_t height, int64_t width) {
  const Shape shape = check_features(scores);
  STD_TORCH_CHECK(shape.channels >= 1 && shape.channels <= kMostClasses, "scores have ", shape.channels,
                  " classes: give 1 to 256");
  STD_TORCH_CHECK(shape.height >= 1 && shape.width >= 1, "scores have no pixels");
  STD_TORCH_CHECK(height >= 1 && width >= 1 && height <= kLargestSide && width <= kLargestSide, "size is ", height,
                  " x ", width, ": give 1 to 2^24 pixels in each direction");
  return shape;
}

inline void check_like(const Tensor& other, const Tensor& features, const char* name) {
  STD_TORCH_CHECK(same_sizes(other, features), name, " and the features differ in shape");
  STD_TORCH_CHECK(other.scalar_type() == features.scalar_type(), name, " and the features differ in type");
  check_device(other, features, name);
}

inline void check_flow(const Tensor& flow, const Tensor& features) {
  STD_TORCH_CHECK(flow.dim() == 4 && flow.size(0) == features.size(0) && flow.size(1) == 2 &&
                      flow.size(2) == features.size(2) && flow.size(3) == features.size(3),
                  "flow must be (B, 2, H, W), with B, H and W of the features");
  STD_TORCH_CHECK(flow.scalar_type() == ScalarType::Float, "flow must be float32");
  check_device(flow, features, "flow");
}

inline Tensor check_weight(const Tensor& weight, const Tensor& features) {
  STD_TORCH_CHECK(weight.dim() == 1 && weight.size(0) == features.size(1),
                  "weights must be (C,): one for each channel");
  STD_TORCH_CHECK(weight.scalar_type() == ScalarType::Float, "weights must be float32");
  check_device(weight, features, "weights");
  return torch::stable::contiguous(weight);
}

// As in PyTorch: strides of dimensions of size 1 do not matter, and a tensor can be both channels-last and contiguous.
inline bool is_channels_last(const Tensor& map) {
  int64_t expected = 1;
  for (int64_t dimension : {1, 3, 2, 0}) {
    const int64_t size = map.size(dimension);
    if (size != 1) {
      if (map.stride(dimension) != expected) return false;
      expected *= size;
    }
  }
  return true;
}

// The format of the result: channels-last if the features are channels-last and not contiguous.
inline MemoryFormat format_of(const Tensor& features) {
  return !features.is_contiguous() && is_channels_last(features) ? MemoryFormat::ChannelsLast : MemoryFormat::Contiguous;
}

inline Tensor empty(std::initializer_list<int64_t> sizes, ScalarType type, const Tensor& like,
                    MemoryFormat format = MemoryFormat::Contiguous) {
  return torch::stable::empty(sizes, type, std::nullopt, like.device(), std::nullopt, format);
}

inline Tensor empty_like(const Tensor& map, MemoryFormat format) {
  return empty({map.size(0), map.size(1), map.size(2), map.size(3)}, map.scalar_type(), map, format);
}

inline Tensor channels_last(const Tensor& map) { return torch::stable::contiguous(map, MemoryFormat::ChannelsLast); }

}  // namespace netwarp
