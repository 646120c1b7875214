// A register block of a direct convolution: R output pixels by NV vectors of output channels.
#pragma once
#include <utility>

#include "cpu/kernels/activation.inl"
#include "cpu/kernels/stream.inl"

namespace {

// What one register block works on.
template <int R>
struct Tile {
  const float* input[R];
  const float* next;  // first pixel of the block after it
  int64_t pixel;      // distance of two input pixels
  float* output[R];
  const float* residual[R];

  const float* input_at(int r) const { return input[r]; }
  float* output_at(int r) const { return output[r]; }
  const float* residual_at(int r) const { return residual[r]; }
};

// The same where pixels lie at equal distances: no arrays of addresses are written and read.
template <int R>
struct EvenTile {
  const float* input;
  const float* next;
  int64_t pixel;
  float* output;
  int64_t output_pixel;
  const float* residual;
  int64_t residual_pixel;

  const float* input_at(int r) const { return input + r * pixel; }
  float* output_at(int r) const { return output + r * output_pixel; }
  const float* residual_at(int r) const { return residual + r * residual_pixel; }
  void advance() {
    input += R * pixel;
    output += R * output_pixel;
    if (residual) residual += R * residual_pixel;
  }
};

// Part of the dot products that one pass covers.
struct Pass {
  const int64_t* tap;
  int64_t taps;
  int64_t start, length;  // inside each stretch
  const float* weight;
  bool first, last;             // first: accumulators start at zero; last: the epilogue runs
  Stream stream{};              // of the weights
  bool fetches_input = false;   // of the next register block
  bool fetches_output = false;  // of this one
};

struct Epilogue {
  const float* scale;
  const float* shift;
  int64_t last_lanes;  // channels in the panel's last vector
  bool has_residual;
  Activation activation;
};

template <int NV>
inline Vec load_lane_group(const float* p, int j, int64_t last_lanes) {
  return j == NV - 1 ? Vec::load_first(p + j * Vec::kWidth, last_lanes) : Vec::load(p + j * Vec::kWidth);
}

template <int NV>
inline void store_lane_group(Vec x, float* p, int j, int64_t last_lanes) {
  if (j == NV - 1)
    x.store_first(p + j * Vec::kWidth, last_lanes);
  else
    x.store(p + j * Vec::kWidth);
}

template <int NV, int R, class AnyTile>
[[gnu::always_inline]] inline void finish(Vec (&acc)[R][NV], const AnyTile& tile, const Epilogue& e) {
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j) {
    if (e.scale) {
      const Vec scale = Vec::load(e.scale + j * Vec::kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][j] = acc[r][j] * scale;
    }
    if (e.shift) {
      const Vec shift = Vec::load(e.shift + j * Vec::kWidth);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][j] = acc[r][j] + shift;
    }
    if (e.has_residual) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r)
        acc[r][j] = acc[r][j] + load_lane_group<NV>(tile.residual_at(r), j, e.last_lanes);
    }
  }
  activate_block<R * NV>(e.activation, [&](auto f) __attribute__((always_inline)) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[r][j] = f(acc[r][j]);
  });
}

// More pixels than there are registers for their addresses: several steps share one load of each.
template <int R>
constexpr bool kManyPixels = R > 10;

// Steps [k, k + kSteps) of the dot products.
template <int NV, int R, int kSteps>
[[gnu::always_inline]] inline void multiply(const float* const (&x)[R], int64_t k, const float* w,
                                            const Stream& stream, Vec (&acc)[R][NV]) {
  Vec b[kSteps][NV];
#pragma GCC unroll 4
  for (int s = 0; s < kSteps; ++s) {
    stream.fetch(w + s * NV * Vec::kWidth);
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) b[s][j] = Vec::load(w + (s * NV + j) * Vec::kWidth);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
    for (int s = 0; s < kSteps; ++s) {
      const Vec a = Vec::set1(x[r][k + s]);
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) acc[r][j] = Vec::fma(a, b[s][j], acc[r][j]);
    }
  }
}

template <int NV, int R, class AnyTile>
[[gnu::always_inline]] inline void start_sums(Vec (&acc)[R][NV], const AnyTile& tile, const Pass& pass,
                                              const Epilogue& e) {
  if (pass.fetches_output) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) __builtin_prefetch(tile.output_at(r) + j * Vec::kWidth, 1, 3);
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j)
      acc[r][j] = pass.first ? Vec::zero() : load_lane_group<NV>(tile.output_at(r), j, e.last_lanes);
}

template <int NV, int R, class AnyTile>
[[gnu::always_inline]] inline void store_sums(Vec (&acc)[R][NV], const AnyTile& tile, const Pass& pass,
                                              const Epilogue& e) {
  // Of a copy: compilers keep no sums in registers whose addresses have been taken.
  Vec sums[R][NV];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) sums[r][j] = acc[r][j];
  if (pass.last) finish<NV, R>(sums, tile, e);
  // Read first: compilers do not know that stores leave the tile as it is.
  float* output[R];
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r) output[r] = tile.output_at(r);
  if (e.last_lanes >= Vec::kWidth) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
      for (int j = 0; j < NV; ++j) sums[r][j].store(output[r] + j * Vec::kWidth);
    return;
  }
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) store_lane_group<NV>(sums[r][j], output[r], j, e.last_lanes);
}

// Step k + kStep by products that take addresses, for sets of too few registers to leave that to compilers.
template <int kStep, int NV, int R, int... r>
[[gnu::always_inline]] inline void multiply_step(const float* const (&x)[R], int64_t k, const float* w,
                                                 Vec (&acc)[R][NV], std::integer_sequence<int, r...>) {
  Vec b[NV];
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j) b[j] = Vec::load(w + (kStep * NV + j) * Vec::kWidth);
  (add_products<kStep>(x[r], k, b, acc[r]), ...);
}

template <int NV, int R, int... steps>
[[gnu::always_inline]] inline void multiply_steps(const float* const (&x)[R], int64_t& k, const float*& w,
                                                  Vec (&acc)[R][NV], std::integer_sequence<int, steps...>) {
  (multiply_step<steps>(x, k, w, acc, std::make_integer_sequence<int, R>()), ...);
  w += static_cast<int>(sizeof...(steps)) * NV * Vec::kWidth;
  k += static_cast<int>(sizeof...(steps));
}

// Steps [k, end) of the dot products.
template <bool kStreams, int NV, int R>
[[gnu::always_inline]] inline void multiply_until(const float* const (&x)[R], int64_t k, int64_t end,
                                                  const float*& w, const Stream& stream, Vec (&acc)[R][NV]) {
  if constexpr (kAddressedProducts) {
    constexpr std::make_integer_sequence<int, kStreamSteps> kMany{};
    constexpr std::make_integer_sequence<int, 1> kOne{};
    while (k + kStreamSteps <= end) {
      if constexpr (kStreams) stream.fetch(w);
      multiply_steps(x, k, w, acc, kMany);
    }
    while (k < end) multiply_steps(x, k, w, acc, kOne);
  } else {
    if constexpr (kManyPixels<R>)
      for (; k + 4 <= end; k += 4, w += 4 * NV * Vec::kWidth) multiply<NV, R, 4>(x, k, w, stream, acc);
    for (; k < end; ++k, w += NV * Vec::kWidth) multiply<NV, R, 1>(x, k, w, stream, acc);
  }
}

template <int NV, int R, bool kFetchesInput, bool kStreams, class AnyTile>
[[gnu::always_inline]] inline void multiply_taps(const AnyTile& tile, const Pass& pass, Vec (&acc)[R][NV]) {
  const float* w = pass.weight;
  for (int64_t t = 0; t < pass.taps; ++t) {
    const int64_t offset = pass.tap[t] + pass.start;
    const float* x[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) x[r] = tile.input_at(r) + offset;
    for (int64_t k = 0; k < pass.length;) {
      int64_t end = pass.length;
      if constexpr (kFetchesInput) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) __builtin_prefetch(tile.next + r * tile.pixel + offset + k, 0, 3);
        if (end - k > kLineFloats) end = k + kLineFloats;
      }
      multiply_until<kStreams>(x, k, end, w, pass.stream, acc);
      k = end;
    }
  }
}

template <int NV, int R, bool kFetchesInput>
void compute_tile(const Tile<R>& tile, const Pass& pass, const Epilogue& e) {
  Vec acc[R][NV];
  start_sums<NV, R>(acc, tile, pass, e);
  multiply_taps<NV, R, kFetchesInput, true>(tile, pass, acc);
  store_sums<NV, R>(acc, tile, pass, e);
}

// Tiles that follow one another in a row; `tile` is the first, `tile.next` what follows the last. A call for
// each would take as long as a short dot product.
template <int NV, int R, bool kFetchesInput, bool kStreams>
void compute_tiles(EvenTile<R> tile, int64_t tiles, const Pass& pass, const Epilogue& e) {
  const float* const behind = tile.next;
  for (; tiles > 0; --tiles, tile.advance()) {
    tile.next = tiles > 1 ? tile.input + R * tile.pixel : behind;
    Vec acc[R][NV];
    start_sums<NV, R>(acc, tile, pass, e);
    multiply_taps<NV, R, kFetchesInput, kStreams>(tile, pass, acc);
    store_sums<NV, R>(acc, tile, pass, e);
  }
}

}  // namespace
