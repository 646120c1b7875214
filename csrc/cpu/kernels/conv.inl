// Direct convolution, NHWC: a register block of R output pixels by NV vectors of output channels, fed by
// broadcasts of the input and by packed weights. Linear layers and 1x1 convolutions are the case of one
// stretch.
#pragma once
#include <utility>

#include "cpu/kernels/conv_pixels.inl"
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

  float* output_at(int r) const { return output[r]; }
  const float* residual_at(int r) const { return residual[r]; }
  void activate_behind(int64_t channels, const Activation& activation) const {
    activate_rows(output, R, channels, activation);
  }
};

// The same where pixels lie at equal distances, so that few registers hold all their addresses.
template <int R>
struct EvenTile {
  const float* input;
  const float* next;
  int64_t pixel;
  float* output;
  int64_t output_pixel;
  const float* residual;
  int64_t residual_pixel;

  float* output_at(int r) const { return output + r * output_pixel; }
  const float* residual_at(int r) const { return residual + r * residual_pixel; }
  void activate_behind(int64_t channels, const Activation& activation) const {
    activate_pixels(output, output_pixel, R, channels, activation);
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
    if (e.activation.kind == Activation::kReLU) {
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][j] = relu_of(acc[r][j]);
    } else if (e.activation.kind == Activation::kClamp) {
      const Vec least = Vec::set1(e.activation.a), most = Vec::set1(e.activation.b);
#pragma GCC unroll 16
      for (int r = 0; r < R; ++r) acc[r][j] = clamp_of(acc[r][j], least, most);
    }
  }
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
  if (pass.last) finish<NV, R>(acc, tile, e);
#pragma GCC unroll 16
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 4
    for (int j = 0; j < NV; ++j) store_lane_group<NV>(acc[r][j], tile.output_at(r), j, e.last_lanes);
}

template <int NV, int R, bool kFetchesInput>
void compute_tile(const Tile<R>& tile, const Pass& pass, const Epilogue& e) {
  Vec acc[R][NV];
  start_sums<NV, R>(acc, tile, pass, e);
  const float* w = pass.weight;
  for (int64_t t = 0; t < pass.taps; ++t) {
    const int64_t offset = pass.tap[t] + pass.start;
    const float* x[R];
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) x[r] = tile.input[r] + offset;
    for (int64_t k = 0; k < pass.length;) {
      int64_t end = pass.length;
      if constexpr (kFetchesInput) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) __builtin_prefetch(tile.next + r * tile.pixel + offset + k, 0, 3);
        if (end - k > kLineFloats) end = k + kLineFloats;
      }
      if constexpr (kManyPixels<R>)
        for (; k + 4 <= end; k += 4, w += 4 * NV * Vec::kWidth) multiply<NV, R, 4>(x, k, w, pass.stream, acc);
      for (; k < end; ++k, w += NV * Vec::kWidth) multiply<NV, R, 1>(x, k, w, pass.stream, acc);
    }
  }
  store_sums<NV, R>(acc, tile, pass, e);
}

// Three pixels share an address: two of them lie one and two distances behind it.
template <int R>
struct EvenPixels {
  static constexpr int kAddresses = (R + 2) / 3;
  const float* at[kAddresses];
  int64_t distance;

  EvenPixels(const float* first, int64_t pixel) : distance(pixel) {
#pragma GCC unroll 8
    for (int i = 0; i < kAddresses; ++i) at[i] = first + 3 * i * pixel;
  }
  [[gnu::always_inline]] void advance(int64_t values) {
#pragma GCC unroll 8
    for (int i = 0; i < kAddresses; ++i) {
      at[i] += values;
      // Else the compiler makes one address per pixel of it, more than there are registers.
      __asm__("" : "+r"(at[i]));
    }
  }
};

// One step of the dot products, kStep floats behind where the addresses point.
template <int kStep, int NV, int R, int... r>
[[gnu::always_inline]] inline void multiply_step(const EvenPixels<R>& x, const float* w, Vec (&acc)[R][NV],
                                                 std::integer_sequence<int, r...>) {
  Vec b[NV];
#pragma GCC unroll 4
  for (int j = 0; j < NV; ++j) b[j] = Vec::load(w + (kStep * NV + j) * Vec::kWidth);
  (add_products<r % 3, kStep>(x.at[r / 3], x.distance, b, acc[r]), ...);
}

template <bool kStreams, int NV, int R, int... steps>
[[gnu::always_inline]] inline void multiply_even(EvenPixels<R>& x, const float*& w, const Stream& stream,
                                                 Vec (&acc)[R][NV], std::integer_sequence<int, steps...>) {
  const auto fetch = [&](int step) {
    if constexpr (kStreams) stream.fetch(w + step * NV * Vec::kWidth);
  };
  ((fetch(steps), multiply_step<steps>(x, w, acc, std::make_integer_sequence<int, R>())), ...);
  w += static_cast<int>(sizeof...(steps)) * NV * Vec::kWidth;
  x.advance(sizeof...(steps));
}

template <int NV, int R, bool kFetchesInput, bool kStreams>
[[gnu::always_inline]] inline void multiply_even_taps(const EvenTile<R>& tile, const Pass& pass,
                                                      Vec (&acc)[R][NV]) {
  const float* w = pass.weight;
  for (int64_t t = 0; t < pass.taps; ++t) {
    const int64_t offset = pass.tap[t] + pass.start;
    EvenPixels<R> x(tile.input + offset, tile.pixel);
    for (int64_t k = 0; k < pass.length;) {
      int64_t steps = pass.length - k;
      if constexpr (kFetchesInput) {
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) __builtin_prefetch(tile.next + r * tile.pixel + offset + k, 0, 3);
        if (steps > kLineFloats) steps = kLineFloats;
      }
      k += steps;
      constexpr std::make_integer_sequence<int, 4> kFour{};
      for (; steps >= 4; steps -= 4) multiply_even<kStreams>(x, w, pass.stream, acc, kFour);
      constexpr std::make_integer_sequence<int, 1> kOne{};
      for (; steps > 0; --steps) multiply_even<kStreams>(x, w, pass.stream, acc, kOne);
    }
  }
}

template <int NV, int R, bool kFetchesInput>
void compute_tile(const EvenTile<R>& tile, const Pass& pass, const Epilogue& e) {
  Vec acc[R][NV];
  start_sums<NV, R>(acc, tile, pass, e);
  pass.stream.lines ? multiply_even_taps<NV, R, kFetchesInput, true>(tile, pass, acc)
                    : multiply_even_taps<NV, R, kFetchesInput, false>(tile, pass, acc);
  store_sums<NV, R>(acc, tile, pass, e);
}

// Walks over output pixels in memory order.
class PixelWalk {
 public:
  PixelWalk(const ConvCall& c, int64_t channel, int64_t pixel) : c_(c), channel_(channel) {
    const int64_t row = pixel / c.width;
    x_ = pixel % c.width;
    y_ = row % c.height;
    n_ = row / c.height;
    locate();
  }

  // Whether the next pixels are neighbours in a row.
  bool is_even(int64_t pixels) const { return x_ + pixels <= c_.width; }

  template <int R>
  void take(EvenTile<R>& tile) {
    tile = {input_,    nullptr,          c_.stride_w * c_.input.pixel, output_, c_.output.pixel,
            residual_, c_.residual.pixel};
    x_ += R - 1;
    input_ += (R - 1) * tile.pixel;
    output_ += (R - 1) * tile.output_pixel;
    if (residual_) residual_ += (R - 1) * tile.residual_pixel;
    step();
    tile.next = input_;
  }

  template <int R>
  void take(Tile<R>& tile) {
#pragma GCC unroll 16
    for (int r = 0; r < R; ++r) {
      tile.input[r] = input_;
      tile.output[r] = output_;
      tile.residual[r] = residual_;
      step();
    }
    tile.next = input_;
    tile.pixel = c_.stride_w * c_.input.pixel;
  }

 private:
  float* at(const View& v) const { return v.data + n_ * v.image + y_ * v.row + x_ * v.pixel + channel_; }
  void locate() {
    input_ = c_.input.data + n_ * c_.input.image + y_ * c_.stride_h * c_.input.row +
             x_ * c_.stride_w * c_.input.pixel;
    output_ = at(c_.output);
    residual_ = c_.residual.data ? at(c_.residual) : nullptr;
  }
  void step() {
    if (++x_ < c_.width) {
      input_ += c_.stride_w * c_.input.pixel;
      output_ += c_.output.pixel;
      if (residual_) residual_ += c_.residual.pixel;
      return;
    }
    x_ = 0;
    if (++y_ == c_.height) {
      y_ = 0;
      if (++n_ == c_.images) return;  // past the end: nothing may be formed from it
    }
    locate();
  }

  const ConvCall& c_;
  int64_t channel_, n_, y_, x_;
  const float* input_;
  float* output_;
  const float* residual_;
};

template <int NV, int R, class AnyTile>
[[gnu::always_inline]] inline void run_taken(const AnyTile& tile, const Pass& pass, const Epilogue& e) {
  pass.fetches_input ? compute_tile<NV, R, true>(tile, pass, e) : compute_tile<NV, R, false>(tile, pass, e);
  // What is too long to unroll into every register block runs over what it has just written.
  if (pass.last && !in_registers(e.activation))
    tile.activate_behind((NV - 1) * Vec::kWidth + e.last_lanes, e.activation);
}

template <int NV, int R>
void run_tile(PixelWalk& walk, const Pass& pass, const Epilogue& e) {
  if constexpr (kEvenTiles) {
    if (walk.is_even(R)) {
      EvenTile<R> tile;
      walk.take(tile);
      return run_taken<NV, R>(tile, pass, e);
    }
  }
  Tile<R> tile;
  walk.take(tile);
  run_taken<NV, R>(tile, pass, e);
}

template <int NV>
void run_tile_of(int64_t pixels, PixelWalk& walk, const Pass& pass, const Epilogue& e) {
  static_assert(kTilePixels[NV - 1] <= 16, "add cases below");
  switch (pixels) {
#define CNNFAST_CASE(R)                                                            \
  case R:                                                                          \
    if constexpr (R <= kTilePixels[NV - 1]) return run_tile<NV, R>(walk, pass, e); \
    break;
    CNNFAST_CASE(1)
    CNNFAST_CASE(2)
    CNNFAST_CASE(3)
    CNNFAST_CASE(4)
    CNNFAST_CASE(5)
    CNNFAST_CASE(6)
    CNNFAST_CASE(7)
    CNNFAST_CASE(8)
    CNNFAST_CASE(9)
    CNNFAST_CASE(10)
    CNNFAST_CASE(11)
    CNNFAST_CASE(12)
    CNNFAST_CASE(13)
    CNNFAST_CASE(14)
    CNNFAST_CASE(15)
    CNNFAST_CASE(16)
#undef CNNFAST_CASE
  }
}

// All tiles of a block of pixels in one panel and one pass; tiles as equal as possible, so that none is tiny.
template <int NV>
void run_block(PixelWalk walk, int64_t pixels, const Pass& pass, const Epilogue& e, bool streams) {
  const int64_t tiles = (pixels + kTilePixels[NV - 1] - 1) / kTilePixels[NV - 1];
  const int64_t ahead = pass.taps * pass.length * NV * Vec::kWidth;
  const int64_t least = pixels / tiles, larger = pixels % tiles;
  Pass part = pass;
  for (int64_t t = 0; t < tiles; ++t) {
    if (streams) part.stream = Stream::share<NV>(ahead, t, tiles);
    run_tile_of<NV>(least + (t < larger), walk, part, e);
  }
}

void run_block_of(int64_t vectors, PixelWalk walk, int64_t pixels, const Pass& pass, const Epilogue& e,
                  bool streams) {
  if (vectors == 1) return run_block<1>(walk, pixels, pass, e, streams);
  if constexpr (Vec::kPanelVectors >= 2)
    if (vectors == 2) return run_block<2>(walk, pixels, pass, e, streams);
  if constexpr (Vec::kPanelVectors >= 3)
    if (vectors == 3) return run_block<3>(walk, pixels, pass, e, streams);
  if constexpr (Vec::kPanelVectors >= 4)
    if (vectors == 4) return run_block<4>(walk, pixels, pass, e, streams);
}

// Passes over the dot products: whole stretches while they fit a chunk, else parts of one stretch.
template <class F>
void for_each_pass(const ConvCall& c, const float* weight, int64_t lanes, F&& body) {
  const int64_t per_pass = c.length <= c.chunk ? c.chunk / c.length : 1;
  const int64_t part = c.length <= c.chunk ? c.length : c.chunk;
  for (int64_t t = 0; t < c.taps; t += per_pass)
    for (int64_t start = 0; start < c.length; start += part) {
      Pass pass;
      pass.tap = c.tap + t;
      pass.taps = c.taps - t < per_pass ? c.taps - t : per_pass;
      pass.start = start;
      pass.length = c.length - start < part ? c.length - start : part;
      pass.weight = weight + (t * c.length + start) * lanes;
      pass.first = t == 0 && start == 0;
      pass.last = t + pass.taps == c.taps && start + pass.length == c.length;
      body(pass);
    }
}

// Rows that lie behind one another in all tensors are one.
ConvCall with_long_rows(ConvCall c) {
  const auto follows = [&](const View& v, int64_t stride_h, int64_t stride_w) {
    return !v.data || v.row * stride_h == c.width * v.pixel * stride_w;
  };
  const auto images_follow = [&](const View& v, int64_t stride_h) {
    return !v.data || v.image == c.height * v.row * stride_h;
  };
  if (!follows(c.input, c.stride_h, c.stride_w) || !follows(c.output, 1, 1) || !follows(c.residual, 1, 1))
    return c;
  const bool one_image =
      images_follow(c.input, c.stride_h) && images_follow(c.output, 1) && images_follow(c.residual, 1);
  c.width *= c.height;
  c.height = 1;
  if (one_image) {
    c.width *= c.images;
    c.images = 1;
  }
  return c;
}

void conv(const ConvCall& call, int64_t pixel_begin, int64_t pixel_end, int64_t panel_begin,
          int64_t panel_end) {
  if (has_pixels_in_lanes(call)) return conv_pixels(call, pixel_begin, pixel_end);
  const ConvCall c = kEvenTiles ? with_long_rows(call) : call;
  const int64_t lanes = c.panel_vectors * Vec::kWidth, depth = c.taps * c.length;
  const bool streams = (panel_end - panel_begin) * lanes * depth > kResidentFloats;
  const int64_t pixels_here = pixel_end - pixel_begin;
  const bool fetches_input = c.taps == 1 && (c.far_input || pixels_here * c.length > kNearFloats);
  const bool fetches_output = pixels_here * c.channels > kNearFloats;
  for (int64_t pixel = pixel_begin; pixel < pixel_end; pixel += c.block_pixels) {
    const int64_t pixels = pixel_end - pixel < c.block_pixels ? pixel_end - pixel : c.block_pixels;
    for (int64_t panel = panel_begin; panel < panel_end; ++panel) {
      const int64_t channel = panel * lanes;
      const int64_t left = c.channels - channel < lanes ? c.channels - channel : lanes;
      const int64_t vectors = (left + Vec::kWidth - 1) / Vec::kWidth;
      Epilogue e;
      e.scale = c.scale ? c.scale + channel : nullptr;
      e.shift = c.shift ? c.shift + channel : nullptr;
      e.last_lanes = left - (vectors - 1) * Vec::kWidth;
      e.has_residual = c.residual.data != nullptr;
      e.activation = c.activation;
      for_each_pass(c, c.weight + channel * depth, vectors * Vec::kWidth, [&](Pass pass) {
        pass.fetches_input = fetches_input && panel == panel_begin;
        pass.fetches_output = fetches_output && pass.first;
        run_block_of(vectors, PixelWalk(c, channel, pixel), pixels, pass, e, streams);
      });
    }
  }
}

int64_t tile_pixels(int64_t panel_vectors) { return kTilePixels[panel_vectors - 1]; }

}  // namespace
