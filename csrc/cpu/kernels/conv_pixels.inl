// Direct convolution of one input channel into few output channels: vectors run over the pixels of a row, so
// that no lane idles where there are fewer channels than lanes. First layers of grey images.
namespace {

constexpr int kMaxPixelVectors = 4;

// Register blocks: channels times vectors of pixels.
constexpr int pixel_vectors(int channels) {
  const int budget = Vec::kWidth == 16 ? 24 : 12;
  const int vectors = budget / channels;
  return vectors < 1 ? 1 : vectors > kMaxPixelVectors ? kMaxPixelVectors : vectors;
}

bool has_pixels_in_lanes(const ConvCall& c) {
  return c.input.pixel == 1 && c.stride_w == 1 && c.channels <= Vec::kWidth && !c.residual.data;
}

// K channels of P vectors of pixels, the last of which has `lanes` of them.
template <int K, int P>
void pixel_block(const ConvCall& c, const float* in, float* out, int64_t lanes) {
  Vec acc[K][P];
#pragma GCC unroll 16
  for (int k = 0; k < K; ++k)
#pragma GCC unroll 4
    for (int p = 0; p < P; ++p) acc[k][p] = Vec::zero();
  const float* w = c.weight;
  for (int64_t t = 0; t < c.taps; ++t) {
    const float* x = in + c.tap[t];
    for (int64_t i = 0; i < c.length; ++i, ++x, w += Vec::kWidth) {
      Vec pixels[P];
#pragma GCC unroll 4
      for (int p = 0; p < P; ++p)
        pixels[p] = p == P - 1 ? Vec::load_first(x + p * Vec::kWidth, lanes) : Vec::load(x + p * Vec::kWidth);
#pragma GCC unroll 16
      for (int k = 0; k < K; ++k) {
        const Vec weight = Vec::set1(w[k]);
#pragma GCC unroll 4
        for (int p = 0; p < P; ++p) acc[k][p] = Vec::fma(weight, pixels[p], acc[k][p]);
      }
    }
  }
#pragma GCC unroll 4
  for (int p = 0; p < P; ++p) {
    Vec rows[Vec::kWidth];
    for (int k = 0; k < Vec::kWidth; ++k) rows[k] = Vec::zero();
#pragma GCC unroll 16
    for (int k = 0; k < K; ++k) {
      Vec v = acc[k][p];
      if (c.scale) v = v * Vec::set1(c.scale[k]);
      if (c.shift) v = v + Vec::set1(c.shift[k]);
      rows[k] = apply(c.activation, v);
    }
    Vec::transpose(rows);
    const int64_t count = p == P - 1 ? lanes : Vec::kWidth;
    float* to = out + p * Vec::kWidth * c.output.pixel;
#pragma GCC unroll 16
    for (int i = 0; i < Vec::kWidth; ++i) {
      if (i >= count) break;
      rows[i].store_first(to + i * c.output.pixel, K);
    }
  }
}

// The pixels [begin, end) of one row.
template <int K>
void pixel_row(const ConvCall& c, const float* in, float* out, int64_t begin, int64_t end) {
  constexpr int most = pixel_vectors(K);
  for (int64_t x = begin; x < end;) {
    const int64_t vectors = (end - x + Vec::kWidth - 1) / Vec::kWidth;
    const int64_t take = vectors < most ? vectors : most;
    const int64_t left = end - x - (take - 1) * Vec::kWidth, lanes = left < Vec::kWidth ? left : Vec::kWidth;
    const float* from = in + x;
    float* to = out + x * c.output.pixel;
    if (take == 1)
      pixel_block<K, 1>(c, from, to, lanes);
    else if (take == 2)
      pixel_block < K, most<2 ? 1 : 2>(c, from, to, lanes);
    else if (take == 3)
      pixel_block < K, most<3 ? 1 : 3>(c, from, to, lanes);
    else
      pixel_block<K, most>(c, from, to, lanes);
    x += take * Vec::kWidth;
  }
}

template <int K>
void pixel_rows_of(const ConvCall& c, int64_t pixel_begin, int64_t pixel_end) {
  if constexpr (K > 1) {
    if (c.channels < K) return pixel_rows_of<K - 1>(c, pixel_begin, pixel_end);
  }
  for (int64_t pixel = pixel_begin; pixel < pixel_end;) {
    const int64_t row = pixel / c.width, x = pixel % c.width, n = row / c.height, y = row % c.height;
    const int64_t end = c.width - x < pixel_end - pixel ? c.width : x + pixel_end - pixel;
    pixel_row<K>(c, c.input.data + n * c.input.image + y * c.stride_h * c.input.row,
                 c.output.data + n * c.output.image + y * c.output.row, x, end);
    pixel += end - x;
  }
}

void conv_pixels(const ConvCall& c, int64_t pixel_begin, int64_t pixel_end) {
  pixel_rows_of<static_cast<int>(Vec::kWidth)>(c, pixel_begin, pixel_end);
}

}  // namespace
