// SPDX-License-Identifier: Apache-2.0
// Vectors of floats, for the instruction set that this file is compiled for.
//
// Everything is in a namespace named after the instruction set, and no templates of the standard library are used: the
// linker keeps one copy of an inline function, and that copy could use instructions that the processor lacks.
//
// All sums of products are written with `fma`, and the build turns off the compiler's own contraction. So results are
// the same bit for bit in every memory layout and in incomplete vectors.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef NETWARP_X86
#include <immintrin.h>
#endif

namespace netwarp::cpu::NETWARP_ISA {

struct Half {
  uint16_t bits;
};
struct BFloat16 {
  uint16_t bits;
};

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kLanes)));
typedef int32_t Int __attribute__((vector_size(4 * kLanes)));
typedef uint32_t Bits __attribute__((vector_size(4 * kLanes)));
typedef uint16_t Short __attribute__((vector_size(2 * kLanes)));

inline Vec broadcast(float value) { return value - Vec{}; }

// a * b + c
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#else
  return a * b + c;
#endif
}

inline float sum(Vec v) {
  float total = 0;
  for (int lane = 0; lane < kLanes; ++lane) total += v[lane];
  return total;
}

inline Bits widen(Short s) {
#if defined(__AVX512F__)
  return (Bits)_mm512_cvtepu16_epi32((__m256i)s);
#elif defined(__AVX2__)
  return (Bits)_mm256_cvtepu16_epi32((__m128i)s);
#else
  return __builtin_convertvector(s, Bits);
#endif
}

// Returns the lower half of each lane.
inline Short narrow(Bits b) {
#if defined(__AVX512F__)
  return (Short)_mm512_cvtepi32_epi16((__m512i)b);
#else
  return __builtin_convertvector(b, Short);
#endif
}

// Rounds to nearest, ties to even; NaN stays NaN.
inline Short to_bfloat16(Vec v) {
  const Bits bits = (Bits)v;
  const Bits rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  return narrow((v == v) ? rounded : (bits >> 16) | 0x40);
}

inline Vec from_bfloat16(Short s) { return (Vec)(widen(s) << 16); }

// The exponent's bias is 15 in a half and 127 in a float. Multiplying by 2^112 corrects it, also for subnormals.
inline Vec from_half(Short s) {
#if defined(__AVX512F__)
  return _mm512_cvtph_ps((__m256i)s);
#elif defined(__AVX2__)
  return _mm256_cvtph_ps((__m128i)s);
#else
  const Bits half = widen(s);
  const Bits magnitude = (half & 0x7fff) << 13;
  const Vec finite = (Vec)magnitude * broadcast(0x1p112f);
  const Bits special = magnitude | 0x7f800000;
  return (Vec)(((magnitude >= (0x7c00u << 13)) ? special : (Bits)finite) | ((half & 0x8000) << 16));
#endif
}

inline Short to_half(Vec v) {
#if defined(__AVX512F__)
  return (Short)_mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#elif defined(__AVX2__)
  return (Short)_mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
#else
  const Bits bits = (Bits)v;
  const Bits sign = (bits >> 16) & 0x8000, magnitude = bits & 0x7fffffff;
  // Normal: add half of the last place, ties to even, and change the bias. A carry out of the largest half is infinity.
  const Bits normal = (magnitude - (112u << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  // Subnormal: adding 0.5 aligns the last places of half and float, so that the addition rounds.
  const Bits subnormal = (Bits)((Vec)magnitude + broadcast(0.5f)) - 0x3f000000;
  Bits result = (magnitude < (113u << 23)) ? subnormal : normal;
  result = (magnitude >= (143u << 23)) ? (Bits{} + 0x7c00) : result;
  result = (magnitude > (255u << 23)) ? (Bits{} + 0x7e00) : result;
  return narrow(result | sign);
#endif
}

// Loads and stores of all lanes, or of the first `count`; a load sets the other lanes to 0.

struct All {
  static constexpr int count = kLanes;
};
struct First {
  int count;
};

template <typename Lanes>
inline Short load_short(const void* from, Lanes lanes) {
  Short s{};
  std::memcpy(&s, from, lanes.count * sizeof(uint16_t));
  return s;
}
template <typename Lanes>
inline Vec load(const float* from, Lanes lanes) {
  Vec v{};
  std::memcpy(&v, from, lanes.count * sizeof(float));
  return v;
}
template <typename Lanes>
inline Vec load(const BFloat16* from, Lanes lanes) {
  return from_bfloat16(load_short(from, lanes));
}
template <typename Lanes>
inline Vec load(const Half* from, Lanes lanes) {
  return from_half(load_short(from, lanes));
}

inline Int load_int(const int32_t* from) {
  Int v;
  std::memcpy(&v, from, sizeof v);
  return v;
}

template <typename Lanes>
inline void store(float* to, Vec v, Lanes lanes) {
  std::memcpy(to, &v, lanes.count * sizeof(float));
}
template <typename Lanes>
inline void store(BFloat16* to, Vec v, Lanes lanes) {
  const Short s = to_bfloat16(v);
  std::memcpy(to, &s, lanes.count * sizeof(uint16_t));
}
template <typename Lanes>
inline void store(Half* to, Vec v, Lanes lanes) {
  const Short s = to_half(v);
  std::memcpy(to, &s, lanes.count * sizeof(uint16_t));
}

// Stores past the caches, if the processor can: for results that are too large for the caches. `to` is aligned to the
// vector's size.
inline void stream(float* to, Vec v) {
#if defined(__AVX512F__)
  _mm512_stream_ps(to, v);
#elif defined(__AVX2__)
  _mm256_stream_ps(to, v);
#else
  store(to, v, All{});
#endif
}
template <typename T>
inline void stream(T* to, Vec v) {
  Short s;
  store((T*)&s, v, All{});
#if defined(__AVX512F__)
  _mm256_stream_si256((__m256i*)to, (__m256i)s);
#elif defined(__AVX2__)
  _mm_stream_si128((__m128i*)to, (__m128i)s);
#else
  std::memcpy(to, &s, sizeof s);
#endif
}

// Call this before other threads read what was streamed.
inline void finish_streams() {
#ifdef NETWARP_X86
  _mm_sfence();
#endif
}

template <typename T>
inline void write(T* to, Vec v, All lanes, bool streamed) {
  streamed ? stream(to, v) : store(to, v, lanes);
}
template <typename T>
inline void write(T* to, Vec v, First lanes, bool) {
  store(to, v, lanes);
}

// Calls body(i, lanes) for every vector of [begin, end); only the last may have fewer lanes.
template <typename Body>
inline __attribute__((always_inline)) void for_vectors(int64_t begin, int64_t end, const Body& body) {
  int64_t i = begin;
  for (; i + kLanes <= end; i += kLanes) body(i, All{});
  if (i < end) body(i, First{(int)(end - i)});
}

// Two neighbouring elements of a row for each lane: `left` at base + index, `right` at base + index + 1.

struct Pairs {
  Vec left, right;
};

inline Pairs select(Int mask, const Pairs& yes, const Pairs& no) {
  return {mask ? yes.left : no.left, mask ? yes.right : no.right};
}

inline Pairs gather_pairs(const float* base, Int index) {
  Pairs pairs;
  for (int lane = 0; lane < kLanes; ++lane) {
    pairs.left[lane] = base[index[lane]];
    pairs.right[lane] = base[index[lane] + 1];
  }
  return pairs;
}

inline Bits gather_bits(const void* base, Int index) {
  Bits pairs;
  for (int lane = 0; lane < kLanes; ++lane) {
    uint32_t pair;
    std::memcpy(&pair, (const uint16_t*)base + index[lane], sizeof pair);
    pairs[lane] = pair;
  }
  return pairs;
}

inline Pairs split(Bits pairs, const BFloat16*) { return {(Vec)(pairs << 16), (Vec)(pairs & 0xffff0000)}; }

inline Pairs split(Bits pairs, const Half*) {
  return {from_half(narrow(pairs)), from_half(narrow(pairs >> 16))};
}

template <typename T>
inline Pairs gather_pairs(const T* base, Int index) {
  return split(gather_bits(base, index), base);
}

// Like gather_pairs, for indices within a window of kWindow elements at `base`. The whole window is read. Only the bits
// of an index that address the window matter. Only AVX-512 has the instructions; without them kWindow is 0.
#if defined(__AVX512F__)

constexpr int kWindow = 32;

inline Pairs permute_pairs(const float* base, Int index) {
  __m512 low = _mm512_loadu_ps(base), high = _mm512_loadu_ps(base + 16);
  asm("" : "+v"(low), "+v"(high));  // keeps GCC from loading both once for each permutation
  return {_mm512_permutex2var_ps(low, (__m512i)index, high), _mm512_permutex2var_ps(low, (__m512i)(index + 1), high)};
}

template <typename T>
inline Pairs permute_pairs(const T* base, Int index) {
  const Int both = (index & 0xffff) | (index + 1) << 16;
  return split((Bits)_mm512_permutexvar_epi16((__m512i)both, _mm512_loadu_si512(base)), base);
}

#else

constexpr int kWindow = 0;

template <typename T>
inline Pairs permute_pairs(const T* base, Int index) {
  return gather_pairs(base, index);
}

#endif

}  // namespace netwarp::cpu::NETWARP_ISA
