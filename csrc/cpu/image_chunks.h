// Images, or rows of one image, that a thread works on at once: what it copies of them on the way, with
// borders or widened from bfloat16, stays in its second-level cache.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>

#include "cpu/conv2d.h"
#include "cpu/image.h"
#include "ops/conv2d.h"

namespace cnnfast::cpu {

// Rows from `row` on, of so many images from `image` on.
struct Chunk {
  int64_t image, images, row, rows;
};

class ImageChunks {
 public:
  // Of the output; `row_floats` are copied for a row. By sizes alone, never by the number of threads.
  ImageChunks(ImageSize size, int64_t row_floats);
  // The same chunks of the input: whole images, or rows at the same places times the stride.
  ImageChunks of_input(const at::Tensor& input, int64_t stride) const;

  // Whether a convolution may go by chunks: without groups, its kernel larger than a pixel; of stride 1 where
  // its input has a gradient. Unless it keeps the size, but for the stride, chunks are whole images.
  static bool serve(const at::Tensor& weight, const Conv2dParams& params, bool strides);
  bool serve_size(const at::Tensor& input, int64_t stride) const {
    return strips_ == 1 || size_.height == (input.size(2) + stride - 1) / stride;
  }

  int64_t count() const { return count_; }
  int64_t images() const { return images_; }  // of a chunk, at most
  int64_t rows() const { return rows_; }      // the same
  // Images there would be if each were as high as a chunk.
  int64_t all_images() const { return size_.images * strips_; }
  Chunk operator[](int64_t index) const;

  // Of a thread's memory for a chunk: distances of pixels, rows and images.
  View layout(const Border& border, int64_t channels) const;
  int64_t floats(const View& layout) const { return (images_ * layout.image + 15) / 16 * 16; }
  // The first pixel inside the border.
  static View inside(View layout, const Border& border, float* memory);

  // Calls write(image, row, to) for the images' rows that lie in a chunk's memory, those of `halo` neighbours
  // among them, and clears the border around.
  template <class Write>
  void fill(const Chunk& c, const View& memory, const Border& border, int64_t halo, Write&& write) const {
    for (int64_t n = 0; n < c.images; ++n) {
      float* const first = memory.data + n * memory.image;
      for (int64_t y = -border.top; y < rows_ + border.bottom; ++y) {
        float* const to = first + y * memory.row;
        float* const begin = to - border.left * memory.pixel;
        const int64_t row = c.row + y;
        if (row < 0 || row >= size_.height || y < -halo || y >= c.rows + halo) {
          std::fill(begin, begin + memory.row, 0.0f);
          continue;
        }
        std::fill(begin, to, 0.0f);
        write(c.image + n, row, to);
        std::fill(to + size_.width * memory.pixel, begin + memory.row, 0.0f);
      }
    }
  }

 private:
  ImageSize size_;
  int64_t images_, rows_, strips_, count_;  // rows: of a chunk; strips: of an image
};

// Rows of float32 or bfloat16 images whose channels are adjacent.
class ImageRows {
 public:
  explicit ImageRows(const at::Tensor& t);

  bool narrow() const { return narrow_; }
  // Pixels side by side in float32, through the prologue where there is one.
  void read(int64_t image, int64_t row, float* to, const InputPrologue* prologue = nullptr) const;
  // A chunk from a thread's memory, rounded, where they are bfloat16; float32 ones are written where they
  // lie, at view_at.
  void write(const Chunk& c, const View& from) const;
  View view_at(const Chunk& c) const;

 private:
  int64_t at(int64_t image, int64_t row) const { return image * strides_.image + row * strides_.row; }

  const at::Tensor& tensor_;
  TensorStrides strides_;
  int64_t width_, channels_;
  bool narrow_;
};

}  // namespace cnnfast::cpu
