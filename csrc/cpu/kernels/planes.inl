// Images from planes, each a channel's, to pixels of adjacent channels: a tile of as many pixels as channels
// at once turns round in registers. A few channels would leave most of a tile empty; loops over a known
// number of them become shuffles by the compiler.
#include "cpu/kernels/values.inl"

namespace {

template <class T>
inline void turn_tile(const PlanesCall<T>& c, int64_t pixel, int64_t channel) {
  const int64_t pixels = c.pixels - pixel, channels = c.channels - channel;
  const T* const from = c.from + channel * c.plane + pixel;
  Vec v[Vec::kWidth];
#pragma GCC unroll 16
  for (int64_t i = 0; i < Vec::kWidth; ++i) {
    if (i >= channels) {
      v[i] = Vec::zero();
      continue;
    }
    fetch(from, i * c.plane + c.kAhead);
    v[i] = load_lanes(from + i * c.plane, pixels);
  }
  Vec::transpose(v);
  T* const to = c.to + pixel * c.channels + channel;
#pragma GCC unroll 16
  for (int64_t i = 0; i < Vec::kWidth; ++i)
    if (i < pixels) store_lanes(v[i], to + i * c.channels, channels);
}

template <int C, class T>
void interleave_planes(const T* __restrict from, int64_t plane, int64_t pixels, T* __restrict to) {
  for (int64_t p = 0; p < pixels; ++p)
#pragma GCC unroll 4
    for (int c = 0; c < C; ++c) to[p * C + c] = from[c * plane + p];
}

// Pixels [pixel_begin, pixel_end) of an image.
template <class T>
void pixels_of_planes(const PlanesCall<T>& c, int64_t pixel_begin, int64_t pixel_end) {
  const auto interleave = [&](auto run) {
    run(c.from + pixel_begin, c.plane, pixel_end - pixel_begin, c.to + pixel_begin * c.channels);
  };
  if (c.channels == 2) return interleave(interleave_planes<2, T>);
  if (c.channels == 3) return interleave(interleave_planes<3, T>);
  if (c.channels == 4) return interleave(interleave_planes<4, T>);
  PlanesCall<T> part = c;
  part.pixels = pixel_end;
  for (int64_t pixel = pixel_begin; pixel < pixel_end; pixel += Vec::kWidth)
    for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) turn_tile(part, pixel, channel);
}

}  // namespace
