// SPDX-License-Identifier: Apache-2.0
// Runs kernels without PyTorch, for test_arm.py: reads tasks from standard input, writes results to standard output.
//
// A task is seven int64 (kernel, element, combine, and the shape B, C, H, W), and dense arrays: the flow (B, 2, H, W), two
// maps in the layout of the kernel, and two weights per channel. The first map is warped. The second one is the map to
// blend with, or the gradient of the result.
#include <cstdio>
#include <cstdlib>
#include <vector>

#include "../csrc/cpu/kernels.h"

using namespace netwarp;
using namespace netwarp::cpu;

namespace {

template <typename T>
std::vector<T> read(int64_t count) {
  std::vector<T> values(count);
  if (std::fread(values.data(), sizeof(T), count, stdin) != (size_t)count) std::abort();
  return values;
}

void write(const void* data, size_t bytes) {
  if (std::fwrite(data, 1, bytes, stdout) != bytes) std::abort();
}

}  // namespace

int main() {
  int64_t header[7];
  while (std::fread(header, sizeof header, 1, stdin) == 1) {
    const auto [kernel, element, combine, batch, channels, height, width] = header;
    const int64_t size = element == 0 ? 4 : 2, plane = height * width, count = batch * channels * plane;
    const std::vector<float> flow = read<float>(batch * 2 * plane);
    const std::vector<char> features = read<char>(count * size), other = read<char>(count * size);
    const std::vector<float> w1 = read<float>(channels), w2 = read<float>(channels);
    const Strides planes{channels * plane, plane, width, 1};
    const Strides pixels{channels * plane, 1, width * channels, channels};
    const Shape shape{batch, channels, height, width};
    const Flow displacement{flow.data(), {2 * plane, plane, width, 1}};

    if (kernel <= 1) {
      std::vector<char> out(count * size);
      const Strides strides = kernel == 0 ? planes : pixels;
      Forward task{shape, (Element)element, displacement, features.data(), strides, combine ? other.data() : nullptr,
                   strides, w1.data(), w2.data(), out.data(), false};
      const int64_t rows = batch * height, items = rows * ((channels + kPlaneBlock - 1) / kPlaneBlock);
      kernel == 0 ? kernels_neon.warp_planes(task, 0, items) : kernels_neon.warp_pixels(task, 0, rows);
      write(out.data(), out.size());
    } else {
      std::vector<float> grad_features(count), grad_flow(2 * batch * plane), grad_w1(channels), grad_w2(channels);
      Backward task{shape, (Element)element, displacement, other.data(), features.data(), other.data(), w2.data(),
                    grad_features.data(), grad_flow.data(), grad_w1.data(), grad_w2.data()};
      const int64_t blocks = (channels + kChannelBlock - 1) / kChannelBlock;
      kernels_neon.backward_features(task, 0, batch * blocks);
      kernels_neon.backward_flow(task, 0, batch * height);
      kernels_neon.backward_weights(task, 0, blocks);
      for (const auto& result : {grad_features, grad_flow, grad_w1, grad_w2})
        write(result.data(), result.size() * sizeof(float));
    }
  }
}
