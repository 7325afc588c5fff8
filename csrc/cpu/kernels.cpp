// SPDX-License-Identifier: Apache-2.0
// The CPU kernels. This file is compiled once for each instruction set, named by NETWARP_ISA.
#include "kernels.h"

#include <new>

#include "../geometry.h"
#include "resize_argmax.h"
#include "simd.h"

namespace netwarp::cpu {
namespace NETWARP_ISA {

namespace {

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// ---- Places: where a run of pixels of a row is read

constexpr int64_t kRun = 128;  // pixels whose places are computed together

// Pixels beyond the run complete the last vector. They move as the run's last pixel does.
struct Places {
  int64_t padded;
  float u[kRun], v[kRun];  // the displacements
  int32_t column[kRun], row[kRun];
  float x[kRun], y[kRun];  // the fractions
};

inline void find(Places& places, const Shape& shape, const Flow& flow, int64_t b, int64_t y, int64_t x, int64_t count) {
  const int64_t step = flow.strides.column;
  const float* u = flow.data + b * flow.strides.batch + y * flow.strides.row + x * step;
  const float* v = u + flow.strides.channel;
  for (int64_t i = 0; i < count; ++i) {
    places.u[i] = u[i * step];
    places.v[i] = v[i * step];
  }
  const int64_t padded = (count + kLanes - 1) / kLanes * kLanes;
  for (int64_t i = count; i < padded; ++i) {
    places.u[i] = places.u[count - 1];
    places.v[i] = places.v[count - 1];
  }
  const int32_t first = (int32_t)x, here = (int32_t)y, width = (int32_t)shape.width, height = (int32_t)shape.height;
  for (int32_t i = 0; i < (int32_t)padded; ++i) {
    const Place column = locate(first + i, places.u[i], width), row = locate(here, places.v[i], height);
    places.column[i] = column.index;
    places.row[i] = row.index;
    places.x[i] = column.fraction;
    places.y[i] = row.fraction;
  }
  places.padded = padded;
}

// Offsets in an image, in elements, and weights of the upper left, upper right, lower left and lower right neighbours.
struct Corners {
  int64_t offset[4][kRun];
  alignas(16) float weight[kRun][4];
};

// The pixel at (column, row) of the image is (row & mask) * shape.width + column pixels of `stride` elements from its
// beginning.
inline void fill(Corners& corners, const Places& places, const Shape& shape, int64_t stride, int32_t mask = -1) {
  const int32_t last_column = (int32_t)(shape.width - 1), last_row = (int32_t)(shape.height - 1);
  const uint32_t width = (uint32_t)shape.width;
  for (int64_t i = 0; i < places.padded; ++i) {
    const int32_t column = places.column[i], row = places.row[i], next_row = row + (row < last_row);
    const int64_t upper = (int64_t)((uint64_t)(uint32_t)(row & mask) * width + (uint32_t)column) * stride;
    const int64_t lower = (int64_t)((uint64_t)(uint32_t)(next_row & mask) * width + (uint32_t)column) * stride;
    const int64_t right = column < last_column ? stride : 0;
    corners.offset[0][i] = upper;
    corners.offset[1][i] = upper + right;
    corners.offset[2][i] = lower;
    corners.offset[3][i] = lower + right;
  }
  for (int64_t i = 0; i < places.padded; ++i) {
    const float x = places.x[i], y = places.y[i], rest_x = 1.0f - x, rest_y = 1.0f - y;
    corners.weight[i][0] = rest_x * rest_y;
    corners.weight[i][1] = x * rest_y;
    corners.weight[i][2] = rest_x * y;
    corners.weight[i][3] = x * y;
  }
}

// Reads a pixel's corners in an image of elements T: sampler(c, lanes) interpolates the channels from c on.
template <typename T>
struct Sampler {
  const T *p0, *p1, *p2, *p3;
  Vec k0, k1, k2, k3;

  Sampler(const T* image, const Corners& corners, int64_t i)
      : p0(image + corners.offset[0][i]),
        p1(image + corners.offset[1][i]),
        p2(image + corners.offset[2][i]),
        p3(image + corners.offset[3][i]) {
    broadcast_each(corners.weight[i], k0, k1, k2, k3);
  }
  template <typename Lanes>
  Vec operator()(int64_t c, Lanes lanes) const {
    Vec value = k0 * load(p0 + c, lanes);
    value = fma(k1, load(p1 + c, lanes), value);
    value = fma(k2, load(p2 + c, lanes), value);
    return fma(k3, load(p3 + c, lanes), value);
  }
};

// ---- Planes (contiguous maps): a block of channels is transposed row by row. So the lanes of a vector are channels
// while pixels are read, wherever they are, and pixels while the result is written.

// Calls body(i, lanes) for vectors of pixels that cover [0, count). The last one overlaps the one before it, which is
// faster than an incomplete one.
template <typename Body>
inline __attribute__((always_inline)) void for_overlapping_vectors(int64_t count, const Body& body) {
  if (count < kLanes) return body(0, First{(int)count});
  for (int64_t i = 0; i < count; i += kLanes) body(min(i, count - kLanes), All{});
}

// The transposed rows of a block of channels, in float32. A row is transposed when it is first read. It is kept in its
// slot until another row needs the slot. There are as many slots as the rows that a run of pixels reads, or more.
template <typename T>
class Rows {
 public:
  explicit Rows(const Forward& task) : task_(task) { resize(8); }
  Rows(const Rows&) = delete;
  ~Rows() { ::operator delete(memory_, kAlign); }

  const float* data() const { return (const float*)memory_; }
  int32_t mask() const { return (int32_t)slots_ - 1; }  // row y is in slot y & mask

  // Turns to the block of channels that begins with `channel`.
  void start(int64_t b, int64_t channel) {
    image_ = (const T*)task_.features + b * task_.features_strides.batch;
    channel_ = channel;
    for (int64_t slot = 0; slot < slots_; ++slot) held()[slot] = -1;
  }

  void hold(int64_t first, int64_t last) {
    if (last - first >= slots_) resize(2 * (last - first + 1));
    for (int64_t y = first; y <= last; ++y) {
      const int64_t slot = y & mask();
      if (held()[slot] != y) transpose_row(y, (float*)memory_ + slot * slot_size());
      held()[slot] = y;
    }
  }

 private:
  static constexpr std::align_val_t kAlign{64};

  int64_t slot_size() const { return task_.shape.width * kPlaneBlock; }
  int64_t* held() const { return (int64_t*)((float*)memory_ + slots_ * slot_size()); }

  void resize(int64_t least) {
    ::operator delete(memory_, kAlign);
    memory_ = nullptr;
    for (slots_ = 1; slots_ < min(least, task_.shape.height);) slots_ *= 2;
    memory_ = ::operator new(slots_ * (slot_size() * sizeof(float) + sizeof(int64_t)), kAlign);
    for (int64_t slot = 0; slot < slots_; ++slot) held()[slot] = -1;
  }

  void transpose_row(int64_t y, float* to) const {
    const Strides& strides = task_.features_strides;
    const int64_t last = task_.shape.channels - 1;
    for (int64_t c = channel_; c < min(channel_ + kPlaneBlock, last + 1); c += kLanes, to += kLanes) {
      const T* from[kLanes];
      for (int lane = 0; lane < kLanes; ++lane)
        from[lane] = image_ + min(c + lane, last) * strides.channel + y * strides.row;
      for_overlapping_vectors(task_.shape.width, [&](int64_t x, auto lanes) {
        Vec block[kLanes];
        for (int lane = 0; lane < kLanes; ++lane) {
          block[lane] = load(from[lane] + x, lanes);
          __builtin_prefetch(from[lane] + x + strides.row);  // processors do not foresee reads from so many places
        }
        transpose(block);
        for (int i = 0; i < lanes.count; ++i) store(to + (x + i) * kPlaneBlock, block[i], All{});
      });
    }
  }

  const Forward& task_;
  const T* image_ = nullptr;
  int64_t channel_ = 0, slots_ = 0;
  void* memory_ = nullptr;  // the slots, and for each the row that it holds
};

// Interpolates `count` pixels of kVectors vectors of channels, and writes each channel as a row of `planes`.
template <int kVectors>
inline void sample(const float* rows, const Corners& corners, int64_t count, float (*planes)[kRun]) {
  for (int64_t x = 0; x < count; x += kLanes) {
    Vec block[kVectors][kLanes];
#pragma GCC unroll 16  // then the pixels stay in registers
    for (int i = 0; i < kLanes; ++i) {
      const Sampler<float> pixel(rows, corners, x + i);
      for (int v = 0; v < kVectors; ++v) block[v][i] = pixel(v * kLanes, All{});
    }
    for (int v = 0; v < kVectors; ++v) {
      transpose(block[v]);
      for (int lane = 0; lane < kLanes; ++lane) store(planes[v * kLanes + lane] + x, block[v][lane], All{});
    }
  }
}

template <typename T, bool kCombine>
void warp_planes(const Forward& task, int64_t begin, int64_t end) {
  const auto [batch, channels, height, width] = task.shape;
  const Strides& with = task.present_strides;
  const int64_t blocks = (channels + kPlaneBlock - 1) / kPlaneBlock;
  Rows<T> rows(task);
  Places places;
  Corners corners;
  alignas(64) float planes[kPlaneBlock][kRun];
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / (height * blocks), first = item / height % blocks * kPlaneBlock, y = item % height;
    const int64_t count = min(kPlaneBlock, channels - first);
    if (item == begin || y == 0) rows.start(b, first);
    for (int64_t x = 0; x < width; x += kRun) {
      const int64_t pixels = min(kRun, width - x);
      find(places, task.shape, task.flow, b, y, x, pixels);
      int32_t top = places.row[0], bottom = top;
      for (int64_t i = 1; i < places.padded; ++i) {
        top = places.row[i] < top ? places.row[i] : top;
        bottom = places.row[i] > bottom ? places.row[i] : bottom;
      }
      rows.hold(top, min(bottom + 1, height - 1));
      fill(corners, places, task.shape, kPlaneBlock, rows.mask());
      if (count == kPlaneBlock)
        sample<kPlaneBlock / kLanes>(rows.data(), corners, pixels, planes);
      else
        for (int64_t c = 0; c < count; c += kLanes) sample<1>(rows.data() + c, corners, pixels, planes + c);
      for (int64_t c = first; c < first + count; ++c) {
        const int64_t at = b * with.batch + c * with.channel + y * with.row + x;
        const T* present = kCombine ? (const T*)task.present + at : nullptr;
        T* out = (T*)task.out + ((b * channels + c) * height + y) * width + x;
        const Vec w1 = broadcast(kCombine ? task.w1[c] : 0), w2 = broadcast(kCombine ? task.w2[c] : 0);
        for_overlapping_vectors(pixels, [&](int64_t i, auto lanes) {
          Vec value = load(planes[c - first] + i, lanes);
          if constexpr (kCombine) value = fma(w2, value, w1 * load(present + i, lanes));
          store(out + i, value, lanes);
        });
      }
    }
  }
}

// ---- Pixels (channels-last maps): the lanes of a vector are channels. Each pixel reads four runs of channels.

// Calls body(pixel, places, corners, i) for the pixels of a row; i is the pixel's index in `places` and `corners`.
template <typename Body>
inline __attribute__((always_inline)) void for_pixels(const Shape& shape, const Flow& flow, int64_t b, int64_t y,
                                                      const Body& body) {
  Places places;
  Corners corners;
  for (int64_t x = 0; x < shape.width; x += kRun) {
    const int64_t count = min(kRun, shape.width - x), pixel = (b * shape.height + y) * shape.width + x;
    find(places, shape, flow, b, y, x, count);
    fill(corners, places, shape, shape.channels);
    for (int64_t i = 0; i < count; ++i) body(pixel + i, places, corners, i);
  }
}

template <typename T, bool kCombine>
void warp_pixels(const Forward& task, int64_t begin, int64_t end) {
  const auto [batch, channels, height, width] = task.shape;
  const T* const present = (const T*)task.present;
  T* const out = (T*)task.out;
  const bool streamed = task.streamed;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / height, y = item % height;
    const T* image = (const T*)task.features + b * task.features_strides.batch;
    for_pixels(task.shape, task.flow, b, y, [&](int64_t pixel, const Places&, const Corners& corners, int64_t i) {
      const Sampler<T> sample(image, corners, i);
      const int64_t at = pixel * channels;
      for_vectors(0, channels, [&](int64_t c, auto lanes) {
        Vec value = sample(c, lanes);
        if constexpr (kCombine)
          value = fma(load(task.w2 + c, lanes), value, load(task.w1 + c, lanes) * load(present + at + c, lanes));
        write(out + at + c, value, lanes, streamed);
      });
    });
  }
  finish_streams();
}

// ---- Backward, for channels-last maps

template <typename T>
void backward_features(const Backward& task, int64_t begin, int64_t end) {
  const auto [batch, channels, height, width] = task.shape;
  const int64_t blocks = (channels + kChannelBlock - 1) / kChannelBlock;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / blocks, first = item % blocks * kChannelBlock, last = min(first + kChannelBlock, channels);
    float* image = task.grad_features + b * height * width * channels;
    for (int64_t y = 0; y < height; ++y) {
      for_pixels(task.shape, task.flow, b, y,
                 [&](int64_t pixel, const Places&, const Corners& corners, int64_t i) {
                   const T* grad = (const T*)task.grad + pixel * channels;
                   for_vectors(first, last, [&](int64_t c, auto lanes) {
                     Vec value = load(grad + c, lanes);
                     if (task.weight) value = value * load(task.weight + c, lanes);
                     for (int corner = 0; corner < 4; ++corner) {
                       float* to = image + corners.offset[corner][i] + c;
                       store(to, fma(broadcast(corners.weight[i][corner]), value, load(to, lanes)), lanes);
                     }
                   });
                 });
    }
  }
}

template <typename T>
void backward_flow(const Backward& task, int64_t begin, int64_t end) {
  const auto [batch, channels, height, width] = task.shape;
  const int64_t plane = height * width;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / height, row = item % height;
    const T* image = (const T*)task.features + b * plane * channels;
    for_pixels(task.shape, task.flow, b, row,
               [&](int64_t pixel, const Places& places, const Corners& corners, int64_t i) {
                 const T *p0 = image + corners.offset[0][i], *p1 = image + corners.offset[1][i];
                 const T *p2 = image + corners.offset[2][i], *p3 = image + corners.offset[3][i];
                 const Vec x = broadcast(places.x[i]), y = broadcast(places.y[i]);
                 const T* grad = (const T*)task.grad + pixel * channels;
                 Vec along_x{}, along_y{};
                 for_vectors(0, channels, [&](int64_t c, auto lanes) {
                   const Vec v0 = load(p0 + c, lanes), v1 = load(p1 + c, lanes);
                   const Vec v2 = load(p2 + c, lanes), v3 = load(p3 + c, lanes);
                   Vec value = load(grad + c, lanes);
                   if (task.weight) value = value * load(task.weight + c, lanes);
                   const Vec top = v1 - v0, left = v2 - v0;
                   along_x = fma(value, fma(y, (v3 - v2) - top, top), along_x);
                   along_y = fma(value, fma(x, (v3 - v1) - left, left), along_y);
                 });
                 float* to = task.grad_flow + b * plane + pixel;  // v is one plane after u
                 const int64_t column = pixel % width;
                 // Not multiplied by 0: the sums may be infinite.
                 to[0] = moves(column, places.u[i], width) ? sum(along_x) : 0.0f;
                 to[plane] = moves(row, places.v[i], height) ? sum(along_y) : 0.0f;
               });
  }
}

template <typename T>
void backward_weights(const Backward& task, int64_t begin, int64_t end) {
  const auto [batch, channels, height, width] = task.shape;
  constexpr int kVectors = kChannelBlock / kLanes;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item * kChannelBlock, last = min(first + kChannelBlock, channels);
    Vec total1[kVectors] = {}, total2[kVectors] = {};
    for (int64_t row = 0; row < batch * height; ++row) {
      const int64_t b = row / height;
      const T* image = (const T*)task.features + b * height * width * channels;
      Vec row1[kVectors] = {}, row2[kVectors] = {};  // sums by row lose less precision than one long sum
      for_pixels(task.shape, task.flow, b, row % height,
                 [&](int64_t pixel, const Places&, const Corners& corners, int64_t i) {
                   const Sampler<T> sample(image, corners, i);
                   const T* grad = (const T*)task.grad + pixel * channels;
                   const T* present = (const T*)task.present + pixel * channels;
                   for_vectors(first, last, [&](int64_t c, auto lanes) {
                     const int64_t vector = (c - first) / kLanes;
                     const Vec value = load(grad + c, lanes);
                     row1[vector] = fma(value, load(present + c, lanes), row1[vector]);
                     row2[vector] = fma(value, sample(c, lanes), row2[vector]);
                   });
                 });
      for (int vector = 0; vector < kVectors; ++vector) {
        total1[vector] += row1[vector];
        total2[vector] += row2[vector];
      }
    }
    for_vectors(first, last, [&](int64_t c, auto lanes) {
      store(task.grad_w1 + c, total1[(c - first) / kLanes], lanes);
      store(task.grad_w2 + c, total2[(c - first) / kLanes], lanes);
    });
  }
}

// ---- Dispatch by type

// Calls kernel(T{}) with the type of the elements.
template <typename Kernel>
inline void with_type(Element element, const Kernel& kernel) {
  switch (element) {
    case Element::float32: return kernel(float{});
    case Element::float16: return kernel(Half{});
    case Element::bfloat16: return kernel(BFloat16{});
  }
}

}  // namespace
}  // namespace NETWARP_ISA

#define NETWARP_CONCATENATE_(a, b) a##b
#define NETWARP_CONCATENATE(a, b) NETWARP_CONCATENATE_(a, b)

extern const Kernels NETWARP_CONCATENATE(kernels_, NETWARP_ISA) = {
    [](const Forward& task, int64_t begin, int64_t end) {
      using namespace NETWARP_ISA;
      with_type(task.element, [&](auto type) {
        task.present ? warp_planes<decltype(type), true>(task, begin, end)
                     : warp_planes<decltype(type), false>(task, begin, end);
      });
    },
    [](const Forward& task, int64_t begin, int64_t end) {
      using namespace NETWARP_ISA;
      with_type(task.element, [&](auto type) {
        task.present ? warp_pixels<decltype(type), true>(task, begin, end)
                     : warp_pixels<decltype(type), false>(task, begin, end);
      });
    },
    [](const Backward& task, int64_t begin, int64_t end) {
      using namespace NETWARP_ISA;
      with_type(task.element, [&](auto type) { backward_features<decltype(type)>(task, begin, end); });
    },
    [](const Backward& task, int64_t begin, int64_t end) {
      using namespace NETWARP_ISA;
      with_type(task.element, [&](auto type) { backward_flow<decltype(type)>(task, begin, end); });
    },
    [](const Backward& task, int64_t begin, int64_t end) {
      using namespace NETWARP_ISA;
      with_type(task.element, [&](auto type) { backward_weights<decltype(type)>(task, begin, end); });
    },
    NETWARP_ISA::resize_argmax,
};

}  // namespace netwarp::cpu
