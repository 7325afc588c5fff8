// SPDX-License-Identifier: Apache-2.0
// What the operators on the CPU share.
#pragma once

#include <algorithm>
#include <cstdint>

#include "../arguments.h"
#include "kernels.h"

namespace netwarp::cpu {

// The kernels for the instruction set that NETWARP_ISA names, or else the fastest that this processor can run.
// ATEN_CPU_CAPABILITY limits both, as it limits PyTorch's own. It throws an error: call it outside of parallel_for.
const Kernels& kernels();

// The least number of work items of so many elements that are worth a thread.
inline int64_t grain(int64_t elements) { return std::max<int64_t>(1, (1 << 14) / std::max<int64_t>(1, elements)); }

inline Element element_of(const Tensor& map) {
  switch (map.scalar_type()) {
    case ScalarType::Half: return Element::float16;
    case ScalarType::BFloat16: return Element::bfloat16;
    default: return Element::float32;
  }
}

}  // namespace netwarp::cpu
