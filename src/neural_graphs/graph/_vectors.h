// Vectors of the length that the processor has, for the functions that are compiled where they run.

#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace {

#if defined(__AVX512F__)
constexpr int LANES = 16;
#elif defined(__AVX__)
constexpr int LANES = 8;
#else
constexpr int LANES = 4;
#endif
typedef float vec __attribute__((vector_size(4 * LANES), aligned(4)));
typedef int32_t bits __attribute__((vector_size(4 * LANES), aligned(4)));

inline vec load(const float* from) { return *reinterpret_cast<const vec*>(from); }
inline void store(float* to, vec value) { *reinterpret_cast<vec*>(to) = value; }
inline vec all(float value) { return vec{} + value; }

constexpr float ROUNDING = 12582912.0f;  // 1.5 * 2^23: the whole number stands in the sum's lowest bits

// Within 1e-7, of small values too; the polynomials are Cephes' (tanhf, expf). NaN stays NaN.
inline vec hyperbolic_tangent(vec z) {
  const vec s = z * z;
  vec small = all(-5.70498872745e-3f);
  for (float c : {2.06390887954e-2f, -5.37397155531e-2f, 1.33314422036e-1f, -3.33332819422e-1f}) small = small * s + c;
  small = z + z * s * small;
  vec y = z < 0.0f ? -2 * z : 2 * z;
  y = y > 20.0f ? all(20.0f) : y;
  const vec shifted = y * 1.44269504088896341f + ROUNDING;
  const vec whole = shifted - ROUNDING;
  const vec r = (y - whole * 0.693359375f) + whole * 2.12194440e-4f;
  vec power = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.0f, 1.0f})
    power = power * r + c;
  power = (vec)((bits)power + ((bits)shifted << 23));  // times 2^whole
  const vec large = 1 - 2 / (power + 1);
  return y < 1.25f ? small : z < 0.0f ? -large : large;
}

// z less whole multiples of a number that is the sum of the three, the first two of which have few digits.
inline vec reduced(vec z, vec whole, float high, float middle, float low) {
  return ((z - whole * high) - whole * middle) - whole * low;
}

constexpr float REDUCIBLE = 8192.0f;     // the largest angle whose multiples of pi are exact, digit by digit

// Within 1e-7, of angles up to REDUCIBLE. The odd polynomial is fitted to sin on [-pi/2, pi/2].
inline vec sine(vec z) {
  const vec shifted = z * 0.318309886f + ROUNDING;
  const vec r = reduced(z, shifted - ROUNDING, 3.140625f, 0.0009675025939941406f, 1.5099580252808664e-7f);
  const vec s = r * r;
  vec p = all(2.6000243239e-6f);
  for (float c : {-1.9806601512e-4f, 8.3330171032e-3f, -1.6666657089e-1f}) p = p * s + c;
  return (vec)((bits)(r + r * s * p) ^ ((bits)shifted << 31));
}

// Likewise, and `cosine`; the polynomials are Cephes' (sinf, cosf), on [-pi/4, pi/4].
inline vec sine_and_cosine(vec z, vec& cosine) {
  const vec shifted = z * 0.636619772f + ROUNDING;
  const vec r = reduced(z, shifted - ROUNDING, 1.5703125f, 0.0004837512969970703f, 7.549790126404332e-8f);
  const vec s = r * r;
  vec p = all(-1.9515295891e-4f), q = all(2.443315711809948e-5f);
  for (float c : {8.3321608736e-3f, -1.6666654611e-1f}) p = p * s + c;
  for (float c : {-1.388731625493765e-3f, 4.166664568298827e-2f, -0.5f, 1.0f}) q = q * s + c;
  p = r + r * s * p;
  const bits quarter = (bits)shifted, odd = (quarter & 1) != 0;
  cosine = (vec)((bits)(odd ? p : q) ^ (((quarter + 1) & 2) << 30));
  return (vec)((bits)(odd ? q : p) ^ ((quarter & 2) << 30));
}

class Buffer {  // starts at a cache line
 public:
  explicit Buffer(size_t count) : data_(static_cast<float*>(operator new(4 * count, std::align_val_t(64)))) {}
  Buffer(Buffer&& other) noexcept : data_(other.data_) { other.data_ = nullptr; }
  Buffer(const Buffer&) = delete;
  ~Buffer() { operator delete(data_, std::align_val_t(64)); }
  operator float*() const { return data_; }

 private:
  float* data_;
};

}  // namespace
