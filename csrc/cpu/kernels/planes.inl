// Images from planes, each a channel's, to pixels of adjacent channels: a tile of as many pixels as channels
// at once turns round in registers.
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

// Pixels [pixel_begin, pixel_end) of an image.
template <class T>
void pixels_of_planes(const PlanesCall<T>& c, int64_t pixel_begin, int64_t pixel_end) {
  PlanesCall<T> part = c;
  part.pixels = pixel_end;
  for (int64_t pixel = pixel_begin; pixel < pixel_end; pixel += Vec::kWidth)
    for (int64_t channel = 0; channel < c.channels; channel += Vec::kWidth) turn_tile(part, pixel, channel);
}

}  // namespace
