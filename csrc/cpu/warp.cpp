// SPDX-License-Identifier: Apache-2.0
// The operators on the CPU: they choose a kernel and run it on PyTorch's threads.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <cstdlib>
#include <string>
#include <tuple>
#include <vector>

#include "operators.h"

namespace netwarp::cpu {

namespace {

// The kernels of an instruction set.
struct Choice {
  const char* name;
  const Kernels* kernels;
};

// What this processor can run, the fastest first.
std::vector<Choice> choices() {
  std::vector<Choice> choices;
#if defined(NETWARP_X86)
  const char* variable = std::getenv("ATEN_CPU_CAPABILITY");
  const std::string limit = variable ? variable : "";
  __builtin_cpu_init();
  const bool avx2 = limit != "default" && __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c");
  const bool avx512 = avx2 && limit != "avx2" && __builtin_cpu_supports("avx512f") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                      __builtin_cpu_supports("avx512dq");
  if (avx512) choices.push_back({"avx512", &kernels_avx512});
  if (avx2) choices.push_back({"avx2", &kernels_avx2});
#elif defined(NETWARP_ARM)
  choices.push_back({"neon", &kernels_neon});
#endif
  choices.push_back({"baseline", &kernels_baseline});
  return choices;
}

const Kernels& choose() {
  const char* variable = std::getenv("NETWARP_ISA");
  const std::string wanted = variable ? variable : "";
  std::string names;
  for (const Choice& choice : choices()) {
    if (wanted.empty() || wanted == choice.name) return *choice.kernels;
    names += (names.empty() ? "" : ", ") + std::string(choice.name);
  }
  STD_TORCH_CHECK(false, "NETWARP_ISA is '", wanted, "': give an instruction set that can be used here: ", names);
}

}  // namespace

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

namespace {

Flow flow_of(const Tensor& flow) { return {flow.const_data_ptr<float>(), strides_of(flow)}; }

// warp_planes takes maps of any strides, except that neighbours in a row must be adjacent.
Tensor with_dense_rows(const Tensor& map) {
  return map.stride(3) == 1 || map.size(3) == 1 ? map : torch::stable::contiguous(map);
}

// Whether to write a channels-last result past the caches: if it is too large for them, and pixels fill cache lines.
bool is_streamed(const Tensor& out) {
  constexpr int64_t too_large = 32 << 20, line = 64;
  const int64_t size = static_cast<int64_t>(out.element_size());
  const bool aligned = reinterpret_cast<uintptr_t>(out.const_data_ptr()) % line == 0 && out.size(1) * size % line == 0;
  return aligned && out.numel() * size >= too_large;
}

// `task` has the present features and the weights set for warp_combine, and is empty for warp.
Tensor forward(const Tensor& features, const Tensor& flow, MemoryFormat format, Forward task) {
  const Shape shape = check_features(features);
  check_flow(flow, features);
  Tensor out = empty_like(features, format);
  if (out.numel() == 0) return out;

  const Kernels& chosen = kernels();
  const bool planes = format == MemoryFormat::Contiguous;
  const Tensor from = planes ? with_dense_rows(features) : channels_last(features);
  task.shape = shape;
  task.element = element_of(features);
  task.flow = flow_of(flow);
  task.features = from.const_data_ptr();
  task.features_strides = planes ? strides_of(from) : dense_pixels(shape);
  task.out = out.mutable_data_ptr();
  task.streamed = !planes && is_streamed(out);
  if (planes) {
    const int64_t blocks = (shape.channels + kPlaneBlock - 1) / kPlaneBlock;
    torch::stable::parallel_for(0, shape.batch * blocks * shape.height, grain(shape.width * kPlaneBlock),
                                [&](int64_t begin, int64_t end) { chosen.warp_planes(task, begin, end); });
  } else {
    torch::stable::parallel_for(0, shape.batch * shape.height, grain(shape.width * shape.channels),
                                [&](int64_t begin, int64_t end) { chosen.warp_pixels(task, begin, end); });
  }
  return out;
}

Tensor warp(const Tensor& features, const Tensor& flow) {
  check_features(features);
  return forward(features, flow, format_of(features), Forward{});
}

Tensor warp_combine(const Tensor& present, const Tensor& previous, const Tensor& flow, const Tensor& w1,
                    const Tensor& w2) {
  check_features(present);
  check_like(previous, present, "previous");
  const MemoryFormat format = format_of(present);
  const Tensor blended = format == MemoryFormat::Contiguous ? with_dense_rows(present) : present;
  const Tensor weight1 = check_weight(w1, present), weight2 = check_weight(w2, present);
  Forward task{};
  task.present = blended.const_data_ptr();
  task.present_strides = strides_of(blended);
  task.w1 = weight1.const_data_ptr<float>();
  task.w2 = weight2.const_data_ptr<float>();
  return forward(previous, flow, format, task);
}

// The backward kernels work on channels-last maps; other maps are converted first.

Tensor backward_features(const Tensor& grad, const Tensor& flow, const std::optional<Tensor>& weight, bool) {
  const Shape shape = check_features(grad);
  check_flow(flow, grad);
  const Tensor dense = channels_last(grad);
  Tensor sums = empty({shape.batch, shape.channels, shape.height, shape.width}, ScalarType::Float, grad,
                      MemoryFormat::ChannelsLast);
  torch::stable::zero_(sums);
  const std::optional<Tensor> factor = weight ? std::optional(check_weight(*weight, grad)) : std::nullopt;
  const Kernels& chosen = kernels();
  Backward task{};
  task.shape = shape;
  task.element = element_of(grad);
  task.flow = flow_of(flow);
  task.grad = dense.const_data_ptr();
  task.weight = factor ? factor->const_data_ptr<float>() : nullptr;
  task.grad_features = sums.mutable_data_ptr<float>();
  const int64_t blocks = (shape.channels + kChannelBlock - 1) / kChannelBlock;
  torch::stable::parallel_for(0, shape.batch * blocks, grain(shape.height * shape.width * kChannelBlock),
                              [&](int64_t begin, int64_t end) { chosen.backward_features(task, begin, end); });
  return torch::stable::to(sums, grad.scalar_type());
}

Tensor backward_flow(const Tensor& grad, const Tensor& features, const Tensor& flow,
                     const std::optional<Tensor>& weight) {
  const Shape shape = check_features(features);
  check_like(grad, features, "grad");
  check_flow(flow, features);
  const Tensor dense_grad = channels_last(grad), dense_features = channels_last(features);
  const std::optional<Tensor> factor = weight ? std::optional(check_weight(*weight, grad)) : std::nullopt;
  Tensor out = empty({shape.batch, 2, shape.height, shape.width}, ScalarType::Float, grad);
  const Kernels& chosen = kernels();
  Backward task{};
  task.shape = shape;
  task.element = element_of(features);
  task.flow = flow_of(flow);
  task.grad = dense_grad.const_data_ptr();
  task.features = dense_features.const_data_ptr();
  task.weight = factor ? factor->const_data_ptr<float>() : nullptr;
  task.grad_flow = out.mutable_data_ptr<float>();
  torch::stable::parallel_for(0, shape.batch * shape.height, grain(shape.width * shape.channels),
                              [&](int64_t begin, int64_t end) { chosen.backward_flow(task, begin, end); });
  return out;
}

std::tuple<Tensor, Tensor> backward_weights(const Tensor& grad, const Tensor& present, const Tensor& previous,
                                            const Tensor& flow) {
  const Shape shape = check_features(present);
  check_like(previous, present, "previous");
  check_like(grad, present, "grad");
  check_flow(flow, present);
  const Tensor dense_grad = channels_last(grad), dense_present = channels_last(present);
  const Tensor dense_previous = channels_last(previous);
  Tensor grad_w1 = empty({shape.channels}, ScalarType::Float, grad);
  Tensor grad_w2 = empty({shape.channels}, ScalarType::Float, grad);
  const Kernels& chosen = kernels();
  Backward task{};
  task.shape = shape;
  task.element = element_of(present);
  task.flow = flow_of(flow);
  task.grad = dense_grad.const_data_ptr();
  task.features = dense_previous.const_data_ptr();
  task.present = dense_present.const_data_ptr();
  task.grad_w1 = grad_w1.mutable_data_ptr<float>();
  task.grad_w2 = grad_w2.mutable_data_ptr<float>();
  const int64_t blocks = (shape.channels + kChannelBlock - 1) / kChannelBlock;
  torch::stable::parallel_for(0, blocks, grain(shape.batch * shape.height * shape.width * kChannelBlock),
                              [&](int64_t begin, int64_t end) { chosen.backward_weights(task, begin, end); });
  return {grad_w1, grad_w2};
}

}  // namespace
}  // namespace netwarp::cpu

STABLE_TORCH_LIBRARY_IMPL(netwarp_ros, CPU, library) {
  library.impl("warp", TORCH_BOX(&netwarp::cpu::warp));
  library.impl("warp_combine", TORCH_BOX(&netwarp::cpu::warp_combine));
  library.impl("warp_backward_features", TORCH_BOX(&netwarp::cpu::backward_features));
  library.impl("warp_backward_flow", TORCH_BOX(&netwarp::cpu::backward_flow));
  library.impl("warp_combine_backward_weights", TORCH_BOX(&netwarp::cpu::backward_weights));
}
