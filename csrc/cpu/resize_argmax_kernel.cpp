// SPDX-License-Identifier: Apache-2.0
// The kernel of resize_argmax. This file is compiled once for each instruction set, named by NETWARP_ISA.
//
// For each row of the result, two rows of the scores are interpolated. Each is expanded first: interpolated along the
// row to the width of the result, as one plane for each class. An expanded row is kept until the next row of the scores
// replaces it. What remains for each pixel is to blend two numbers per class and to keep the greatest; here the lanes of
// a vector are pixels.
#include "resize_argmax.h"

#include "simd.h"

namespace netwarp::cpu {
namespace NETWARP_ISA {

namespace {

inline int64_t min(int64_t a, int64_t b) { return a < b ? a : b; }

// Where a pixel of the result is on an axis of the scores: `fraction` of the way from `index` to `next`.
struct Place {
  int64_t index, next;
  float fraction;
};

// (position + 0.5) * size / resized - 0.5, clamped to the scores. It is computed in integers, in units of
// 1 / (2 * resized). On an axis that keeps its size, a pixel is its own neighbour, as in torch.nn.functional.interpolate:
// 0 times an infinite neighbour would be NaN.
inline Place place_of(int64_t position, int64_t size, int64_t resized) {
  const int64_t unit = 2 * resized, wanted = (2 * position + 1) * size - resized, place = wanted < 0 ? 0 : wanted;
  const int64_t index = place / unit;
  return {index, size == resized ? index : min(index + 1, size - 1), (float)(place % unit) / (float)unit};
}

// The columns of a tile. Beyond the result's border, the last column repeats until a vector is complete.
struct Columns {
  int64_t vectors;      // lanes in use, a multiple of kLanes
  int64_t first, last;  // columns of the scores that are read
  alignas(64) int32_t left[kWidestTile];  // from `first` on
  alignas(64) float fraction[kWidestTile];
};

inline void fill(Columns& columns, const ResizeArgmax& task, int64_t x, int64_t count) {
  columns.vectors = (count + kLanes - 1) / kLanes * kLanes;
  columns.first = place_of(x, task.shape.width, task.width).index;
  for (int64_t i = 0; i < columns.vectors; ++i) {
    const Place place = place_of(x + min(i, count - 1), task.shape.width, task.width);
    columns.left[i] = (int32_t)(place.index - columns.first);
    columns.fraction[i] = place.fraction;
    columns.last = place.next;
  }
}

// A row of the scores at the columns of a tile, one plane for each class.
struct Row {
  int64_t y = -1;  // in the scores
  bool finite;
  alignas(64) float planes[kRowElements];
};

// The first element of each of as many pixels as there are lanes.
template <typename Lanes>
inline Vec load_column(const float* from, int64_t stride, Lanes lanes) {
  Vec v{};
  for (int lane = 0; lane < lanes.count; ++lane) v[lane] = from[lane * stride];
  return v;
}
template <typename T, typename Lanes>
inline Vec load_column(const T* from, int64_t stride, Lanes lanes) {
  Short s{};
  for (int lane = 0; lane < lanes.count; ++lane) s[lane] = from[lane * stride].bits;
  return load((const T*)&s, All{});
}

// Copies the columns [first, last] of a row of the scores to planes of `step` elements. The last one repeats up to `end`.
template <typename T>
inline void copy(const ResizeArgmax& task, const T* row, int64_t first, int64_t last, int64_t end, float* planes,
                 int64_t step) {
  const int64_t classes = task.shape.channels, count = last - first + 1;
  row += first * task.strides.column;
  if (task.strides.column == 1) {
    for (int64_t k = 0; k < classes; ++k)
      for_vectors(0, count, [&](int64_t i, auto lanes) {
        store(planes + k * step + i, load(row + k * task.strides.channel + i, lanes), lanes);
      });
  } else {
    for_vectors(0, count, [&](int64_t i, auto lanes) {
      for (int64_t k = 0; k < classes; ++k)
        store(planes + k * step + i, load_column(row + i * task.strides.column + k, task.strides.column, lanes), lanes);
    });
  }
  for (int64_t k = 0; k < classes; ++k)
    for (int64_t i = count; i < end; ++i) planes[k * step + i] = planes[k * step + count - 1];
}

// The elements of `from` at index[lane], which is less than kLanes. The whole vector at `from` is read.
inline Vec permute(const float* from, Int index) {
#if defined(__AVX512F__)
  return _mm512_permutexvar_ps((__m512i)index, _mm512_loadu_ps(from));
#elif defined(__AVX2__)
  return _mm256_permutevar8x32_ps(_mm256_loadu_ps(from), (__m256i)index);
#else
  Vec v;
  for (int lane = 0; lane < kLanes; ++lane) v[lane] = from[index[lane]];
  return v;
#endif
}

// Reads a row of the scores that is not shrunk. Neighbouring pixels of the result are at most one column apart, so a
// vector of them reads from one vector of columns.
template <typename T>
inline void expand_by_vectors(const ResizeArgmax& task, const Columns& columns, const T* source, Row& row) {
  float planes[kRowElements + kMostClasses * (2 + kLanes)];
  const int64_t end = columns.last - columns.first + 2, step = end + kLanes;
  const int64_t next = task.shape.width == task.width ? 0 : 1;  // the last column has a copy of itself as its neighbour
  copy(task, source, columns.first, columns.last, end, planes, step);
  for (int64_t i = 0; i < columns.vectors; i += kLanes) {
    const int32_t base = columns.left[i];
    const Int index = load_int(columns.left + i) - base;
    const Vec x = load(columns.fraction + i, All{}), rest = broadcast(1.0f) - x;
    for (int64_t k = 0; k < task.shape.channels; ++k) {
      const float* from = planes + k * step + base;
      const Vec value = fma(x, permute(from + next, index), rest * permute(from, index));
      store(row.planes + k * task.tile + i, value, All{});
    }
  }
}

// Reads a row of the scores that is shrunk, element by element.
template <typename T>
inline void expand_by_elements(const ResizeArgmax& task, const Columns& columns, const T* source, Row& row) {
  for (int64_t i = 0; i < columns.vectors; i += kLanes) {
    const Vec x = load(columns.fraction + i, All{}), rest = broadcast(1.0f) - x;
    for (int64_t k = 0; k < task.shape.channels; ++k) {
      Vec left, right;
      for (int lane = 0; lane < kLanes; ++lane) {
        const int64_t column = columns.first + columns.left[i + lane];
        const T* from = source + k * task.strides.channel;
        left[lane] = load(from + column * task.strides.column, First{1})[0];
        right[lane] = load(from + min(column + 1, columns.last) * task.strides.column, First{1})[0];
      }
      store(row.planes + k * task.tile + i, fma(x, right, rest * left), All{});
    }
  }
}

template <typename T>
inline void expand(const ResizeArgmax& task, const Columns& columns, int64_t b, int64_t y, bool resized, Row& row) {
  const T* source = (const T*)task.scores + b * task.strides.batch + y * task.strides.row;
  if (!resized)
    copy(task, source, columns.first, columns.last, columns.vectors, row.planes, task.tile);
  else if (task.shape.width <= task.width)
    expand_by_vectors(task, columns, source, row);
  else
    expand_by_elements(task, columns, source, row);
  row.y = y;
  Vec zeros{};  // 0 times a number that is not finite is NaN
  for (int64_t k = 0; k < task.shape.channels; ++k)
    for (int64_t i = 0; i < columns.vectors; i += kLanes)
      zeros = fma(load(row.planes + k * task.tile + i, All{}), Vec{}, zeros);
  row.finite = sum(zeros) == 0.0f;
}

// Writes the class of the greatest score of the pixels [i, i + kCount * kLanes); of the last vector only `lanes`.
template <bool kResized, bool kFinite, int kCount, typename Lanes>
inline void argmax(const ResizeArgmax& task, const float* upper, const float* lower, float fraction, int64_t i,
                   uint8_t* out, Lanes lanes) {
  typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
  const Vec y = broadcast(fraction), rest = broadcast(1.0f - fraction);
  const auto score = [&](int64_t k, int vector) __attribute__((always_inline)) {
    const int64_t at = k * task.tile + i + vector * kLanes;
    const Vec value = load(upper + at, All{});
    return kResized ? fma(y, load(lower + at, All{}), rest * value) : value;
  };
  Vec greatest[kCount];
  Int index[kCount] = {};
  for (int vector = 0; vector < kCount; ++vector) greatest[vector] = score(0, vector);
  for (int64_t k = 1; k < task.shape.channels; ++k)
    for (int vector = 0; vector < kCount; ++vector) {
      const Vec value = score(k, vector);
      // As in torch.argmax, NaN is greater than any number, and the first of equals counts.
      const Int greater = kFinite ? (value > greatest[vector])
                                  : ~(value <= greatest[vector]) & (greatest[vector] == greatest[vector]);
      greatest[vector] = greater ? value : greatest[vector];
      index[vector] = greater ? Int{} + (int32_t)k : index[vector];
    }
  for (int vector = 0; vector < kCount; ++vector) {
    const Bytes bytes = __builtin_convertvector(index[vector], Bytes);
    const int count = vector + 1 < kCount ? kLanes : lanes.count;
    std::memcpy(out + i + vector * kLanes, &bytes, count);
  }
}

template <bool kResized, bool kFinite>
inline void argmax_row(const ResizeArgmax& task, const Row& upper, const Row& lower, float fraction, uint8_t* out,
                       int64_t count) {
  constexpr int kTogether = 4;  // vectors: each waits for its own comparison with the class before
  int64_t i = 0;
  for (; i + kTogether * kLanes <= count; i += kTogether * kLanes)
    argmax<kResized, kFinite, kTogether>(task, upper.planes, lower.planes, fraction, i, out, All{});
  for_vectors(i, count, [&](int64_t at, auto lanes) {
    argmax<kResized, kFinite, 1>(task, upper.planes, lower.planes, fraction, at, out, lanes);
  });
}

template <typename T>
void resize_argmax(const ResizeArgmax& task, int64_t begin, int64_t end) {
  const int64_t height = task.height, width = task.width, tiles = (width + task.tile - 1) / task.tile;
  const bool resized = height != task.shape.height || width != task.shape.width;
  Columns columns;
  Row rows[2];
  for (int64_t item = begin; item < end;) {
    const int64_t b = item / (tiles * height), x = item / height % tiles * task.tile;
    const int64_t count = min(task.tile, width - x), first = item % height;
    const int64_t stop = min(height, first + end - item);
    fill(columns, task, x, count);
    rows[0].y = rows[1].y = -1;
    for (int64_t y = first; y < stop; ++y) {
      const Place place = place_of(y, task.shape.height, height);
      Row &upper = rows[place.index % 2], &lower = rows[place.next % 2];  // so neighbours are kept together
      if (upper.y != place.index) expand<T>(task, columns, b, place.index, resized, upper);
      if (lower.y != place.next) expand<T>(task, columns, b, place.next, resized, lower);
      uint8_t* out = task.out + (b * height + y) * width + x;
      const bool finite = upper.finite && lower.finite;
      if (resized)
        finite ? argmax_row<true, true>(task, upper, lower, place.fraction, out, count)
               : argmax_row<true, false>(task, upper, lower, place.fraction, out, count);
      else
        finite ? argmax_row<false, true>(task, upper, lower, 0.0f, out, count)
               : argmax_row<false, false>(task, upper, lower, 0.0f, out, count);
    }
    item += stop - first;
  }
}

}  // namespace

void resize_argmax(const ResizeArgmax& task, int64_t begin, int64_t end) {
  switch (task.element) {
    case Element::float32: return resize_argmax<float>(task, begin, end);
    case Element::float16: return resize_argmax<Half>(task, begin, end);
    case Element::bfloat16: return resize_argmax<BFloat16>(task, begin, end);
  }
}

}  // namespace NETWARP_ISA
}  // namespace netwarp::cpu
