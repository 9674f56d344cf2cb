// Images of many multilayer perceptrons of one shape on a grid of pixels, and the gradients of their parameters.
//
// A network draws a block of pixels at a time, so few that what is written stays in the core's own cache; the backward
// pass computes a block's values again. Values are [neuron][pixel]: a vector holds consecutive pixels, of which the
// last few of an image are copies. Every network is computed by itself in one order, whatever the threads.

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#include "_vectors.h"

namespace {

constexpr int BLOCK = 256;                 // pixels at a time
constexpr int STRIDE = BLOCK + 2 * LANES;  // of a neuron's values: what a last vector writes too much stays within
constexpr int OUTPUTS = LANES == 16 ? 8 : 4;  // neurons whose sums are in registers together, for two vectors of pixels
constexpr int DOWN = LANES == 16 ? 4 : 2, ACROSS = LANES / DOWN;  // a tile of a weight's gradient
enum Kind : int32_t { NONE, SINE, RELU, TANH };                   // as _image_kernel.py numbers them

inline int rounded_up(int number, int step) { return (number + step - 1) / step * step; }

// Overwrites z with f(z), and writes f'(z) to `slope` unless it is null; f overwrites its argument and returns f'.
template <class Function>
inline void for_all(int count, float* z, float* slope, Function function) {
  for (int p = 0; p < count; p += LANES) {
    vec value = load(z + p);
    const vec derivative = function(value);
    if (slope) store(slope + p, derivative);
    store(z + p, value);
  }
}

void sines(int count, float* z, float* slope) {
  bits far{};
  for (int p = 0; p < count; p += LANES) far |= ~((load(z + p) <= REDUCIBLE) & (load(z + p) >= -REDUCIBLE));
  int32_t some = 0;
  for (int i = 0; i < LANES; ++i) some |= far[i];
  if (some)  // angles that are too large, infinite or no numbers: rare, and slow
    for (int p = 0; p < count; ++p) {
      if (slope) slope[p] = float(std::cos(double(z[p])));
      z[p] = float(std::sin(double(z[p])));
    }
  else if (slope)
    for_all(count, z, slope, [](vec& v) {
      vec cosine;
      v = sine_and_cosine(v, cosine);
      return cosine;
    });
  else
    for_all(count, z, nullptr, [](vec& v) { return v = sine(v); });
}

void activate(Kind kind, int count, float* z, float* slope) {
  if (kind == SINE)
    sines(count, z, slope);
  else if (kind == RELU)
    for_all(count, z, slope, [](vec& v) {
      const vec derivative = v > 0.0f ? all(1.0f) : vec{};
      v = v < 0.0f ? vec{} : v;
      return derivative;
    });
  else if (kind == TANH)
    for_all(count, z, slope, [](vec& v) {
      v = hyperbolic_tangent(v);
      return 1 - v * v;
    });
  else if (slope)
    for_all(count, z, slope, [](vec&) { return all(1.0f); });
}

// The matrix [rows][columns] as `product` reads it: OUTPUTS rows at a time, column by column.
void pack(const float* matrix, int rows, int columns, int64_t row_step, int64_t column_step, float scale, float* to) {
  for (int first = 0; first < rows; first += OUTPUTS)
    for (int c = 0; c < columns; ++c)
      for (int r = first; r < first + OUTPUTS; ++r)
        *to++ = r < rows ? matrix[r * row_step + c * column_step] * scale : 0.0f;
}

// `to` = offset + matrix times `from`, for N neurons on V vectors of pixels.
template <int N, int V>
inline void product_tile(const float* packed, const float* offset, int inputs, const float* from, float* to) {
  vec sums[N][V];
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) sums[n][v] = all(offset ? offset[n] : 0.0f);
  for (int i = 0; i < inputs; ++i, from += STRIDE, packed += OUTPUTS) {
    vec values[V];
    for (int v = 0; v < V; ++v) values[v] = load(from + v * LANES);
#pragma GCC unroll 8
    for (int n = 0; n < N; ++n)
#pragma GCC unroll 2
      for (int v = 0; v < V; ++v) sums[n][v] += packed[n] * values[v];
  }
  for (int n = 0; n < N; ++n)
    for (int v = 0; v < V; ++v) store(to + n * STRIDE + v * LANES, sums[n][v]);
}

template <int N>
void product_rows(int rows, const float* packed, const float* offset, int inputs, int pixels, const float* from,
                  float* to) {
  if constexpr (N > 1)
    if (rows < N) return product_rows<N - 1>(rows, packed, offset, inputs, pixels, from, to);
  int p = 0;
  for (; p + 2 * LANES <= pixels; p += 2 * LANES) product_tile<N, 2>(packed, offset, inputs, from + p, to + p);
  if (p < pixels) product_tile<N, 1>(packed, offset, inputs, from + p, to + p);
}

// `to` [outputs] = offset + packed matrix times `from` [inputs]; null `offset`: zeros.
void product(const float* packed, const float* offset, int outputs, int inputs, int pixels, const float* from,
             float* to) {
  for (int first = 0; first < outputs; first += OUTPUTS)
    product_rows<OUTPUTS>(outputs - first, packed + int64_t(first) * inputs, offset ? offset + first : nullptr, inputs,
                          pixels, from, to + int64_t(first) * STRIDE);
}

// Of LANES vectors the sums of each.
inline vec sums_of(vec* each) {
  bits lane;
  for (int i = 0; i < LANES; ++i) lane[i] = i;
#pragma GCC unroll 4
  for (int half = LANES / 2; half >= 1; half /= 2) {
    const bits upper = lane & half, across = lane ^ half, other = (upper != 0) & LANES;
#pragma GCC unroll 8
    for (int k = 0; k < half; ++k)
      each[k] = __builtin_shuffle(each[k], each[k + half], lane + other) +
                __builtin_shuffle(each[k], each[k + half], across + other);
  }
  return each[0];
}

// Adds products of `slope` [outputs] and `values` [inputs], summed over pixels, to `gradient`, tile by tile.
void add_outer(const float* slope, int outputs, const float* values, int inputs, int pixels, float* gradient) {
  for (int o = 0; o < outputs; o += DOWN)
    for (int i = 0; i < inputs; i += ACROSS, gradient += LANES) {
      vec sums[LANES] = {};
      const float *left = slope + int64_t(o) * STRIDE, *right = values + int64_t(i) * STRIDE;
      for (int p = 0; p < pixels; p += LANES) {
        vec row[DOWN];
#pragma GCC unroll 4
        for (int d = 0; d < DOWN; ++d) row[d] = load(left + d * STRIDE + p);
#pragma GCC unroll 16
        for (int a = 0; a < ACROSS; ++a) {
          const vec value = load(right + a * STRIDE + p);
#pragma GCC unroll 4
          for (int d = 0; d < DOWN; ++d) sums[d * ACROSS + a] += row[d] * value;
        }
      }
      store(gradient, load(gradient) + sums_of(sums));
    }
}

}  // namespace

// Per layer weights [network][out][in] and biases [network][out] or null; `widths` [depth + 1] begin with 2. Without
// `slopes` `images` [network][channel][pixel] are written; with them, the images' gradients, those of parameters.
struct Task {
  int32_t networks, depth, width, height, threads;
  const int32_t* widths;
  const Kind* kinds;
  const float *omegas, *columns, *rows;
  const float *const *weights, *const *biases;
  float* images;
  const float* slopes;
  float *const *weight_gradients, *const *bias_gradients;
  bool waves() const { return kinds[0] == SINE; }
};

namespace {

class Painter {  // one thread's memory
 public:
  Painter(const Task& task)
      : t(task), across_(task.columns, task.columns + task.width), down_(task.rows, task.rows + task.height) {
    across_.resize(rounded_up(t.width, LANES) + 2 * LANES, t.columns[t.width - 1]);  // a vector may read too much
    down_.resize(rounded_up(t.height, LANES), t.rows[t.height - 1]);
    for (int l = 0; l < t.depth; ++l) {
      const int in = t.widths[l], out = t.widths[l + 1];
      packed_.emplace_back(size_t(rounded_up(out, OUTPUTS)) * in);
      offsets_.emplace_back(rounded_up(out, OUTPUTS));
      values_.push_back(plane(in));
      if (!t.slopes) continue;
      turned_.emplace_back(size_t(rounded_up(in, OUTPUTS)) * out);
      slopes_.push_back(plane(out));
      flows_.push_back(plane(in));
      gradients_.emplace_back(gradient_size(l));
      sums_.emplace_back(out);
    }
    values_.push_back(plane(t.widths[t.depth]));
    waves_.emplace_back(t.waves() ? 2 * size_t(t.widths[1]) * (across_.size() + down_.size()) : 0);
  }

  void paint(int network) {
    prepare(network);
    const int64_t pixels = int64_t(t.width) * t.height;
    for (int64_t first = 0; first < pixels; first += BLOCK) {
      const int count = int(std::min<int64_t>(BLOCK, pixels - first));
      forward(first, count);
      for (int c = 0; c < t.widths[t.depth]; ++c) {
        const int64_t at = (int64_t(network) * t.widths[t.depth] + c) * pixels + first;
        if (!t.slopes) std::memcpy(t.images + at, values_[t.depth] + c * STRIDE, 4 * count);
        if (!t.slopes) continue;
        float* slope = slopes_[t.depth - 1] + c * STRIDE;
        for (int p = 0; p < count; ++p) slope[p] *= t.slopes[at + p];
        for (int p = count; p < rounded_up(count, LANES); ++p) slope[p] = 0;  // copies do not count
      }
      if (t.slopes) backward(rounded_up(count, LANES));
    }
    if (t.slopes) finish(network);
  }

 private:
  const Task& t;
  std::vector<Buffer> packed_, turned_, offsets_;  // weights, transposed ones, biases, all times omega
  std::vector<Buffer> values_, slopes_;            // before and after each layer; derivatives, then gradients of sums
  std::vector<Buffer> gradients_, sums_;           // of weights, tile by tile, and of biases
  std::vector<Buffer> flows_, waves_;  // gradients of what layers read; sines and cosines for columns, then for rows
  std::vector<float> across_, down_;   // columns and rows, and copies of the last ones

  // Of whole tiles, whatever is read of them beyond the neurons.
  static Buffer plane(int neurons) {
    const size_t size = size_t(rounded_up(neurons, LANES)) * STRIDE;
    Buffer found(size);
    std::memset(found, 0, 4 * size);
    return found;
  }

  size_t gradient_size(int l) const {
    return size_t(rounded_up(t.widths[l + 1], DOWN)) * rounded_up(t.widths[l], ACROSS);
  }

  void prepare(int network) {
    for (int l = 0; l < t.depth; ++l) {
      const int in = t.widths[l], out = t.widths[l + 1];
      const float* weight = t.weights[l] + int64_t(network) * in * out;
      pack(weight, out, in, in, 1, t.omegas[l], packed_[l]);
      for (int o = 0; o < out; ++o)
        offsets_[l][o] = t.biases[l] ? t.biases[l][int64_t(network) * out + o] * t.omegas[l] : 0.0f;
      if (!t.slopes) continue;
      if (l) pack(weight, in, out, 1, in, t.omegas[l], turned_[l]);
      std::memset(gradients_[l], 0, 4 * gradient_size(l));
      std::memset(sums_[l], 0, 4 * out);
    }
    if (!t.waves()) return;
    float* to = waves_[0];
    for (int o = 0; o < t.widths[1]; ++o) {
      const float* weight = t.weights[0] + (int64_t(network) * t.widths[1] + o) * 2;
      to = wave(across_, weight[0] * t.omegas[0], offsets_[0][o], to);
      to = wave(down_, weight[1] * t.omegas[0], 0.0f, to);
    }
  }

  static float* wave(const std::vector<float>& places, float weight, float offset, float* to) {
    const int size = int(places.size());
    for (int p = 0; p < size; p += LANES) store(to + p, load(&places[p]) * weight + offset);
    sines(size, to, to + size);
    return to + 2 * size;
  }

  void forward(int64_t first, int count) {
    const int pixels = rounded_up(count, LANES);
    for (int p = 0; p < count;) {  // the parts of rows among the pixels, the last one with copies that fill a vector
      const int row = int((first + p) / t.width), column = int((first + p) % t.width);
      const int length = std::min(t.width - column, count - p), to = p + length == count ? pixels : p + length;
      std::memcpy(values_[0] + p, &across_[column], 4 * (to - p));
      std::fill(values_[0] + STRIDE + p, values_[0] + STRIDE + to, t.rows[row]);
      if (t.waves()) first_waves(row, column, p, to - p);
      p += length;
    }
    for (int l = t.waves(); l < t.depth; ++l) {
      const int out = t.widths[l + 1];
      product(packed_[l], offsets_[l], out, t.widths[l], pixels, values_[l], values_[l + 1]);
      for (int o = 0; o < out * STRIDE; o += STRIDE)
        activate(t.kinds[l], pixels, values_[l + 1] + o, t.slopes ? slopes_[l] + o : nullptr);
    }
  }

  // sin(a + b) and cos(a + b) from those of columns and rows; what a row writes too much the next one overwrites.
  void first_waves(int row, int column, int place, int length) {
    const size_t wide = across_.size(), high = down_.size();
    for (int o = 0; o < t.widths[1]; ++o) {
      const float* start = waves_[0] + 2 * (wide + high) * o;
      const vec down_sine = all(start[2 * wide + row]), down_cosine = all(start[2 * wide + high + row]);
      float* value = values_[1] + o * STRIDE + place;
      float* slope = t.slopes ? slopes_[0] + o * STRIDE + place : nullptr;
      for (int p = 0; p < length; p += LANES) {
        const vec sine = load(start + column + p), cosine = load(start + wide + column + p);
        store(value + p, sine * down_cosine + cosine * down_sine);
        if (slope) store(slope + p, cosine * down_cosine - sine * down_sine);
      }
    }
  }

  void backward(int pixels) {
    for (int l = t.depth - 1; l >= 0; --l) {
      const int in = t.widths[l], out = t.widths[l + 1];
      add_outer(slopes_[l], out, values_[l], in, pixels, gradients_[l]);
      for (int o = 0; o < out; ++o) {
        vec sum{};
        for (int p = 0; p < pixels; p += LANES) sum += load(slopes_[l] + o * STRIDE + p);
        for (int i = 0; i < LANES; ++i) sums_[l][o] += sum[i];
      }
      if (l == 0) break;
      product(turned_[l], nullptr, in, out, pixels, slopes_[l], flows_[l]);
      for (int i = 0; i < in * STRIDE; i += STRIDE)
        for (int p = i; p < i + pixels; p += LANES)
          store(slopes_[l - 1] + p, load(slopes_[l - 1] + p) * load(flows_[l] + p));
    }
  }

  void finish(int network) {
    for (int l = 0; l < t.depth; ++l) {
      const int in = t.widths[l], out = t.widths[l + 1];
      float* found = t.weight_gradients[l] + int64_t(network) * in * out;
      for (int o = 0; o < out; ++o)
        for (int i = 0; i < in; ++i) {
          const int tile = o / DOWN * (rounded_up(in, ACROSS) / ACROSS) + i / ACROSS;
          found[o * in + i] = gradients_[l][tile * LANES + o % DOWN * ACROSS + i % ACROSS] * t.omegas[l];
        }
      if (t.bias_gradients[l])
        for (int o = 0; o < out; ++o) t.bias_gradients[l][int64_t(network) * out + o] = sums_[l][o] * t.omegas[l];
    }
  }
};

}  // namespace

extern "C" void draw_images(const Task& task) {
  std::atomic<int> next{0};
  auto work = [&] {
    Painter painter(task);
    for (int network; (network = next++) < task.networks;) painter.paint(network);
  };
  std::vector<std::thread> others;
  try {
    while (int(others.size()) + 1 < std::min(task.threads, task.networks)) others.emplace_back(work);
  } catch (const std::system_error&) {  // no more threads are to be had: those that run do the work
  }
  work();
  for (std::thread& other : others) other.join();
}
