// Images as the kernels see them. Plain C++, for the host and the device.
//
// Pixels lie at one distance from each other (channels_last memory, or a slice of its channels). A thread of
// the kernels that work per channel owns eight neighbouring columns and walks over rows, so that it keeps its
// channels' constants and sums in registers. A row is one pixel where eight divides the channels; else as
// many pixels ("fold") as make it so: 8 of them for odd channel counts. Columns of one channel are then
// `channels` apart. The last row may be partial.
#pragma once
#include <algorithm>
#include <cstdint>
#include <numeric>

#include "cuda/memory.h"

namespace cnnfast::cuda {

struct Layout {
  int64_t pixels;
  int64_t rows;  // whole ones
  int32_t tail;  // columns of the partial row behind them
  int32_t fold;  // pixels per row
  int32_t channels;
  int32_t columns;         // of a whole row: fold * channels
  int32_t tile;            // packs of eight columns that a block covers
  int32_t rows_per_block;  // at a time; tile * rows_per_block threads of a block have work
  int32_t row_blocks;      // blocks that share the rows
  int32_t tiles;           // blocks side by side

  CNNFAST_HOST_DEVICE int32_t packs() const { return columns / kLanes; }
  // Whole rows of a block.
  CNNFAST_HOST_DEVICE int64_t rows_of(int32_t block) const {
    const int64_t chunks = rows / rows_per_block;
    const int64_t whole = block < chunks ? (chunks - block + row_blocks - 1) / row_blocks : 0;
    return whole * rows_per_block + (chunks % row_blocks == block ? rows % rows_per_block : 0);
  }
  // The block that has the partial row.
  CNNFAST_HOST_DEVICE int32_t tail_block() const {
    return static_cast<int32_t>(rows / rows_per_block % row_blocks);
  }
  // Pixels of which a block's partial result in this column consists.
  CNNFAST_HOST_DEVICE int64_t count(int32_t block, int32_t column) const {
    return rows_of(block) + (column < tail && block == tail_block() ? 1 : 0);
  }
  CNNFAST_HOST_DEVICE int64_t mask_bytes() const { return (pixels * channels + 7) / 8; }
};

constexpr int64_t kMostChannels = 1 << 27;  // so that columns fit into 32 bits

// Rows of a block whose sums go through memory: eight bytes a column, small beside those that it reads.
constexpr int64_t kLeastRows = 32;

// `blocks`: as many as the device holds at once; least_rows: a block is not made for fewer. Results of sums
// depend on both, in the last bits.
inline Layout make_layout(int64_t pixels, int64_t channels, int64_t blocks, int64_t least_rows = 1) {
  Layout l{};
  l.pixels = pixels;
  l.channels = static_cast<int32_t>(channels);
  l.fold = static_cast<int32_t>(kLanes / std::gcd<int64_t>(channels, kLanes));
  l.columns = l.channels * l.fold;
  l.rows = pixels / l.fold;
  l.tail = static_cast<int32_t>(pixels % l.fold) * l.channels;
  l.tiles = (l.packs() + kBlockThreads - 1) / kBlockThreads;
  l.tile = (l.packs() + l.tiles - 1) / l.tiles;
  l.rows_per_block = kBlockThreads / l.tile;
  const int64_t all_rows = l.rows + (l.tail ? 1 : 0);
  const int64_t rows_of_block = std::max<int64_t>(l.rows_per_block, least_rows);
  const int64_t needed = (all_rows + rows_of_block - 1) / rows_of_block;
  const int64_t resident = std::max<int64_t>(1, blocks / l.tiles);
  l.row_blocks = static_cast<int32_t>(std::clamp<int64_t>(needed, 1, resident));
  return l;
}

// One image batch: the address of its first value, and the distance of its pixels in elements.
template <typename T>
struct Image {
  Global<T> data;
  int64_t pixel;

  CNNFAST_HOST_DEVICE explicit operator bool() const { return static_cast<bool>(data); }
};

// Whether eight neighbouring columns are 16-byte vectors: images whose pixels follow one another, and slices
// of channels that are multiples of eight at addresses that are multiples of 16 bytes. Absent images fit.
template <typename T>
bool takes_vectors(const T* data, int64_t pixel, const Layout& l) {
  if (!data) return true;
  const bool rows_fit = pixel == l.channels || (l.fold == 1 && pixel * sizeof(T) % kVectorBytes == 0);
  return rows_fit && is_vector_aligned(data);
}

}  // namespace cnnfast::cuda
