// A training step of many small convolutional networks of one shape on the same images: losses and gradients.
//
// Networks are convolutions without padding, each with a bias and relu or tanh behind it, values of all but the first dropped
// at the network's own rate; then the mean over positions, a linear layer and cross-entropy. Of each network a few images at
// a time go forward and back, so that what is written never leaves the core's own cache. Feature maps are
// [image][row][column][channel]; a vector holds consecutive output channels, of which there are a multiple of its length.

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "../graph/_vectors.h"

namespace {

// Sums in registers at a time: of ROW entries of a kernel's row for its gradient, of TOGETHER positions else.
constexpr int ROW = LANES == 16 ? 16 : 8, TOGETHER = 8;
constexpr int BLOCK = 8;  // images at a time

struct Shape {  // of a convolution, as it is handed over
  int32_t inputs, outputs, kernel_rows, kernel_columns, stride, in_rows, in_columns, rows, columns;
  int weights() const { return kernel_rows * kernel_columns * inputs * outputs; }
  int written() const { return rows * columns * outputs; }
  int read() const { return in_rows * in_columns * inputs; }
};

// Positions `to` that are written as the sums over `taps` of `run` consecutive numbers, at `from + tap`, times weights.
struct Sums {
  std::vector<int> from, to, taps, weights;
  int run;
};

// A kernel's row is one run in memory.
Sums forward_sums(const Shape& s, int images) {
  Sums found;
  found.run = s.kernel_columns * s.inputs;
  for (int row = 0; row < s.kernel_rows; ++row) {
    found.taps.push_back(row * s.in_columns * s.inputs);
    found.weights.push_back(row * found.run * s.outputs);
  }
  for (int image = 0; image < images; ++image)
    for (int y = 0; y < s.rows; ++y)
      for (int x = 0; x < s.columns; ++x) {
        found.from.push_back(image * s.read() + (y * s.in_columns + x) * s.stride * s.inputs);
        found.to.push_back(image * s.written() + (y * s.columns + x) * s.outputs);
      }
  return found;
}

// The gradient of what a convolution reads. Positions that are read by the same entries of the kernel form a group.
std::vector<Sums> backward_sums(const Shape& s, int images) {
  std::vector<Sums> found;
  for (int y = 0; y < s.in_rows; ++y)
    for (int x = 0; x < s.in_columns; ++x) {
      Sums sums;
      sums.run = s.outputs;
      for (int ky = y % s.stride; ky <= y && ky < s.kernel_rows; ky += s.stride)
        for (int kx = x % s.stride; kx <= x && kx < s.kernel_columns; kx += s.stride)
          if ((y - ky) / s.stride < s.rows && (x - kx) / s.stride < s.columns) {
            sums.taps.push_back(-((ky / s.stride) * s.columns + kx / s.stride) * s.outputs);
            sums.weights.push_back((ky * s.kernel_columns + kx) * s.inputs * s.outputs);
          }
      auto same = std::find_if(found.begin(), found.end(), [&](const Sums& other) {
        return other.weights == sums.weights && other.taps == sums.taps;
      });
      if (same == found.end()) same = found.insert(found.end(), sums);
      same->from.push_back(((y / s.stride) * s.columns + x / s.stride) * s.outputs);
      same->to.push_back((y * s.in_columns + x) * s.inputs);
    }
  for (Sums& sums : found) {
    const size_t places = sums.to.size();
    for (size_t i = places; i < places * images; ++i) {
      sums.from.push_back(sums.from[i - places] + s.written());
      sums.to.push_back(sums.to[i - places] + s.read());
    }
  }
  return found;
}

template <int N, class Write>
inline void add_up(const Sums& sums, int first, const float* source, const float* weights, int width, Write write) {
  vec total[N];
  const float* at[N];
  for (int i = 0; i < N; ++i) total[i] = vec{}, at[i] = source + sums.from[first + i];
  for (size_t tap = 0; tap < sums.taps.size(); ++tap) {
    const float* weight = weights + sums.weights[tap];
    const int64_t shift = sums.taps[tap];
    for (int64_t c = shift; c < shift + sums.run; ++c, weight += width) {
      const vec w = load(weight);
#pragma GCC unroll 8
      for (int i = 0; i < N; ++i) total[i] += at[i][c] * w;
    }
  }
  for (int i = 0; i < N; ++i) write(sums.to[first + i], total[i]);
}

// Calls `write(place, sum)` for every position among the first `count`; `weights` are [tap][run][width].
template <class Write>
void all_sums(const Sums& sums, int count, const float* source, const float* weights, int width, Write write) {
  int first = 0;
  for (; first + TOGETHER <= count; first += TOGETHER) add_up<TOGETHER>(sums, first, source, weights, width, write);
  if (count - first >= 4) add_up<4>(sums, first, source, weights, width, write), first += 4;
  if (count - first >= 2) add_up<2>(sums, first, source, weights, width, write), first += 2;
  if (count - first >= 1) add_up<1>(sums, first, source, weights, width, write);
}

// gradient[row][n] += sum over positions of source[from + taps[row] + n] * slope, for N consecutive n.
template <int ROWS, int N>
void add_products(const Sums& sums, int count, const float* source, const int* taps, const float* slope, int width,
                  float* const* gradient) {
  vec total[ROWS][N];
  for (int r = 0; r < ROWS; ++r)
    for (int n = 0; n < N; ++n) total[r][n] = load(gradient[r] + n * width);
  for (int p = 0; p < count; ++p) {
    const vec g = load(slope + int64_t(p) * width);
    const float* at = source + sums.from[p];
#pragma GCC unroll 4
    for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 16
      for (int n = 0; n < N; ++n) total[r][n] += at[taps[r] + n] * g;
  }
  for (int r = 0; r < ROWS; ++r)
    for (int n = 0; n < N; ++n) store(gradient[r] + n * width, total[r][n]);
}

template <int N>
void add_rest(int left, const Sums& sums, int count, const float* source, int tap, const float* slope, int width,
              float* gradient) {
  if (left == N)
    add_products<1, N>(sums, count, source, &tap, slope, width, &gradient);
  else if constexpr (N > 1)
    add_rest<N - 1>(left, sums, count, source, tap, slope, width, gradient);
}

// The gradient of a convolution's weights, [row][run][width]; `slope` is that of its sums.
void weight_gradient(const Sums& sums, int count, const float* source, const float* slope, int width, float* gradient) {
  if (sums.run == 3 && sums.taps.size() == 3) {  // images of one channel: too few sums in a single row
    float* rows[3];
    for (int r = 0; r < 3; ++r) rows[r] = gradient + sums.weights[r];
    add_products<3, 3>(sums, count, source, sums.taps.data(), slope, width, rows);
    return;
  }
  for (size_t row = 0; row < sums.taps.size(); ++row)
    for (int n = 0; n < sums.run; n += ROW)
      add_rest<ROW>(std::min(ROW, sums.run - n), sums, count, source, sums.taps[row] + n, slope, width,
                   gradient + sums.weights[row] + n * width);
}

struct Layer {
  Shape shape;
  Sums forward;
  std::vector<Sums> backward;  // empty for the first
  Buffer values, slopes;       // behind the activation; its derivative, then the gradient of the sums
  Buffer weights, turned;      // [row][column][in][out], [row][column][out][in]
  Buffer gradient, offsets;
  const float* noise = nullptr;  // [image][row][column][outputs]
};

}  // namespace

// `offsets` says where in `params` and `gradients` each layer's weights and biases begin, those of all networks one after
// another: two per layer, of which the last is linear. `noise` has a pointer per convolution, null for none; `tanh` a flag per
// network and convolution, `rates` the share that each network drops. `losses` and `gradients` are written.
extern "C" void training_step(int networks, int images, int depth, int classes, const Shape* shapes,
                              const int64_t* offsets, const float* x, const int64_t* labels, const float* const* noise,
                              const int32_t* tanh, const float* rates, const float* params, float* gradients,
                              float* losses) {
  std::vector<Layer> layers;
  for (int l = 0; l < depth; ++l) {
    const Shape& s = shapes[l];
    const size_t written = size_t(s.written()) * BLOCK, weights = s.weights();
    layers.push_back({s, forward_sums(s, BLOCK), l ? backward_sums(s, BLOCK) : std::vector<Sums>(), Buffer(written),
                      Buffer(written), Buffer(weights), Buffer(weights), Buffer(weights), Buffer(s.outputs), noise[l]});
  }
  Layer& last = layers.back();
  const int width = last.shape.outputs, places = last.shape.rows * last.shape.columns;
  std::vector<float> mean(width), back(width), logits(classes);

  for (int b = 0; b < networks; ++b) {
    for (int l = 0; l < depth; ++l) {
      Layer& layer = layers[l];
      const Shape& s = layer.shape;
      const float* given = params + offsets[2 * l] + int64_t(b) * s.weights();
      const int area = s.kernel_rows * s.kernel_columns;
      for (int o = 0; o < s.outputs; ++o)
        for (int i = 0; i < s.inputs; ++i)
          for (int k = 0; k < area; ++k) {
            const float value = given[(o * s.inputs + i) * area + k];
            layer.weights[(k * s.inputs + i) * s.outputs + o] = value;
            layer.turned[(k * s.outputs + o) * s.inputs + i] = value;
          }
      std::memset(layer.gradient, 0, 4 * s.weights());
      std::memset(layer.offsets, 0, 4 * s.outputs);
    }
    const float* head = params + offsets[2 * depth] + int64_t(b) * classes * width;
    const float* head_offset = params + offsets[2 * depth + 1] + int64_t(b) * classes;
    float* head_gradient = gradients + offsets[2 * depth] + int64_t(b) * classes * width;
    float* head_offset_gradient = gradients + offsets[2 * depth + 1] + int64_t(b) * classes;
    std::memset(head_gradient, 0, 4 * classes * width);
    std::memset(head_offset_gradient, 0, 4 * classes);
    const vec kept = all(1 / (1 - rates[b])), rate = all(rates[b]);
    float loss = 0;

    for (int first = 0; first < images; first += BLOCK) {
      const int count = std::min(BLOCK, images - first);
      const float* start = x + int64_t(first) * layers[0].shape.read();
      const float* source = start;
      for (int l = 0; l < depth; ++l) {
        Layer& layer = layers[l];
        const Shape& s = layer.shape;
        const float* offset = params + offsets[2 * l + 1] + int64_t(b) * s.outputs;
        const float* drawn = layer.noise ? layer.noise + int64_t(first) * s.written() : nullptr;
        const bool is_tanh = tanh[b * depth + l];
        for (int o = 0; o < s.outputs; o += LANES) {
          const vec added = load(offset + o);
          all_sums(layer.forward, count * s.rows * s.columns, source, layer.weights + o, s.outputs, [&](int to, vec z) {
            z += added;
            vec value, slope;
            if (is_tanh) {
              value = hyperbolic_tangent(z);
              slope = 1 - value * value;
            } else {
              value = z < 0.0f ? vec{} : z;
              slope = z > 0.0f ? all(1.0f) : vec{};
            }
            if (drawn) {
              const vec factor = load(drawn + to + o) >= rate ? kept : vec{};
              value *= factor;
              slope *= factor;
            }
            store(layer.values + to + o, value);
            store(layer.slopes + to + o, slope);
          });
        }
        source = layer.values;
      }
      for (int image = 0; image < count; ++image) {
        const float* values = last.values + int64_t(image) * last.shape.written();
        float* slopes = last.slopes + int64_t(image) * last.shape.written();
        std::fill(mean.begin(), mean.end(), 0.0f);
        std::fill(back.begin(), back.end(), 0.0f);
        for (int p = 0; p < places; ++p)
          for (int c = 0; c < width; ++c) mean[c] += values[p * width + c];
        for (int c = 0; c < width; ++c) mean[c] /= places;
        for (int k = 0; k < classes; ++k) {
          float sum = 0;
          for (int c = 0; c < width; ++c) sum += head[k * width + c] * mean[c];
          logits[k] = sum + head_offset[k];
        }
        const float most = *std::max_element(logits.begin(), logits.end());
        const int64_t label = labels[first + image];
        float sum = 0;
        const float at_label = logits[label] - most;
        for (float& value : logits) sum += value = std::exp(value - most);
        loss += std::log(sum) - at_label;
        for (int k = 0; k < classes; ++k) {
          const float slope = (logits[k] / sum - (k == label)) / images;
          head_offset_gradient[k] += slope;
          for (int c = 0; c < width; ++c) {
            head_gradient[k * width + c] += slope * mean[c];
            back[c] += slope * head[k * width + c] / places;
          }
        }
        for (int p = 0; p < places; ++p)
          for (int c = 0; c < width; ++c) slopes[p * width + c] *= back[c];
      }
      for (int l = depth - 1; l >= 0; --l) {
        Layer& layer = layers[l];
        const Shape& s = layer.shape;
        const float* read = l ? static_cast<const float*>(layers[l - 1].values) : start;
        const int positions = count * s.rows * s.columns;
        for (int o = 0; o < s.outputs; o += LANES) {
          weight_gradient(layer.forward, positions, read, layer.slopes + o, s.outputs, layer.gradient + o);
          vec sum = load(layer.offsets + o);
          for (int p = 0; p < positions; ++p) sum += load(layer.slopes + int64_t(p) * s.outputs + o);
          store(layer.offsets + o, sum);
        }
        if (l == 0) break;
        float* slopes = layers[l - 1].slopes;
        for (const Sums& sums : layer.backward)
          for (int i = 0; i < s.inputs; i += LANES) {
            auto write = [&](int to, vec sum) { store(slopes + to + i, load(slopes + to + i) * sum); };
            all_sums(sums, int(sums.to.size()) / BLOCK * count, layer.slopes, layer.turned + i, s.inputs, write);
          }
      }
    }
    losses[b] = loss / images;
    for (int l = 0; l < depth; ++l) {
      const Layer& layer = layers[l];
      const Shape& s = layer.shape;
      const int area = s.kernel_rows * s.kernel_columns;
      float* found = gradients + offsets[2 * l] + int64_t(b) * s.weights();
      for (int k = 0; k < area; ++k)
        for (int i = 0; i < s.inputs; ++i)
          for (int o = 0; o < s.outputs; ++o)
            found[(o * s.inputs + i) * area + k] = layer.gradient[(k * s.inputs + i) * s.outputs + o];
      std::memcpy(gradients + offsets[2 * l + 1] + int64_t(b) * s.outputs, layer.offsets, 4 * s.outputs);
    }
  }
}
