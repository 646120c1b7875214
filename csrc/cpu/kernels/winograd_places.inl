// Where tiles of Winograd's algorithm lie in the image.
#pragma once
#include <stdint.h>

namespace {

struct TilePlace {
  int64_t image, y, x;  // output pixel at the top left
  template <class Call>
  TilePlace(const Call& c, int64_t tile) {
    const int64_t row = tile / c.tile_columns;
    x = tile % c.tile_columns * c.tile;
    y = row % c.tile_rows * c.tile;
    image = row / c.tile_rows;
  }

  template <class Call>
  TilePlace next(const Call& c) const {
    TilePlace place = *this;
    if ((place.x += c.tile) < c.tile_columns * c.tile) return place;
    place.x = 0;
    if ((place.y += c.tile) < c.tile_rows * c.tile) return place;
    place.y = 0;
    ++place.image;
    return place;
  }
};

// Part of a tile's rows or columns that lies inside the image.
struct Inside {
  int64_t begin, end;
  Inside(int64_t first, int64_t size) : begin(-first), end(size - first) {}
  bool holds(int64_t i) const { return i >= begin && i < end; }
  bool holds_all(int64_t count) const { return begin <= 0 && end >= count; }
};

template <class V>
inline auto* at_place(const V& v, const TilePlace& at) {
  return v.data + at.image * v.image + at.y * v.row + at.x * v.pixel;
}

}  // namespace
