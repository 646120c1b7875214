// Arguments of the pooling kernels. Plain C++.
#pragma once
#include "activation.h"
#include "cuda/layout.h"

namespace cnnfast::cuda {

constexpr int64_t kMostPixels = INT32_MAX;  // of a batch
// Blocks that a processor holds at once at least: told nothing, the compiler aims at more and spills.
constexpr int kPoolBlocks = 4;
constexpr int32_t kMostPositions = 255;     // of a kernel
constexpr int64_t kGlobalPoolBlocks = 512;  // some for each processor of large GPUs
constexpr int32_t kLeastPacks = 4;          // of 16 bytes, to a block
constexpr int32_t kLeastChannels = 32;      // to a block of single channels

// How the channels of pixels are spread over threads: packs of `lanes` channels, `tile` packs and
// `pixels_per_block` pixels to a block.
struct PackLayout {
  int64_t pixels;
  int32_t channels, lanes, packs, tile, pixels_per_block, tiles;
};

inline PackLayout make_pack_layout(int64_t pixels, int64_t channels, int lanes) {
  PackLayout l{};
  l.pixels = pixels;
  l.channels = static_cast<int32_t>(channels);
  l.lanes = lanes;
  l.packs = static_cast<int32_t>(channels / lanes);
  l.tiles = (l.packs + kBlockThreads - 1) / kBlockThreads;
  l.tile = (l.packs + l.tiles - 1) / l.tiles;
  l.pixels_per_block = kBlockThreads / l.tile;
  return l;
}

// For blocks that have whole images: where there are few images, no more of a pixel to a block than 64 bytes,
// so that blocks suffice for all processors.
inline PackLayout make_global_layout(int64_t images, int64_t pixels, int64_t channels, int lanes) {
  PackLayout l = make_pack_layout(pixels, channels, lanes);
  const int64_t tiles = (kGlobalPoolBlocks + images - 1) / images;
  const int64_t least = lanes > 1 ? kLeastPacks : kLeastChannels;
  const int64_t sectors = (l.packs + least - 1) / least;
  if (tiles <= l.tiles) return l;
  l.tiles = static_cast<int32_t>(tiles < sectors ? tiles : sectors);
  l.tile = (l.packs + l.tiles - 1) / l.tiles;
  l.tiles = (l.packs + l.tile - 1) / l.tile;
  l.pixels_per_block = kBlockThreads / l.tile;
  return l;
}

// Whether 16 bytes of an image are neighbouring channels of one pixel; absent images fit.
template <typename T>
bool takes_packs(const T* data, int64_t pixel, int64_t channels) {
  if (!data) return true;
  return channels % kVectorSize<T> == 0 && pixel * sizeof(T) % kVectorBytes == 0 && is_vector_aligned(data);
}

// Sliding windows; numbers of the vertical and the horizontal side.
struct Windows {
  int32_t in_height, in_width, height, width;
  int32_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
};

enum class PoolKind { kMax, kAvg };

// An image batch of `images` x Windows, as a plain address.
template <typename T>
struct Place4d {
  T* data;
  int64_t pixel;
};

template <typename T>
struct PoolCall {
  Place4d<const T> input;
  Place4d<T> output;
  int64_t images, channels;
  Windows windows;
  bool count_include_pad;
  int32_t divisor_override;
  Activation activation;

  int64_t out_pixels() const { return images * windows.height * windows.width; }
};

template <typename T>
struct PoolBackwardCall {
  Place4d<const T> grad, input;  // input: max pooling
  Place4d<T> grad_input;
  uint8_t* winners;  // max pooling: memory for [output pixels, channels], aligned to 16 bytes
  int64_t images, channels;
  Windows windows;
  bool count_include_pad;
  int32_t divisor_override;
};

}  // namespace cnnfast::cuda
