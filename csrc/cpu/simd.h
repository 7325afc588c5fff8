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

#if defined(NETWARP_X86)
#include <immintrin.h>
#elif defined(NETWARP_NEON)
#include <arm_neon.h>
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

// Broadcasts four numbers: one load and four permutations are faster than four loads.
inline void broadcast_each(const float* from, Vec& to0, Vec& to1, Vec& to2, Vec& to3) {
#if defined(__AVX512F__)
  const __m512 all = _mm512_broadcast_f32x4(_mm_load_ps(from));
  to0 = _mm512_permute_ps(all, 0x00);
  to1 = _mm512_permute_ps(all, 0x55);
  to2 = _mm512_permute_ps(all, 0xaa);
  to3 = _mm512_permute_ps(all, 0xff);
#elif defined(__AVX2__)
  const __m256 all = _mm256_broadcast_ps((const __m128*)from);
  to0 = _mm256_permute_ps(all, 0x00);
  to1 = _mm256_permute_ps(all, 0x55);
  to2 = _mm256_permute_ps(all, 0xaa);
  to3 = _mm256_permute_ps(all, 0xff);
#else
  to0 = broadcast(from[0]);
  to1 = broadcast(from[1]);
  to2 = broadcast(from[2]);
  to3 = broadcast(from[3]);
#endif
}

// a * b + c
inline Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return _mm512_fmadd_ps(a, b, c);
#elif defined(__AVX2__)
  return _mm256_fmadd_ps(a, b, c);
#elif defined(NETWARP_NEON)
  return vfmaq_f32(c, a, b);
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
#elif defined(NETWARP_NEON)
  return vcvt_f32_f16((float16x4_t)s);
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
#elif defined(NETWARP_NEON)
  return (Short)vcvt_f16_f32(v);
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

// Transposes a square block: afterwards lane i of vector j is what was lane j of vector i.
inline void transpose(Vec (&block)[kLanes]) {
#if defined(__AVX512F__)
  __m512 pairs[16], fours[16];
  for (int i = 0; i < 16; i += 2) {
    pairs[i] = _mm512_unpacklo_ps(block[i], block[i + 1]);
    pairs[i + 1] = _mm512_unpackhi_ps(block[i], block[i + 1]);
  }
  for (int i = 0; i < 16; i += 4) {
    for (int half = 0; half < 2; ++half) {
      const __m512d upper = (__m512d)pairs[i + half], lower = (__m512d)pairs[i + 2 + half];
      fours[i + 2 * half] = (__m512)_mm512_unpacklo_pd(upper, lower);
      fours[i + 2 * half + 1] = (__m512)_mm512_unpackhi_pd(upper, lower);
    }
  }
  // Quarter q of fours[4 * r + k] has column 4 * q + k of rows 4 * r to 4 * r + 3.
  for (int k = 0; k < 4; ++k) {
    const __m512 even01 = _mm512_shuffle_f32x4(fours[k], fours[4 + k], 0x88);
    const __m512 odd01 = _mm512_shuffle_f32x4(fours[k], fours[4 + k], 0xdd);
    const __m512 even23 = _mm512_shuffle_f32x4(fours[8 + k], fours[12 + k], 0x88);
    const __m512 odd23 = _mm512_shuffle_f32x4(fours[8 + k], fours[12 + k], 0xdd);
    block[k] = _mm512_shuffle_f32x4(even01, even23, 0x88);
    block[8 + k] = _mm512_shuffle_f32x4(even01, even23, 0xdd);
    block[4 + k] = _mm512_shuffle_f32x4(odd01, odd23, 0x88);
    block[12 + k] = _mm512_shuffle_f32x4(odd01, odd23, 0xdd);
  }
#elif defined(__AVX2__)
  __m256 pairs[8], fours[8];
  for (int i = 0; i < 8; i += 2) {
    pairs[i] = _mm256_unpacklo_ps(block[i], block[i + 1]);
    pairs[i + 1] = _mm256_unpackhi_ps(block[i], block[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    for (int half = 0; half < 2; ++half) {
      const __m256d upper = (__m256d)pairs[i + half], lower = (__m256d)pairs[i + 2 + half];
      fours[i + 2 * half] = (__m256)_mm256_unpacklo_pd(upper, lower);
      fours[i + 2 * half + 1] = (__m256)_mm256_unpackhi_pd(upper, lower);
    }
  }
  // Half h of fours[4 * r + k] has column 4 * h + k of rows 4 * r to 4 * r + 3.
  for (int k = 0; k < 4; ++k) {
    block[k] = _mm256_permute2f128_ps(fours[k], fours[4 + k], 0x20);
    block[4 + k] = _mm256_permute2f128_ps(fours[k], fours[4 + k], 0x31);
  }
#elif defined(NETWARP_NEON)
  const float32x4x2_t upper = vtrnq_f32(block[0], block[1]), lower = vtrnq_f32(block[2], block[3]);
  for (int i = 0; i < 2; ++i) {
    block[i] = vcombine_f32(vget_low_f32(upper.val[i]), vget_low_f32(lower.val[i]));
    block[2 + i] = vcombine_f32(vget_high_f32(upper.val[i]), vget_high_f32(lower.val[i]));
  }
#else
  const Vec old[4] = {block[0], block[1], block[2], block[3]};
  for (int i = 0; i < 4; ++i) block[i] = Vec{old[0][i], old[1][i], old[2][i], old[3][i]};
#endif
}

}  // namespace netwarp::cpu::NETWARP_ISA
