// SPDX-License-Identifier: Apache-2.0
// The permutohedral lattice on the CPU (Adams, Baek, Davis, "Fast High-Dimensional Filtering Using the Permutohedral
// Lattice", 2010). netwarp_ros/ops/lattice.py says what the operators compute. How work is divided among threads does
// not change a result.
#include <torch/csrc/stable/library.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <tuple>
#include <vector>

#include "operators.h"

namespace netwarp::cpu {

namespace {

constexpr int64_t kMostDimensions = 8;
constexpr int64_t kMostCorners = kMostDimensions + 1;
constexpr float kFarthest = 1 << 15;  // of a position: float32 still tells the corners of its simplex apart

using Coordinates = std::array<int32_t, kMostCorners>;

// The simplex of the lattice around a point. Its corner k has the coordinates base[i] + k, less d + 1 where
// rank[i] > d - k.
struct Simplex {
  Coordinates base, rank;

  Coordinates corner(int32_t k, int32_t d) const {
    Coordinates key{};
    for (int32_t i = 0; i < d; ++i) key[i] = base[i] + k - (rank[i] > d - k ? d + 1 : 0);
    return key;
  }
};

// Finds simplices. The blur moves each value along all d + 1 directions by -1, 0 or 1; the scale is such that this, with
// the interpolation of splat and slice, has the variance of a Gaussian of standard deviation 1 in the positions.
class Locator {
 public:
  explicit Locator(int32_t d) : d_(d) {
    for (int32_t i = 0; i < d; ++i) {
      scale_[i] = static_cast<float>((d + 1) * std::sqrt(2.0 / 3.0) / std::sqrt((i + 1.0) * (i + 2.0)));
    }
  }

  // Writes d + 1 barycentric weights. Returns whether the position is finite and not too far away.
  bool locate(const float* position, Simplex& simplex, float* weights) const {
    std::array<float, kMostCorners> elevated{}, rest{};
    float sum = 0;
    for (int32_t i = d_; i > 0; --i) {
      if (!(std::abs(position[i - 1]) < kFarthest)) return false;
      const float step = position[i - 1] * scale_[i - 1];
      elevated[i] = sum - static_cast<float>(i) * step;
      sum += step;
    }
    elevated[0] = sum;

    int32_t excess = 0;  // of the nearest points: the coordinates of a point of the lattice add up to 0
    for (int32_t i = 0; i <= d_; ++i) {
      const float cell = elevated[i] / static_cast<float>(d_ + 1);
      const int32_t nearest = static_cast<int32_t>(cell + (cell < 0 ? -0.5F : 0.5F));
      simplex.base[i] = nearest * (d_ + 1);
      rest[i] = elevated[i] - static_cast<float>(simplex.base[i]);
      simplex.rank[i] = 0;
      excess += nearest;
    }
    for (int32_t i = 0; i < d_; ++i) {
      for (int32_t j = i + 1; j <= d_; ++j) ++simplex.rank[rest[i] < rest[j] ? i : j];
    }
    std::array<float, kMostCorners + 1> sums{};
    for (int32_t i = 0; i <= d_; ++i) {
      int32_t& rank = simplex.rank[i];
      rank += excess;
      const int32_t wrap = rank < 0 ? d_ + 1 : rank > d_ ? -(d_ + 1) : 0;
      rank += wrap;
      simplex.base[i] += wrap;
      const float share = (rest[i] - static_cast<float>(wrap)) / static_cast<float>(d_ + 1);
      sums[d_ - rank] += share;
      sums[d_ + 1 - rank] -= share;
    }
    sums[0] += 1 + sums[d_ + 1];
    std::copy_n(sums.begin(), d_ + 1, weights);
    return true;
  }

 private:
  int32_t d_;
  std::array<float, kMostDimensions> scale_{};
};

// Numbers the vertices of the lattice in the order in which they are added: a hash table with open addressing.
class Vertices {
 public:
  explicit Vertices(int32_t d) : d_(d), slots_(1 << 12, -1) {}

  int32_t count() const { return static_cast<int32_t>(keys_.size() / d_); }
  const int32_t* key(int32_t vertex) const { return keys_.data() + static_cast<int64_t>(vertex) * d_; }

  // Returns the number of a vertex, or -1 if it was not added.
  int32_t find(const Coordinates& key) const { return slots_[slot(key.data())]; }

  int32_t add(const Coordinates& key) {
    size_t place = slot(key.data());
    if (slots_[place] >= 0) return slots_[place];
    if (2 * (static_cast<size_t>(count()) + 1) > slots_.size()) {
      grow();
      place = slot(key.data());
    }
    slots_[place] = count();
    keys_.insert(keys_.end(), key.begin(), key.begin() + d_);
    return slots_[place];
  }

 private:
  // Where a vertex is, or the free slot where it belongs. At least half of the slots are free.
  size_t slot(const int32_t* wanted) const {
    uint64_t hash = 0;
    for (int32_t i = 0; i < d_; ++i) hash = (hash + static_cast<uint32_t>(wanted[i])) * 0x9E3779B97F4A7C15ULL;
    size_t place = static_cast<size_t>(hash >> 32) & (slots_.size() - 1);
    while (slots_[place] >= 0 && !std::equal(wanted, wanted + d_, key(slots_[place]))) {
      place = (place + 1) & (slots_.size() - 1);
    }
    return place;
  }

  void grow() {
    slots_.assign(2 * slots_.size(), -1);
    for (int32_t vertex = 0; vertex < count(); ++vertex) slots_[slot(key(vertex))] = vertex;
  }

  int32_t d_;
  std::vector<int32_t> keys_, slots_;
};

std::tuple<Tensor, Tensor, Tensor> build(const Tensor& positions) {
  STD_TORCH_CHECK(positions.dim() == 2 && positions.size(1) >= 1 && positions.size(1) <= kMostDimensions &&
                      positions.scalar_type() == ScalarType::Float,
                  "positions must be float32 (N, d), with d from 1 to 8");
  const int64_t points = positions.size(0);
  const int32_t d = static_cast<int32_t>(positions.size(1)), corners = d + 1;
  STD_TORCH_CHECK(points < INT32_MAX / (2 * corners), "there are ", points, " positions: give less than 2^30 / (d + 1)");
  const Tensor dense = torch::stable::contiguous(positions);
  Tensor vertices = empty({points, corners}, ScalarType::Int, positions);
  Tensor weights = empty({points, corners}, ScalarType::Float, positions);
  const float* from = dense.const_data_ptr<float>();
  float* shares = weights.mutable_data_ptr<float>();
  int32_t* indices = vertices.mutable_data_ptr<int32_t>();

  const Locator locator(d);
  std::vector<Simplex> simplices(points);
  std::atomic<bool> valid{true};
  torch::stable::parallel_for(0, points, grain(corners * corners), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      if (!locator.locate(from + n * d, simplices[n], shares + n * corners)) valid = false;
    }
  });
  STD_TORCH_CHECK(valid, "positions must be finite, and between -2^15 and 2^15");

  Vertices table(d);
  for (int64_t n = 0; n < points; ++n) {
    const bool repeats = n > 0 && simplices[n].base == simplices[n - 1].base && simplices[n].rank == simplices[n - 1].rank;
    for (int32_t k = 0; k < corners; ++k) {
      indices[n * corners + k] = repeats ? indices[(n - 1) * corners + k] : table.add(simplices[n].corner(k, d));
    }
  }

  const int32_t count = table.count();
  Tensor neighbors = empty({count, corners, 2}, ScalarType::Int, positions);
  int32_t* found = neighbors.mutable_data_ptr<int32_t>();
  torch::stable::parallel_for(0, count, grain(corners * corners), [&](int64_t begin, int64_t end) {
    for (int64_t vertex = begin; vertex < end; ++vertex) {
      const int32_t* key = table.key(static_cast<int32_t>(vertex));
      for (int32_t direction = 0; direction < corners; ++direction) {
        for (int32_t side = 0; side < 2; ++side) {
          const int32_t sign = side == 0 ? -1 : 1;
          Coordinates neighbor{};
          for (int32_t i = 0; i < d; ++i) neighbor[i] = key[i] + sign * (i == direction ? -d : 1);
          const int32_t other = table.find(neighbor);
          found[(vertex * corners + direction) * 2 + side] = other < 0 ? count : other;
        }
      }
    }
  });
  return {vertices, weights, neighbors};
}

void check_points(const Tensor& vertices, const Tensor& weights) {
  STD_TORCH_CHECK(vertices.dim() == 2 && vertices.scalar_type() == ScalarType::Int, "vertices must be int32 (N, d + 1)");
  STD_TORCH_CHECK(weights.dim() == 2 && weights.scalar_type() == ScalarType::Float &&
                      weights.size(0) == vertices.size(0) && weights.size(1) == vertices.size(1),
                  "weights must be float32, of the shape of the vertices");
}

void check_values(const Tensor& values) {
  STD_TORCH_CHECK(values.dim() == 2 && values.scalar_type() == ScalarType::Float, "values must be float32 (N, K)");
}

void check_indices(bool valid) { STD_TORCH_CHECK(valid, "an index is out of range: the lattice is another one"); }

void add_scaled(float* to, const float* from, float factor, int64_t count) {
  for (int64_t c = 0; c < count; ++c) to[c] += factor * from[c];
}

Tensor splat(const Tensor& values, const Tensor& vertices, const Tensor& weights, int64_t count) {
  check_values(values);
  check_points(vertices, weights);
  STD_TORCH_CHECK(values.size(0) == vertices.size(0), "values must have a row for each point");
  STD_TORCH_CHECK(count >= 0 && count <= INT32_MAX, "count is ", count);
  const Tensor from = torch::stable::contiguous(values), at = torch::stable::contiguous(vertices);
  const Tensor shares = torch::stable::contiguous(weights);
  const int64_t channels = values.size(1), entries = at.numel(), corners = at.size(1);
  Tensor out = empty({count, channels}, ScalarType::Float, values);
  torch::stable::zero_(out);
  const float *source = from.const_data_ptr<float>(), *share = shares.const_data_ptr<float>();
  const int32_t* index = at.const_data_ptr<int32_t>();
  float* sums = out.mutable_data_ptr<float>();
  bool valid = true;
  for (int64_t e = 0; e < entries; ++e) valid &= index[e] >= 0 && index[e] < count;
  check_indices(valid);
  // Each thread reads all indices and adds to the vertices that are its own.
  torch::stable::parallel_for(0, count, grain(channels * corners), [&](int64_t begin, int64_t end) {
    for (int64_t e = 0; e < entries; ++e) {
      if (index[e] >= begin && index[e] < end) {
        add_scaled(sums + index[e] * channels, source + e / corners * channels, share[e], channels);
      }
    }
  });
  return out;
}

Tensor blur(const Tensor& values, const Tensor& neighbors, const Tensor& taps) {
  check_values(values);
  const int64_t count = values.size(0), channels = values.size(1);
  STD_TORCH_CHECK(neighbors.dim() == 3 && neighbors.size(0) == count && neighbors.size(2) == 2 &&
                      neighbors.scalar_type() == ScalarType::Int,
                  "neighbors must be int32 (M, d + 1, 2), with a row for each value");
  const int64_t directions = neighbors.size(1);
  STD_TORCH_CHECK(taps.dim() == 2 && taps.size(0) == directions && taps.size(1) == 3 &&
                      taps.scalar_type() == ScalarType::Float,
                  "taps must be float32 (d + 1, 3)");
  const Tensor next = torch::stable::contiguous(neighbors), factors = torch::stable::contiguous(taps);
  const int32_t* index = next.const_data_ptr<int32_t>();
  const float* tap = factors.const_data_ptr<float>();
  Tensor from = torch::stable::contiguous(values);
  std::atomic<bool> valid{true};
  for (int64_t direction = 0; direction < directions; ++direction, tap += 3) {
    Tensor out = empty({count, channels}, ScalarType::Float, values);
    const float* source = from.const_data_ptr<float>();
    float* sums = out.mutable_data_ptr<float>();
    torch::stable::parallel_for(0, count, grain(4 * channels), [&](int64_t begin, int64_t end) {
      for (int64_t vertex = begin; vertex < end; ++vertex) {
        const int32_t* sides = index + (vertex * directions + direction) * 2;
        float* sum = sums + vertex * channels;
        const float* own = source + vertex * channels;
        for (int64_t c = 0; c < channels; ++c) sum[c] = tap[1] * own[c];
        for (int side = 0; side < 2; ++side) {
          const int32_t other = sides[side];
          if (other < 0 || other > count) valid = false;
          if (other >= 0 && other < count) add_scaled(sum, source + other * channels, tap[2 * side], channels);
        }
      }
    });
    from = out;
  }
  check_indices(valid);
  return from;
}

Tensor slice(const Tensor& values, const Tensor& vertices, const Tensor& weights) {
  check_values(values);
  check_points(vertices, weights);
  const Tensor from = torch::stable::contiguous(values), at = torch::stable::contiguous(vertices);
  const Tensor shares = torch::stable::contiguous(weights);
  const int64_t count = values.size(0), channels = values.size(1), points = at.size(0), corners = at.size(1);
  Tensor out = empty({points, channels}, ScalarType::Float, values);
  const float *source = from.const_data_ptr<float>(), *share = shares.const_data_ptr<float>();
  const int32_t* index = at.const_data_ptr<int32_t>();
  float* sums = out.mutable_data_ptr<float>();
  std::atomic<bool> valid{true};
  torch::stable::parallel_for(0, points, grain(channels * corners), [&](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      float* sum = sums + n * channels;
      std::fill_n(sum, channels, 0.0F);
      for (int64_t e = n * corners; e < (n + 1) * corners; ++e) {
        if (index[e] < 0 || index[e] >= count) {
          valid = false;
        } else {
          add_scaled(sum, source + index[e] * channels, share[e], channels);
        }
      }
    }
  });
  check_indices(valid);
  return out;
}

}  // namespace
}  // namespace netwarp::cpu

STABLE_TORCH_LIBRARY_IMPL(netwarp_ros, CPU, library) {
  library.impl("lattice_build", TORCH_BOX(&netwarp::cpu::build));
  library.impl("lattice_splat", TORCH_BOX(&netwarp::cpu::splat));
  library.impl("lattice_blur", TORCH_BOX(&netwarp::cpu::blur));
  library.impl("lattice_slice", TORCH_BOX(&netwarp::cpu::slice));
}
