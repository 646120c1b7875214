#include "cpu/image.h"

#include <algorithm>
#include <cstring>

#include "cpu/bf16_table.h"
#include "cpu/conv_job.h"

namespace cnnfast::cpu {
namespace {

// Pixels copied together where channels are not adjacent on the other side, so that both sides stay in cache
// lines.
constexpr int64_t kPixelBlock = 16;

template <class T>
void zero_pixels(T* row, int64_t pixels, int64_t step, int64_t channels) {
  if (step == channels) {
    std::memset(row, 0, sizeof(T) * static_cast<size_t>(pixels * channels));
    return;
  }
  for (int64_t x = 0; x < pixels; ++x)
    std::memset(row + x * step, 0, sizeof(T) * static_cast<size_t>(channels));
}

void planes_in(const PlanesCall<float>& c) { kernels().pixels_of_planes(c, 0, c.pixels); }
void planes_in(const PlanesCall<uint16_t>& c) { bf16_kernels().pixels_of_planes(c, 0, c.pixels); }

// One row of pixels between two layouts, each given by its pixel and channel stride.
template <class T>
void copy_row(const T* from, int64_t from_pixel, int64_t from_channel, T* to, int64_t to_pixel,
              int64_t to_channel, int64_t width, int64_t channels) {
  if (from_channel == 1 && to_channel == 1) {
    const bool dense = from_pixel == channels && to_pixel == channels;
    const int64_t runs = dense ? 1 : width, values = dense ? width * channels : channels;
    for (int64_t x = 0; x < runs; ++x)
      std::memcpy(to + x * to_pixel, from + x * from_pixel, sizeof(T) * static_cast<size_t>(values));
    return;
  }
  for (int64_t begin = 0; begin < width; begin += kPixelBlock) {
    const int64_t end = std::min(width, begin + kPixelBlock);
    for (int64_t c = 0; c < channels; ++c)
      for (int64_t x = begin; x < end; ++x)
        to[x * to_pixel + c * to_channel] = from[x * from_pixel + c * from_channel];
  }
}

template <class T, class V>
void copy_rows_in(const T* source, TensorStrides s, ImageSize size, V target, int64_t row_begin,
                  int64_t row_end) {
  const int64_t from_pixel = size.width == 1 ? size.channels : s.pixel;
  const int64_t from_channel = size.channels == 1 ? 1 : s.channel;
  const bool planes = from_pixel == 1 && from_channel > 1 && target.pixel == size.channels;
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / size.height, y = row % size.height;
    const T* from = source + n * s.image + y * s.row;
    T* to = target.data + n * target.image + y * target.row;
    if (planes)
      planes_in({from, from_channel, size.channels, size.width, to});
    else
      copy_row(from, from_pixel, from_channel, to, target.pixel, 1, size.width, size.channels);
  }
}

template <class T, class V>
void copy_rows_out(V source, ImageSize size, T* target, TensorStrides s, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / size.height, y = row % size.height;
    copy_row(source.data + n * source.image + y * source.row, source.pixel, 1,
             target + n * s.image + y * s.row, s.pixel, s.channel, size.width, size.channels);
  }
}

template <class V>
void zero_around(V target, ImageSize size, Border b, int64_t image, int64_t row_begin, int64_t row_end) {
  const int64_t padded = size.width + b.left + b.right, step = target.pixel;
  auto* first = target.data + image * target.image - b.left * step;
  const auto zero_rows = [&](int64_t begin, int64_t end) {
    for (int64_t y = begin; y < end; ++y) zero_pixels(first + y * target.row, padded, step, size.channels);
  };
  if (row_begin == 0) zero_rows(-b.top, 0);
  if (row_end == size.height) zero_rows(size.height, size.height + b.bottom);
  for (int64_t y = row_begin; y < row_end; ++y) {
    zero_pixels(first + y * target.row, b.left, step, size.channels);
    zero_pixels(first + y * target.row + (b.left + size.width) * step, b.right, step, size.channels);
  }
}

template <class V>
void zero_around_rows(V target, ImageSize size, Border b, int64_t row_begin, int64_t row_end) {
  for (int64_t row = row_begin; row < row_end;) {
    const int64_t image = row / size.height, y = row % size.height;
    const int64_t end = std::min(size.height, y + row_end - row);
    zero_around(target, size, b, image, y, end);
    row += end - y;
  }
}

}  // namespace

void copy_in(const float* source, TensorStrides s, ImageSize size, View target, int64_t row_begin,
             int64_t row_end) {
  copy_rows_in(source, s, size, target, row_begin, row_end);
}

void copy_in(const uint16_t* source, TensorStrides s, ImageSize size, View16 target, int64_t row_begin,
             int64_t row_end) {
  copy_rows_in(source, s, size, target, row_begin, row_end);
}

void copy_in(const float* source, TensorStrides s, ImageSize size, View16 target, int64_t row_begin,
             int64_t row_end) {
  const bool adjacent = s.channel == 1 || size.channels == 1;
  float* pixels = adjacent ? nullptr : thread_scratch(ScratchSlot::kStrip, size.width * size.channels);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / size.height, y = row % size.height;
    const float* from = source + n * s.image + y * s.row;
    if (!adjacent)
      copy_rows_in(from, s, {1, 1, size.width, size.channels}, View{pixels, 0, 0, size.channels}, 0, 1);
    const PixelRun<const float> run =
        adjacent ? PixelRun<const float>{from, s.pixel} : PixelRun<const float>{pixels, size.channels};
    bf16_kernels().narrow(run, {target.data + n * target.image + y * target.row, target.pixel}, size.width,
                          size.channels);
  }
}

void copy_out(View source, ImageSize size, float* target, TensorStrides s, int64_t row_begin,
              int64_t row_end) {
  copy_rows_out(source, size, target, s, row_begin, row_end);
}

void copy_out(View16 source, ImageSize size, uint16_t* target, TensorStrides s, int64_t row_begin,
              int64_t row_end) {
  copy_rows_out(source, size, target, s, row_begin, row_end);
}

void copy_out(View16 source, ImageSize size, float* target, TensorStrides s, int64_t row_begin,
              int64_t row_end) {
  float* pixels = thread_scratch(ScratchSlot::kStrip, size.width * size.channels);
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t n = row / size.height, y = row % size.height;
    bf16_kernels().widen({source.data + n * source.image + y * source.row, source.pixel},
                         {pixels, size.channels}, size.width, size.channels);
    copy_rows_out(View{pixels, 0, 0, size.channels}, {1, 1, size.width, size.channels},
                  target + n * s.image + y * s.row, s, 0, 1);
  }
}

void zero_border(View target, ImageSize size, Border b, int64_t image_begin, int64_t image_end) {
  zero_around_rows(target, size, b, image_begin * size.height, image_end * size.height);
}

void zero_border(View16 target, ImageSize size, Border b, int64_t image_begin, int64_t image_end) {
  zero_around_rows(target, size, b, image_begin * size.height, image_end * size.height);
}

void zero_border_of_rows(View target, ImageSize size, Border b, int64_t row_begin, int64_t row_end) {
  zero_around_rows(target, size, b, row_begin, row_end);
}

void zero_border_of_rows(View16 target, ImageSize size, Border b, int64_t row_begin, int64_t row_end) {
  zero_around_rows(target, size, b, row_begin, row_end);
}

void zero_border_of_strip(View16 target, ImageSize size, Border b, int64_t image, int64_t row_begin,
                          int64_t row_end) {
  zero_around(target, size, b, image, row_begin, row_end);
}

}  // namespace cnnfast::cpu
