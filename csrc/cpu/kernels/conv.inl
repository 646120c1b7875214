// Direct convolution, NHWC: a register block of R output pixels by NV vectors of output channels, fed by
// broadcasts of the input and by packed weights. Linear layers and 1x1 convolutions are the case of one
// stretch.
#pragma once
#include "cpu/kernels/conv_pixels.inl"
#include "cpu/kernels/conv_tile.inl"

namespace {

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

  int64_t pixels_in_row() const { return c_.width - x_; }

  // The first of so many tiles in a row.
  template <int R>
  void take(EvenTile<R>& tile, int64_t tiles) {
    tile = {input_,    nullptr,          c_.stride_w * c_.input.pixel, output_, c_.output.pixel,
            residual_, c_.residual.pixel};
    const int64_t steps = R * tiles - 1;
    x_ += steps;
    input_ += steps * tile.pixel;
    output_ += steps * tile.output_pixel;
    if (residual_) residual_ += steps * tile.residual_pixel;
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

template <int NV, int R>
void run_tile(PixelWalk& walk, const Pass& pass, const Epilogue& e) {
  Tile<R> tile;
  walk.take(tile);
  pass.fetches_input ? compute_tile<NV, R, true>(tile, pass, e) : compute_tile<NV, R, false>(tile, pass, e);
}

template <int NV, int R, bool kStreams>
void run_row(int64_t tiles, PixelWalk& walk, const Pass& pass, const Epilogue& e) {
  EvenTile<R> tile;
  walk.take(tile, tiles);
  pass.fetches_input ? compute_tiles<NV, R, true, kStreams>(tile, tiles, pass, e)
                     : compute_tiles<NV, R, false, kStreams>(tile, tiles, pass, e);
}

// Tiles [begin, end) of `all` tiles of a block.
template <int NV, int R>
void run_tiles(int64_t begin, int64_t end, int64_t all, PixelWalk& walk, Pass& pass, const Epilogue& e,
               bool streams) {
  for (int64_t t = begin; t < end;) {
    if (streams) pass.stream = Stream::share<NV>(pass.taps * pass.length * NV * Vec::kWidth, t, all);
    if constexpr (kAddressedProducts) {
      int64_t tiles = walk.pixels_in_row() / R;
      if (streams && tiles > 1) tiles = 1;
      if (tiles > end - t) tiles = end - t;
      if (tiles > 0) {
        pass.stream.lines ? run_row<NV, R, true>(tiles, walk, pass, e)
                          : run_row<NV, R, false>(tiles, walk, pass, e);
        t += tiles;
        continue;
      }
    }
    run_tile<NV, R>(walk, pass, e);
    ++t;
  }
}

template <int NV>
void run_tiles_of(int64_t pixels, int64_t begin, int64_t end, int64_t all, PixelWalk& walk, Pass& pass,
                  const Epilogue& e, bool streams) {
  static_assert(kTilePixels[NV - 1] <= 16, "add cases below");
  switch (pixels) {
#define CNNFAST_CASE(R)                                                                                \
  case R:                                                                                              \
    if constexpr (R <= kTilePixels[NV - 1]) run_tiles<NV, R>(begin, end, all, walk, pass, e, streams); \
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
void run_block(PixelWalk walk, int64_t pixels, Pass pass, const Epilogue& e, bool streams) {
  const int64_t tiles = (pixels + kTilePixels[NV - 1] - 1) / kTilePixels[NV - 1];
  const int64_t least = pixels / tiles, larger = pixels % tiles;
  if (larger) run_tiles_of<NV>(least + 1, 0, larger, tiles, walk, pass, e, streams);
  run_tiles_of<NV>(least, larger, tiles, tiles, walk, pass, e, streams);
}

void run_block_of(int64_t vectors, PixelWalk walk, int64_t pixels, const Pass& pass, const Epilogue& e,
                  bool streams) {
  if (vectors == 1) return run_block<1>(walk, pixels, pass, e, streams);
  if constexpr (Vec::kMaxPanelVectors >= 2)
    if (vectors == 2) return run_block<2>(walk, pixels, pass, e, streams);
  if constexpr (Vec::kMaxPanelVectors >= 3)
    if (vectors == 3) return run_block<3>(walk, pixels, pass, e, streams);
  if constexpr (Vec::kMaxPanelVectors >= 4)
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
  const ConvCall c = kAddressedProducts ? with_long_rows(call) : call;
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
