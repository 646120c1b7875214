// A thread's eight columns of a row (see layout.h): where they are, and how they are read and written.
#pragma once
#include "cuda/access.cuh"
#include "cuda/layout.h"

namespace cnnfast::cuda {

struct Place {
  bool active;   // the others only take part in barriers
  int32_t pack;  // within the block's tile
  int32_t row_in_block;
  int32_t column;          // the first of eight
  int32_t pixel, channel;  // of that column within the row
  int64_t first_row, row_step;
};

__device__ inline Place place_of(const Layout& l) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x), tile = static_cast<int32_t>(blockIdx.y);
  Place p;
  p.row_in_block = thread / l.tile;
  p.pack = thread % l.tile;
  const int32_t pack = tile * l.tile + p.pack;
  p.active = p.row_in_block < l.rows_per_block && pack < l.packs();
  p.column = pack * kLanes;
  p.pixel = p.column / l.channels;
  p.channel = p.column % l.channels;
  p.first_row = static_cast<int64_t>(blockIdx.x) * l.rows_per_block + p.row_in_block;
  p.row_step = static_cast<int64_t>(l.row_blocks) * l.rows_per_block;
  return p;
}

// use(lane, pixel within the row, channel) for the eight columns.
template <typename Use>
__device__ inline void for_lanes(const Layout& l, const Place& p, Use use) {
  int32_t pixel = p.pixel, channel = p.channel;
  for (int lane = 0; lane < kLanes; ++lane) {
    use(lane, pixel, channel);
    if (++channel == l.channels) {
      channel = 0;
      ++pixel;
    }
  }
}

// Walks over the thread's rows: body(row, whole) with a constant `whole`. The partial row is its last.
template <typename Body, typename Tail>
__device__ inline void for_rows(const Layout& l, const Place& p, Body body, Tail tail) {
  if (!p.active) return;
  int64_t row = p.first_row;
  for (; row < l.rows; row += p.row_step) body(row);
  if (row == l.rows && p.column < l.tail) tail(row, l.tail - p.column < kLanes ? l.tail - p.column : kLanes);
}

// Values of the row's eight columns. kVector: by 16 bytes, all of them. Else one by one, the first `valid`.
template <bool kVector, typename T>
__device__ inline void load_lanes(const Image<const T>& image, const Layout& l, const Place& p, int64_t row,
                                  int valid, float (&values)[kLanes]) {
  if (kVector) {
    load_vectors<kLanes, T>(image.data + (row * l.fold * image.pixel + p.column), values);
    return;
  }
  const Global<const T> start = image.data + row * l.fold * image.pixel;
  for_lanes(l, p, [&](int lane, int32_t pixel, int32_t channel) {
    values[lane] = lane < valid ? load_float<T>(start + (pixel * image.pixel + channel)) : 0.0f;
  });
}

template <bool kVector, typename T>
__device__ inline void store_lanes(const Image<T>& image, const Layout& l, const Place& p, int64_t row,
                                   int valid, const float (&values)[kLanes]) {
  if (kVector) {
    store_vectors<kLanes, T>(image.data + (row * l.fold * image.pixel + p.column), values);
    return;
  }
  const Global<T> start = image.data + row * l.fold * image.pixel;
  for_lanes(l, p, [&](int lane, int32_t pixel, int32_t channel) {
    if (lane < valid) store_float<T>(start + (pixel * image.pixel + channel), values[lane]);
  });
}

// One number per channel for the eight columns.
__device__ inline void load_channels(Global<const float> per_channel, const Layout& l, const Place& p,
                                     float otherwise, float (&values)[kLanes]) {
  for_lanes(l, p, [&](int lane, int32_t, int32_t channel) {
    values[lane] = per_channel ? static_cast<float>(per_channel[channel]) : otherwise;
  });
}

// One bit per value, in the order of pixels and channels: bit i % 8 of byte i / 8. A row is whole bytes.
__device__ inline int64_t mask_byte(const Layout& l, const Place& p, int64_t row) {
  return row * l.packs() + p.column / kLanes;
}

}  // namespace cnnfast::cuda
