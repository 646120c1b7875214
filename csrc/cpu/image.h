// Copies between any strided tensor and NHWC images with a border of zeros.
#pragma once
#include <cstdint>

#include "cpu/kernel_table.h"
#include "cpu/view16.h"

namespace cnnfast::cpu {

struct ImageSize {
  int64_t images, height, width, channels;
};

struct Border {
  int64_t top = 0, left = 0, bottom = 0, right = 0;
};

// Element strides of a tensor in N, C, H, W order.
struct TensorStrides {
  int64_t image, channel, row, pixel;
};

// Image rows [row_begin, row_end) (over all images) from `source` to `target` (its first pixel inside the
// border).
void copy_in(const float* source, TensorStrides strides, ImageSize size, View target, int64_t row_begin,
             int64_t row_end);
// The other way round.
void copy_out(View source, ImageSize size, float* target, TensorStrides strides, int64_t row_begin,
              int64_t row_end);

// The same for images of bfloat16 values; float32 values are rounded to nearest on the way in.
void copy_in(const uint16_t* source, TensorStrides strides, ImageSize size, View16 target, int64_t row_begin,
             int64_t row_end);
void copy_in(const float* source, TensorStrides strides, ImageSize size, View16 target, int64_t row_begin,
             int64_t row_end);
void copy_out(View16 source, ImageSize size, uint16_t* target, TensorStrides strides, int64_t row_begin,
              int64_t row_end);
void copy_out(View16 source, ImageSize size, float* target, TensorStrides strides, int64_t row_begin,
              int64_t row_end);

// Writes zeros around the images whose first pixel inside the border is target.data, `size.channels` channels
// wide.
void zero_border(View target, ImageSize size, Border border, int64_t image_begin, int64_t image_end);
void zero_border(View16 target, ImageSize size, Border border, int64_t image_begin, int64_t image_end);
// The same around rows [row_begin, row_end) over all images: beside them, and above the first and below the
// last of an image where those are among them.
void zero_border_of_rows(View target, ImageSize size, Border border, int64_t row_begin, int64_t row_end);
void zero_border_of_rows(View16 target, ImageSize size, Border border, int64_t row_begin, int64_t row_end);
// Around rows of one image; none of them at its top or bottom: the rows above the first, or below the last.
void zero_border_of_strip(View16 target, ImageSize size, Border border, int64_t image, int64_t row_begin,
                          int64_t row_end);

}  // namespace cnnfast::cpu
