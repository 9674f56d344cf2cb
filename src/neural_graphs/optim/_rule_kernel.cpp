// Three walks over the parameters of P networks, whose values stay in registers: momenta and their statistics, sums of
// messages, and updates. `_modulated.py` says what is computed, `_torch_edges.py` computes the same in torch.

#include <atomic>
#include <cmath>
#include <cstring>
#include <initializer_list>
#include <thread>
#include <vector>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

#include "../graph/_vectors.h"

namespace {

constexpr int MOMENTA = 3, FEATURES = 11, STATISTICS = 9, SCALES = 10, SUMMARY = 4;

struct Tile {  // a piece of a parameter: rows x (columns x taps), and where its rows and columns stand among the vectors
  int64_t tensor, piece, offset, rows, columns, taps, row_stride, column_stride, tap_stride, row_at, column_at, column_out;
};

struct Task {
  int64_t particles, tiles, pieces, places, sums, hidden, threads;
  const Tile* tile;
  const int64_t* strides;  // per tensor: between particles of weight, gradient, momenta, square, update; between momenta
  float *const *weight, *const *gradient, *const *momenta, *const *square, *const *update;
  double decay[4];  // of the momenta, of the square; in float, 1 - 0.999 would be off by 5e-5
  float epsilon;
  float* statistics;       // [P, tiles, STATISTICS]
  float* square_sums;      // [P, sums]
  const float* scales;     // [P, pieces, SCALES]
  const float* factor;     // [P, places]
  const float* vectors;    // [P, places, hidden]
  const float* matrix;     // [P, hidden, FEATURES]
  const float* heads;      // [P, 2, hidden]
  const float* offsets;    // [P, pieces]
  float* message_sums;     // [P, sums, hidden]
  float* summary;          // [P, tiles, SUMMARY]
  int64_t neurons, context, fixed, ages;
  const int64_t *extra, *piece, *side, *neuron, *slot;  // of the sums beyond the places: where they belong; of every place
  const float *summed, *collected, *numel;  // numbers of parameters at a place, in a slot, of a piece
  const float *statics, *corrections, *age_values;  // [pieces, fixed], [pieces, 4], [pieces, ages]
  float *described;        // [P, pieces, SCALES]: the scales, when they are written
  float *known;            // [P, pieces, context]
  float *factors, *profile;  // [P, places]
  const float *told, *ends, *spoken;  // [P, pieces, hidden], [P, 2, hidden], [P, 2 neurons, hidden]
  float *spread_out;       // [P, places, hidden]
  float *neuron_means, *piece_means;  // [P, neurons, 3, hidden], [P, pieces, 2, hidden]
};

inline float total(vec value) {
  float sum = 0;
  for (int i = 0; i < LANES; i++) sum += value[i];
  return sum;
}

inline vec root(vec x) {
#if defined(__AVX512F__)
  return (vec)_mm512_sqrt_ps((__m512)x);
#else
  for (int i = 0; i < LANES; i++) x[i] = std::sqrt(x[i]);
  return x;
#endif
}

inline vec clipped(vec x, float bound) {
  x = x > bound ? all(bound) : x;
  return x < -bound ? all(-bound) : x;
}

inline vec exponential(vec x) {  // of |x| <= 80; Cephes' polynomial
  const vec shifted = x * 1.44269504088896341f + ROUNDING;
  const vec whole = shifted - ROUNDING;
  const vec r = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
  vec power = all(1.9875691500e-4f);
  for (float c : {1.3981999507e-3f, 8.3334519073e-3f, 4.1665795894e-2f, 1.6666665459e-1f, 5.0000001201e-1f, 1.0f, 1.0f})
    power = power * r + c;
  return (vec)((bits)power + ((bits)shifted << 23));
}

// The numbers of one row of a tile in vectors: straight from memory, or gathered where they lie apart or end.
struct Row {
  const Tile& t;
  int64_t length;
  bool straight;
  explicit Row(const Tile& tile) : t(tile), length(tile.columns * tile.taps) {
    straight = (t.taps == 1 || t.tap_stride == 1) && (t.columns == 1 || t.column_stride == t.taps);
  }
  int64_t place(int64_t e) const { return e / t.taps * t.column_stride + e % t.taps * t.tap_stride; }
  vec read(const float* row, int64_t e) const {
    if (straight && e + LANES <= length) return load(row + e);
    vec value{};
    const int n = length - e < LANES ? length - e : LANES;
#if defined(__AVX512F__)
    if (straight) return (vec)_mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), row + e);
#endif
    for (int i = 0; i < n; i++) value[i] = row[straight ? e + i : place(e + i)];
    return value;
  }
  void write(float* row, int64_t e, vec value) const {
    if (straight && e + LANES <= length) return store(row + e, value);
    const int n = length - e < LANES ? length - e : LANES;
#if defined(__AVX512F__)
    if (straight) return _mm512_mask_storeu_ps(row + e, (__mmask16)((1u << n) - 1), (__m512)value);
#endif
    for (int i = 0; i < n; i++) row[straight ? e + i : place(e + i)] = value[i];
  }
};

struct Pointers {
  float *weight, *gradient, *momentum[MOMENTA], *square, *update;
  Pointers(const Task& task, const Tile& t, int64_t p) {
    const int64_t* s = task.strides + 6 * t.tensor;
    weight = task.weight[t.tensor] + p * s[0] + t.offset;
    gradient = task.gradient[t.tensor] + p * s[1] + t.offset;
    for (int k = 0; k < MOMENTA; k++) momentum[k] = task.momenta[t.tensor] + p * s[2] + k * s[5] + t.offset;
    square = task.square[t.tensor] + p * s[3] + t.offset;
    update = task.update ? task.update[t.tensor] + p * s[4] + t.offset : nullptr;
  }
};

template <typename Function>
void for_all(const Task& task, Function work) {
  const int64_t units = task.particles * task.tiles;
  std::atomic<int64_t> next{0};
  auto run = [&] {
    for (int64_t unit; (unit = next++) < units;) work(unit / task.tiles, unit % task.tiles);
  };
  std::vector<std::thread> others;
  for (int64_t i = 1; i < task.threads && i < units; i++) others.emplace_back(run);
  run();
  for (auto& thread : others) thread.join();
}

void measure_tile(const Task& task, int64_t p, int64_t number) {
  const Tile& t = task.tile[number];
  const Pointers at(task, t, p);
  const Row row(t);
  const int64_t padded = (row.length + LANES - 1) / LANES * LANES;
  Buffer columns(padded);
  std::memset(columns, 0, 4 * padded);
  double sums[STATISTICS] = {};
  float* out = task.square_sums + p * task.sums;
  const float keep = task.decay[MOMENTA];
  float enter[MOMENTA + 1];
  for (int k = 0; k <= MOMENTA; k++) enter[k] = 1 - task.decay[k];
  for (int64_t r = 0; r < t.rows; r++) {
    const int64_t begin = r * t.row_stride;
    vec part[STATISTICS] = {};
    for (int64_t e = 0; e < row.length; e += LANES) {
      const vec w = row.read(at.weight + begin, e), g = row.read(at.gradient + begin, e);
      vec m[MOMENTA];
      for (int k = 0; k < MOMENTA; k++) {
        m[k] = row.read(at.momentum[k] + begin, e);
        m[k] += enter[k] * (g - m[k]);
        row.write(at.momentum[k] + begin, e, m[k]);
        part[2 + k] += m[k] * m[k];
      }
      vec v = row.read(at.square + begin, e);
      v = keep * v + enter[MOMENTA] * (g * g);
      row.write(at.square + begin, e, v);
      part[0] += g * g;
      part[1] += w * w;
      part[5] += v;
      part[6] += g * m[1];
      part[7] += g * m[2];
      part[8] += w * m[1];
      store(columns + e, load(columns + e) + v);
    }
    for (int i = 0; i < STATISTICS; i++) sums[i] += total(part[i]);
    out[t.row_at + r] = total(part[5]);
  }
  for (int64_t c = 0; c < t.columns; c++) {
    float sum = 0;
    for (int64_t k = 0; k < t.taps; k++) sum += columns[c * t.taps + k];
    out[t.column_out + c] = sum;
  }
  float* statistics = task.statistics + (p * task.tiles + number) * STATISTICS;
  for (int i = 0; i < STATISTICS; i++) statistics[i] = sums[i];
}

// What a row's features need besides the numbers themselves.
struct Features {
  const float* s;  // SCALES
  float epsilon, row_factor;
  vec nominal;
  void operator()(vec f[FEATURES], vec w, vec g, const vec m[MOMENTA], vec v, vec column_factor) {
    const vec deviation = root(v * s[8]);
    const vec inverse = 1 / (deviation + epsilon);
    f[0] = clipped(g * s[0], 5);
    f[1] = clipped(w * s[1], 5);
    for (int k = 0; k < MOMENTA; k++) {
      f[2 + k] = clipped(m[k] * s[2 + k], 5);
      const vec ratio = m[k] * s[5 + k] * inverse;
      if (k == 1) nominal = ratio;
      f[5 + k] = clipped(ratio, 5);
    }
    f[8] = (deviation - s[9]) / (deviation + s[9] + 1e-30f);
    const vec factor = column_factor * row_factor;
    f[9] = clipped(m[1] * s[6] * factor, 5);
    f[10] = clipped(g * factor, 5);
  }
};

// vectors[column_at ...], one row per hidden unit and a place per column and tap
void lay_out(const Task& task, const Tile& t, int64_t p, int64_t padded, float* hidden, float* factor) {
  const float* vectors = task.vectors + (p * task.places + t.column_at) * task.hidden;
  const float* factors = task.factor + p * task.places + t.column_at;
  for (int64_t h = 0; h < task.hidden; h++)
    for (int64_t c = 0, e = 0; c < t.columns; c++)
      for (int64_t k = 0; k < t.taps; k++, e++) hidden[h * padded + e] = vectors[c * task.hidden + h];
  for (int64_t c = 0, e = 0; c < t.columns; c++)
    for (int64_t k = 0; k < t.taps; k++, e++) factor[e] = factors[c];
}

template <bool UPDATES>
void edge_tile(const Task& task, int64_t p, int64_t number) {
  const Tile& t = task.tile[number];
  const Pointers at(task, t, p);
  const Row row(t);
  const int64_t H = task.hidden, padded = (row.length + LANES - 1) / LANES * LANES;
  Buffer columns(H * padded), sums(UPDATES ? 0 : H * padded), factor(padded), mask(padded), row_sums(H * LANES);
  std::memset(columns, 0, 4 * H * padded);
  std::memset(factor, 0, 4 * padded);
  for (int64_t e = 0; e < padded; e++) mask[e] = e < row.length;
  if (!UPDATES) std::memset(sums, 0, 4 * H * padded);
  lay_out(task, t, p, padded, columns, factor);
  const float* matrix = task.matrix + p * H * FEATURES;
  const float* heads = UPDATES ? task.heads + p * 2 * H : nullptr;
  const float offset = UPDATES ? task.offsets[p * task.pieces + t.piece] : 0;
  Features features{task.scales + (p * task.pieces + t.piece) * SCALES, task.epsilon, 0, {}};
  double summary[SUMMARY] = {};
  for (int64_t r = 0; r < t.rows; r++) {
    const int64_t begin = r * t.row_stride;
    const float* vector = task.vectors + (p * task.places + t.row_at + r) * H;
    features.row_factor = task.factor[p * task.places + t.row_at + r];
    if (!UPDATES) std::memset(row_sums, 0, 4 * H * LANES);
    vec part[SUMMARY] = {};
    for (int64_t e = 0; e < row.length; e += LANES) {
      vec m[MOMENTA], f[FEATURES];
      for (int k = 0; k < MOMENTA; k++) m[k] = row.read(at.momentum[k] + begin, e);
      features(f, row.read(at.weight + begin, e), row.read(at.gradient + begin, e), m, row.read(at.square + begin, e),
               load(factor + e));
      const vec valid = load(mask + e);
      vec log_gain = all(offset), added{};
      for (int64_t h = 0; h < H; h++) {
        const float* a = matrix + h * FEATURES;
        vec x = load(columns + h * padded + e) + vector[h], y = f[0] * a[0];
        for (int i = 1; i < FEATURES; i += 2) {
          x += f[i] * a[i];
          y += f[i + 1] * a[i + 1];
        }
        x += y;
        x = x > 0.0f ? x : vec{};
        if constexpr (UPDATES) {
          log_gain += x * heads[h];
          added += x * heads[H + h];
        } else {
          x *= valid;
          store(row_sums + h * LANES, load(row_sums + h * LANES) + x);
          store(sums + h * padded + e, load(sums + h * padded + e) + x);
        }
      }
      if constexpr (UPDATES) {
        const vec nominal = features.nominal;
        vec d = nominal * exponential(clipped(log_gain, 5)) + added;
        const bits finite = (d - d) == 0.0f;  // and where it is not, the nominal step
        d = finite ? d : nominal;
        row.write(at.update + begin, e, d);
        d *= valid;
        part[0] += d * d;
        part[1] += nominal * nominal;
        part[2] += d * nominal;
        part[3] += finite ? vec{} : valid;
      }
    }
    if (UPDATES)
      for (int i = 0; i < SUMMARY; i++) summary[i] += total(part[i]);
    else
      for (int64_t h = 0; h < H; h++)
        task.message_sums[(p * task.sums + t.row_at + r) * H + h] = total(load(row_sums + h * LANES));
  }
  if (UPDATES) {
    for (int i = 0; i < SUMMARY; i++) task.summary[(p * task.tiles + number) * SUMMARY + i] = summary[i];
    return;
  }
  for (int64_t c = 0; c < t.columns; c++)
    for (int64_t h = 0; h < H; h++) {
      float sum = 0;
      for (int64_t k = 0; k < t.taps; k++) sum += sums[h * padded + c * t.taps + k];
      task.message_sums[(p * task.sums + t.column_out + c) * H + h] = sum;
    }
}

inline float bounded(float x, float low, float high) { return x < low ? low : x > high ? high : x; }

// Scales, context and profiles of one network; see `_torch_edges.py`.
void describe(const Task& task, int64_t p) {
  const int64_t B = task.pieces, M = task.places;
  std::vector<double> mean(B * STATISTICS);
  std::vector<float> whole(B);
  for (int64_t t = 0; t < task.tiles; t++)
    for (int i = 0; i < STATISTICS; i++)
      mean[task.tile[t].piece * STATISTICS + i] += task.statistics[(p * task.tiles + t) * STATISTICS + i];
  for (int64_t b = 0; b < B; b++) {
    double* s = mean.data() + b * STATISTICS;
    for (int i = 0; i < STATISTICS; i++) s[i] /= task.numel[b];
    const float* c = task.corrections + 4 * b;
    float* scale = task.described + (p * B + b) * SCALES;
    float rms[5], noise[MOMENTA];
    for (int i = 0; i < 5; i++) {
      rms[i] = std::sqrt((float)s[i]);
      scale[i] = 1 / (rms[i] + 1e-20f);
    }
    for (int i = 0; i < 4; i++) scale[5 + i] = c[i];
    whole[b] = (float)s[5] * c[3];
    const float deviation = std::sqrt(whole[b]);
    scale[9] = deviation;
    float* out = task.known + (p * B + b) * task.context;
    std::memcpy(out, task.statics + b * task.fixed, 4 * task.fixed);
    out += task.fixed;
    *out++ = bounded(std::log10(rms[1] + 1e-8f), -6, 6) / 2;
    for (int k = 0; k < MOMENTA; k++) {
      noise[k] = rms[2 + k] * c[k] / (deviation + 1e-20f);
      *out++ = std::log10(noise[k] + 1e-6f) / 2;
    }
    *out++ = noise[1] > 2 ? 2 : noise[1];
    *out++ = bounded((float)s[6] * scale[0] * scale[3], -1, 1);
    *out++ = bounded((float)s[7] * scale[0] * scale[4], -1, 1);
    *out++ = bounded((float)s[8] * scale[1] * scale[3], -1, 1);
    std::memcpy(out, task.age_values + b * task.ages, 4 * task.ages);
  }
  float* sums = task.square_sums + p * task.sums;
  for (int64_t i = M; i < task.sums; i++) sums[task.extra[i - M]] += sums[i];
  for (int64_t i = 0; i < M; i++) {
    const int64_t b = task.piece[i];
    const float at = sums[i] / task.summed[i] * task.corrections[4 * b + 3], all_of_it = whole[b];
    const float root_at = std::sqrt(at), level = std::sqrt(all_of_it);
    task.factors[p * M + i] = std::sqrt(level) / std::sqrt(at + (1e-12f * all_of_it + 1e-30f));
    task.profile[p * M + i] = (root_at - level) / (root_at + level + 1e-30f);
  }
}

void spread_network(const Task& task, int64_t p) {
  const int64_t H = task.hidden, nothing = 2 * task.neurons;
  const float* ends = task.ends + p * 2 * H;
  for (int64_t i = 0; i < task.places; i++) {
    float* out = task.spread_out + (p * task.places + i) * H;
    const float profile = task.profile[p * task.places + i], *end = ends + task.side[i] * H;
    const float* told = task.side[i] ? nullptr : task.told + (p * task.pieces + task.piece[i]) * H;
    const bool heard = task.spoken && task.neuron[i] != nothing;
    const float* spoken = heard ? task.spoken + (p * nothing + task.neuron[i]) * H : nullptr;
    for (int64_t h = 0; h < H; h++) out[h] = profile * end[h] + (told ? told[h] : 0) + (spoken ? spoken[h] : 0);
  }
}

void collect(const Task& task, int64_t p) {
  const int64_t H = task.hidden, N = task.neurons, B = task.pieces, M = task.places;
  float* sums = task.message_sums + p * task.sums * H;
  for (int64_t i = M; i < task.sums; i++)
    for (int64_t h = 0; h < H; h++) sums[task.extra[i - M] * H + h] += sums[i * H + h];
  float* neurons = task.neuron_means + p * N * 3 * H;
  float* pieces = task.piece_means + p * B * 2 * H;
  std::memset(neurons, 0, 4 * N * 3 * H);
  std::memset(pieces, 0, 4 * B * 2 * H);
  std::vector<float> whole(H);
  float count = 0;
  for (int64_t i = 0; i < M; i++) {
    const float* sum = sums + i * H;
    const int64_t slot = task.slot[i];
    if (slot < 3 * N) {
      float* out = neurons + (slot % N * 3 + slot / N) * H;
      for (int64_t h = 0; h < H; h++) out[h] += sum[h];
    }
    if (task.side[i]) continue;
    float* out = pieces + task.piece[i] * 2 * H;
    for (int64_t h = 0; h < H; h++) out[h] += sum[h];
  }
  for (int64_t slot = 0; slot < 3 * N; slot++)
    for (int64_t h = 0; h < H; h++) neurons[(slot % N * 3 + slot / N) * H + h] /= task.collected[slot];
  for (int64_t b = 0; b < B; b++) {
    count += task.numel[b];
    for (int64_t h = 0; h < H; h++) {
      whole[h] += pieces[b * 2 * H + h];
      pieces[b * 2 * H + h] /= task.numel[b];
    }
  }
  for (int64_t b = 0; b < B; b++)
    for (int64_t h = 0; h < H; h++) pieces[(b * 2 + 1) * H + h] = whole[h] / count;
}

}  // namespace

extern "C" void measure(const Task* task) {
  for_all(*task, [&](int64_t p, int64_t tile) { measure_tile(*task, p, tile); });
  for (int64_t p = 0; p < task->particles; p++) describe(*task, p);
}
extern "C" void spread(const Task* task) {
  for (int64_t p = 0; p < task->particles; p++) spread_network(*task, p);
}
extern "C" void message_means(const Task* task) {
  for_all(*task, [&](int64_t p, int64_t tile) { edge_tile<false>(*task, p, tile); });
  for (int64_t p = 0; p < task->particles; p++) collect(*task, p);
}
extern "C" void updates(const Task* task) {
  for_all(*task, [&](int64_t p, int64_t tile) { edge_tile<true>(*task, p, tile); });
}
