// Rows of images in memory.
#pragma once
#include "cpu/image.h"

namespace cnnfast::plan {

// The first pixel of row y of image n.
inline const float* row_of(const cpu::View& v, int64_t n, int64_t y) {
  return v.data + n * v.image + y * v.row;
}
inline float* row_to(const cpu::View& v, int64_t n, int64_t y) { return v.data + n * v.image + y * v.row; }

}  // namespace cnnfast::plan
