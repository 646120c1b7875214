// Where tiles of Winograd's algorithm lie in the image.
#pragma once
#include <stdint.h>

#include "cpu/kernel_table.h"

namespace {

// How far apart the pixels of a tile are: 1 but for dilated kernels.
inline int64_t step_of(const WinogradCall& c) { return c.step; }
template <class Call>
inline int64_t step_of(const Call&) {
  return 1;
}

// Whether kernels, and tiles, have one row.
template <class Call>
inline bool is_line(const Call& c) {
  return c.tile_height < c.tile;
}

struct TilePlace {
  int64_t image, y, x;  // output pixel at the top left
  int64_t step;
  TilePlace() = default;
  template <class Call>
  TilePlace(const Call& c, int64_t tile) : step(step_of(c)) {
    const int64_t line = tile / c.tile_columns;
    column_ = tile % c.tile_columns;
    row_ = line % c.tile_rows;
    image = line / c.tile_rows;
    x = first_pixel(column_, c.tile_columns, c.tile);
    y = first_pixel(row_, c.tile_rows, c.tile_height);
  }

  template <class Call>
  TilePlace next(const Call& c) const {
    TilePlace place = *this;
    if (++place.column_ == c.tile_columns) {
      place.column_ = 0;
      if (++place.row_ == c.tile_rows) {
        place.row_ = 0;
        ++place.image;
      }
      place.y = first_pixel(place.row_, c.tile_rows, c.tile_height);
    }
    place.x = first_pixel(place.column_, c.tile_columns, c.tile);
    return place;
  }

 private:
  // Tiles that begin `step` pixels apart from each other come first, then those that begin a pixel later.
  int64_t first_pixel(int64_t number, int64_t count, int64_t tile) const {
    if (step == 1) return number * tile;
    const int64_t apart = count / step;
    return number % apart * tile * step + number / apart;
  }

  int64_t row_, column_;
};

// Part of a tile's rows or columns that lies inside the image.
struct Inside {
  int64_t begin, end;
  Inside(int64_t first, int64_t size) : begin(-first), end(size - first) {}
  bool holds(int64_t i) const { return i >= begin && i < end; }
  bool holds_all(int64_t count) const { return begin <= 0 && end >= count; }
};

// The first pixel that a tile reads, before padding is taken off.
template <class V>
inline auto* read_from(const V& v, const TilePlace& at, int64_t stride) {
  return v.data + at.image * v.image + at.y * stride * v.row + at.x * stride * v.pixel;
}

template <class V>
inline auto* at_place(const V& v, const TilePlace& at) {
  // Rows and pixels of the view are those of one tile.
  const int64_t inside = at.y * v.row + at.x * v.pixel;
  return v.data + at.image * v.image + (at.step == 1 ? inside : inside / at.step);
}

}  // namespace
