// SPDX-License-Identifier: Apache-2.0
// Registers the operators with PyTorch; docs/operator.md says what they compute.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(netwarp_ros, library) {
  library.def("warp(Tensor features, Tensor flow) -> Tensor");
  library.def("warp_combine(Tensor present, Tensor previous, Tensor flow, Tensor w1, Tensor w2) -> Tensor");
  // Gradients of sum(grad * weight * warp(features, flow)), with a weight per channel; 1 if it is not given.
  library.def("warp_backward_features(Tensor grad, Tensor flow, Tensor? weight, bool deterministic) -> Tensor");
  library.def("warp_backward_flow(Tensor grad, Tensor features, Tensor flow, Tensor? weight) -> Tensor");
  // Gradients of warp_combine's w1 and w2.
  library.def(
      "warp_combine_backward_weights(Tensor grad, Tensor present, Tensor previous, Tensor flow) -> (Tensor, Tensor)");
  library.def("resize_argmax(Tensor scores, SymInt height, SymInt width) -> Tensor");
  // DIS optical flow, on CUDA; netwarp_ros/ops/dis.py says what they compute.
  library.def("dis_pyramid(Tensor frame, int first, int last) -> Tensor");
  library.def(
      "dis_flow(Tensor present, Tensor previous, Tensor? start, int height, int width, int level, int first, "
      "int finest, int coarsest, int stride, int rounds, int steps, int refinements) -> Tensor");
  // The permutohedral lattice, on the CPU; netwarp_ros/ops/lattice.py says what they compute.
  library.def("lattice_build(Tensor positions) -> (Tensor, Tensor, Tensor)");
  library.def("lattice_splat(Tensor values, Tensor vertices, Tensor weights, int count) -> Tensor");
  library.def("lattice_blur(Tensor values, Tensor neighbors, Tensor taps) -> Tensor");
  library.def("lattice_slice(Tensor values, Tensor vertices, Tensor weights) -> Tensor");
}
