// SPDX-License-Identifier: Apache-2.0
// The CPU kernels. This file is compiled once for each instruction set, named by NETWARP_ISA.
#include "kernels.h"

#include "../geometry.h"
#include "resize_argmax.h"
#include "simd.h"

namespace netwarp::cpu {
namespace NETWARP_ISA {

namespace {

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Reads the flow of `count` pixels of a row, starting at column `x`.
inline void read_flow(const Flow& flow, int64_t b, int64_t y, int64_t x, int64_t count, float* u, float* v) {
  const float* from = flow.data + b * flow.strides.batch + y * flow.strides.row + x * flow.strides.column;
  for (int64_t i = 0; i < count; ++i) {
    u[i] = from[i * flow.strides.column];
    v[i] = from[i * flow.strides.column + flow.strides.channel];
  }
}

// ---- Planes (contiguous maps): the lanes of a vector are pixels. Each reads two pairs of neighbours.

// Where the pixels of one vector are read. If they are close together, pieces of rows are loaded and permuted, which is
// many times faster than loading pixel by pixel. `rows` is the number of image rows that hold their upper neighbours,
// or 0 if they are not close together.
struct Group {
  int32_t base;
  int32_t rows;
};

constexpr int kMaxRows = 16;    // with more rows than lanes, loading pixel by pixel is faster
constexpr int kRowShift = 8;
constexpr int64_t kPlanes = 4;  // channels that are processed together

// The pixels of a tile. `index` is the offset of the upper left neighbour in the plane; in a group it is columns and
// rows << kRowShift from the group's base. `x` and `y` are the fractions. A place on the last column uses the last two
// columns with fraction 1, so that every pixel has a right neighbour; rows likewise.
struct Tile {
  alignas(64) int32_t index[kTile];
  alignas(64) float x[kTile];
  alignas(64) float y[kTile];
  Group group[kTile / kLanes];
};

// Makes a group of kLanes pixels if they are close together. `last` is the offset of the plane's last element.
inline Group make_group(const int32_t* left, const int32_t* top, int32_t* index, int64_t row_stride, int64_t last,
                        bool lower_row) {
  int32_t min_left = left[0], max_left = left[0], min_top = top[0], max_top = top[0];
  for (int lane = 1; lane < kLanes; ++lane) {
    min_left = left[lane] < min_left ? left[lane] : min_left;
    max_left = left[lane] > max_left ? left[lane] : max_left;
    min_top = top[lane] < min_top ? top[lane] : min_top;
    max_top = top[lane] > max_top ? top[lane] : max_top;
  }
  const int32_t rows = max_top - min_top + 1;
  // The window that is loaded in the last row must end within the plane.
  const int64_t wanted = min_top * row_stride + min_left;
  const int64_t base = min(wanted, last + 1 - kWindow - (rows - 1 + lower_row) * row_stride);
  const int64_t shift = wanted - base;
  if (rows > kMaxRows || base < 0 || max_left - min_left + shift > kWindow - 2) return {0, 0};
  for (int lane = 0; lane < kLanes; ++lane)
    index[lane] = (int32_t)(left[lane] - min_left + shift) | (top[lane] - min_top) << kRowShift;
  return {(int32_t)base, rows};
}

inline void fill(Tile& tile, const Forward& task, int64_t b, int64_t begin, int64_t end) {
  const auto& [batch, channels, height, width] = task.shape;
  const int32_t last_pair = (int32_t)(width > 1 ? width - 2 : 0), last_row_pair = (int32_t)(height > 1 ? height - 2 : 0);
  const int64_t row_stride = task.features_strides.row, last = (height - 1) * row_stride + width - 1;
  float u[kTile], v[kTile];
  int32_t left[kTile], top[kTile];
  for (int64_t p = begin; p < end;) {
    const int64_t y = p / width, x = p % width, count = min(width - x, end - p), at = p - begin;
    read_flow(task.flow, b, y, x, count, u, v);
    for (int64_t i = 0; i < count; ++i) {
      const Place column = locate(x + i, u[i], width), row = locate(y, v[i], height);
      left[at + i] = column.index < last_pair ? column.index : last_pair;
      top[at + i] = row.index < last_row_pair ? row.index : last_row_pair;
      tile.index[at + i] = (int32_t)(top[at + i] * row_stride + left[at + i]);
      tile.x[at + i] = column.fraction + (float)(column.index - left[at + i]);
      tile.y[at + i] = row.fraction + (float)(row.index - top[at + i]);
    }
    p += count;
  }
  int64_t count = end - begin;
  for (; count % kLanes; ++count) {  // the last vector reads these, beyond the tile
    tile.index[count] = left[count] = top[count] = 0;
    tile.x[count] = tile.y[count] = 0;
  }
  for (int64_t i = 0; i < count; i += kLanes)
    tile.group[i / kLanes] = kWindow && width > 1
                                 ? make_group(left + i, top + i, tile.index + i, row_stride, last, height > 1)
                                 : Group{0, 0};
}

// Reads pairs of neighbours. In an image one pixel wide, which has no pairs, both are the same pixel.
template <typename T>
inline Pairs read(const T* base, Int index, bool pairs) {
  if (pairs) return gather_pairs(base, index);
  Vec single;
  for (int lane = 0; lane < kLanes; ++lane) single[lane] = load(base + index[lane], First{1})[0];
  return {single, single};
}

// What all channels share for the pixels [i, i + kLanes) of a tile.
struct Samples {
  Group group;
  Int index, last_column, last_row;
  Vec weight[4];  // upper left, upper right, lower left, lower right
};

inline Samples samples_at(const Tile& tile, int64_t i) {
  const Vec x = load(tile.x + i, All{}), y = load(tile.y + i, All{}), one = broadcast(1.0f);
  const Vec rest_x = one - x, rest_y = one - y;
  return {tile.group[i / kLanes], load_int(tile.index + i), x == one, y == one,
          {rest_x * rest_y, x * rest_y, rest_x * y, x * y}};
}

// Samples one plane; `step` is the distance from a row to the next one below.
template <typename T>
inline Vec sample(const Samples& at, const T* plane, int64_t step, bool pairs) {
  Pairs top, bottom;
  if (at.group.rows) {
    const T* row = plane + at.group.base;
    top = permute_pairs(row, at.index);
    bottom = permute_pairs(row += step, at.index);
    Pairs next = bottom;
    for (int32_t r = 1; r < at.group.rows; ++r) {
      const Int from_here_on = at.index >= (r << kRowShift);
      top = select(from_here_on, next, top);
      next = permute_pairs(row += step, at.index);
      bottom = select(from_here_on, next, bottom);
    }
  } else {
    top = read(plane, at.index, pairs);
    bottom = read(plane + step, at.index, pairs);
  }
  // At fraction 1 the other neighbour has weight 0. Replace it, because 0 times infinity is NaN.
  top.left = at.last_column ? top.right : top.left;
  bottom.left = at.last_column ? bottom.right : bottom.left;
  top = select(at.last_row, bottom, top);
  Vec value = at.weight[0] * top.left;
  value = fma(at.weight[1], top.right, value);
  value = fma(at.weight[2], bottom.left, value);
  return fma(at.weight[3], bottom.right, value);
}

// Warps the pixels [begin, end) of the channels [first, last).
template <typename T, bool kCombine>
inline void warp_tile(const Forward& task, const Tile& tile, int64_t b, int64_t begin, int64_t end, int64_t first,
                      int64_t last) {
  const auto& [batch, channels, height, width] = task.shape;
  const Strides &from = task.features_strides, &with = task.present_strides;
  const T* image = (const T*)task.features + b * from.batch;
  const T* present = (const T*)task.present;
  if constexpr (kCombine) present += b * with.batch + begin;
  T* out = (T*)task.out + b * channels * height * width + begin;
  const int64_t step = height > 1 ? from.row : 0;
  const bool pairs = width > 1;
  for_vectors(0, end - begin, [&](int64_t i, auto lanes) {
    const Samples at = samples_at(tile, i);
    for (int64_t c = first; c < last; ++c) {
      Vec value = sample(at, image + c * from.channel, step, pairs);
      if constexpr (kCombine)
        value = fma(broadcast(task.w2[c]), value, broadcast(task.w1[c]) * load(present + c * with.channel + i, lanes));
      write(out + c * height * width + i, value, lanes, task.streamed);
    }
  });
}

template <typename T, bool kCombine>
void warp_planes(const Forward& task, int64_t begin, int64_t end) {
  const auto& [batch, channels, height, width] = task.shape;
  const int64_t pixels = height * width, tiles = (pixels + kTile - 1) / kTile;
  Tile tile;
  for (int64_t item = begin; item < end;) {
    const int64_t b = item / (tiles * channels), t = item / channels % tiles;
    const int64_t stop = min(end, (item / channels + 1) * channels);
    const int64_t first_pixel = t * kTile, last_pixel = min(first_pixel + kTile, pixels);
    fill(tile, task, b, first_pixel, last_pixel);
    while (item < stop) {
      const int64_t c = item % channels, count = min(kPlanes, stop - item);
      warp_tile<T, kCombine>(task, tile, b, first_pixel, last_pixel, c, c + count);
      item += count;
    }
  }
  finish_streams();
}

// ---- Pixels (channels-last maps): the lanes of a vector are channels. Each pixel reads four runs of channels.

constexpr int64_t kRun = 128;  // pixels of a row whose corners are computed together

// Offsets in the image and weights of the upper left, upper right, lower left and lower right neighbours.
struct Corners {
  int64_t offset[kRun][4];
  float weight[kRun][4];
};

// For the gradient of the flow: the fractions x and y, and whether the place moves with u and v.
struct Slopes {
  float x[kRun], y[kRun];
  bool u[kRun], v[kRun];
};

inline void fill(Corners& corners, Slopes* slopes, const Shape& shape, const Flow& flow, int64_t b, int64_t y,
                 int64_t x, int64_t count, int64_t row_stride, int64_t column_stride) {
  float u[kRun], v[kRun];
  read_flow(flow, b, y, x, count, u, v);
  for (int64_t i = 0; i < count; ++i) {
    const Place column = locate(x + i, u[i], shape.width), row = locate(y, v[i], shape.height);
    const int64_t left = column.index * column_stride, right = left + (column.index < shape.width - 1 ? column_stride : 0);
    const int64_t top = row.index * row_stride, bottom = top + (row.index < shape.height - 1 ? row_stride : 0);
    const float rest_x = 1.0f - column.fraction, rest_y = 1.0f - row.fraction;
    corners.offset[i][0] = top + left;
    corners.offset[i][1] = top + right;
    corners.offset[i][2] = bottom + left;
    corners.offset[i][3] = bottom + right;
    corners.weight[i][0] = rest_x * rest_y;
    corners.weight[i][1] = column.fraction * rest_y;
    corners.weight[i][2] = rest_x * row.fraction;
    corners.weight[i][3] = column.fraction * row.fraction;
    if (slopes) {
      slopes->x[i] = column.fraction;
      slopes->y[i] = row.fraction;
      slopes->u[i] = moves(x + i, u[i], shape.width);
      slopes->v[i] = moves(y, v[i], shape.height);
    }
  }
}

// Calls body(pixel, offset, weight, i) for the pixels of a row; i is the index in `slopes`.
template <typename Body>
inline __attribute__((always_inline)) void for_pixels(const Shape& shape, const Flow& flow, int64_t b, int64_t y,
                                                      int64_t row_stride, int64_t column_stride, Slopes* slopes,
                                                      const Body& body) {
  Corners corners;
  for (int64_t x = 0; x < shape.width; x += kRun) {
    const int64_t count = min(kRun, shape.width - x);
    fill(corners, slopes, shape, flow, b, y, x, count, row_stride, column_stride);
    for (int64_t i = 0; i < count; ++i)
      body((b * shape.height + y) * shape.width + x + i, corners.offset[i], corners.weight[i], i);
  }
}

template <typename T, bool kCombine>
void warp_pixels(const Forward& task, int64_t begin, int64_t end) {
  const auto& [batch, channels, height, width] = task.shape;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / height, y = item % height;
    const T* image = (const T*)task.features + b * task.features_strides.batch;
    for_pixels(task.shape, task.flow, b, y, task.features_strides.row, task.features_strides.column, nullptr,
               [&](int64_t pixel, const int64_t* offset, const float* weight, int64_t) {
                 const T *p0 = image + offset[0], *p1 = image + offset[1];
                 const T *p2 = image + offset[2], *p3 = image + offset[3];
                 const Vec k0 = broadcast(weight[0]), k1 = broadcast(weight[1]);
                 const Vec k2 = broadcast(weight[2]), k3 = broadcast(weight[3]);
                 const T* present = (const T*)task.present + pixel * channels;
                 T* out = (T*)task.out + pixel * channels;
                 for_vectors(0, channels, [&](int64_t c, auto lanes) {
                   Vec value = k0 * load(p0 + c, lanes);
                   value = fma(k1, load(p1 + c, lanes), value);
                   value = fma(k2, load(p2 + c, lanes), value);
                   value = fma(k3, load(p3 + c, lanes), value);
                   if constexpr (kCombine)
                     value = fma(load(task.w2 + c, lanes), value, load(task.w1 + c, lanes) * load(present + c, lanes));
                   write(out + c, value, lanes, task.streamed);
                 });
               });
  }
  finish_streams();
}

// ---- Backward, for channels-last maps

template <typename T>
void backward_features(const Backward& task, int64_t begin, int64_t end) {
  const auto& [batch, channels, height, width] = task.shape;
  const int64_t blocks = (channels + kChannelBlock - 1) / kChannelBlock;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / blocks, first = item % blocks * kChannelBlock, last = min(first + kChannelBlock, channels);
    float* image = task.grad_features + b * height * width * channels;
    for (int64_t y = 0; y < height; ++y) {
      for_pixels(task.shape, task.flow, b, y, width * channels, channels, nullptr,
                 [&](int64_t pixel, const int64_t* offset, const float* weight, int64_t) {
                   const T* grad = (const T*)task.grad + pixel * channels;
                   for_vectors(first, last, [&](int64_t c, auto lanes) {
                     Vec value = load(grad + c, lanes);
                     if (task.weight) value = value * load(task.weight + c, lanes);
                     for (int corner = 0; corner < 4; ++corner) {
                       float* to = image + offset[corner] + c;
                       store(to, fma(broadcast(weight[corner]), value, load(to, lanes)), lanes);
                     }
                   });
                 });
    }
  }
}

template <typename T>
void backward_flow(const Backward& task, int64_t begin, int64_t end) {
  const auto& [batch, channels, height, width] = task.shape;
  const int64_t plane = height * width;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t b = item / height, y = item % height;
    const T* image = (const T*)task.features + b * plane * channels;
    Slopes slopes;
    for_pixels(task.shape, task.flow, b, y, width * channels, channels, &slopes,
               [&](int64_t pixel, const int64_t* offset, const float*, int64_t i) {
                 const T *p0 = image + offset[0], *p1 = image + offset[1];
                 const T *p2 = image + offset[2], *p3 = image + offset[3];
                 const Vec x = broadcast(slopes.x[i]), y = broadcast(slopes.y[i]);
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
                 to[0] = slopes.u[i] ? sum(along_x) : 0.0f;  // not multiplied: the sums may be infinite
                 to[plane] = slopes.v[i] ? sum(along_y) : 0.0f;
               });
  }
}

template <typename T>
void backward_weights(const Backward& task, int64_t begin, int64_t end) {
  const auto& [batch, channels, height, width] = task.shape;
  constexpr int kVectors = kChannelBlock / kLanes;
  for (int64_t item = begin; item < end; ++item) {
    const int64_t first = item * kChannelBlock, last = min(first + kChannelBlock, channels);
    Vec total1[kVectors] = {}, total2[kVectors] = {};
    for (int64_t row = 0; row < batch * height; ++row) {
      const int64_t b = row / height;
      const T* image = (const T*)task.features + b * height * width * channels;
      Vec row1[kVectors] = {}, row2[kVectors] = {};  // sums by row lose less precision than one long sum
      for_pixels(task.shape, task.flow, b, row % height, width * channels, channels, nullptr,
                 [&](int64_t pixel, const int64_t* offset, const float* weight, int64_t) {
                   const T* grad = (const T*)task.grad + pixel * channels;
                   const T* present = (const T*)task.present + pixel * channels;
                   for_vectors(first, last, [&](int64_t c, auto lanes) {
                     const int64_t vector = (c - first) / kLanes;
                     const Vec value = load(grad + c, lanes);
                     Vec warped{};
                     for (int corner = 0; corner < 4; ++corner)
                       warped = fma(broadcast(weight[corner]), load(image + offset[corner] + c, lanes), warped);
                     row1[vector] = fma(value, load(present + c, lanes), row1[vector]);
                     row2[vector] = fma(value, warped, row2[vector]);
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
