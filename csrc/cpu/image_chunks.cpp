#include "cpu/image_chunks.h"

#include "cpu/bf16_table.h"
#include "cpu/images16.h"
#include "cpu/tensor_view.h"

namespace cnnfast::cpu {
namespace {

constexpr int64_t kChunkFloats = 96 * 1024;
// Rows of a chunk are whole tiles of Winograd's algorithm; so many meet the sums of a weight's gradient, and
// transformed weights, at a time.
constexpr int64_t kTileRows = 4, kLeastTiles = 32;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

bool all(at::IntArrayRef values, int64_t n) { return values[0] == n && values[1] == n; }

}  // namespace

ImageChunks::ImageChunks(ImageSize size, int64_t row_floats) : size_(size) {
  const int64_t in_row = divide_up(size.width, kTileRows);
  const int64_t most_rows =
      kTileRows * std::max(divide_up(kLeastTiles, in_row), kChunkFloats / row_floats / kTileRows);
  strips_ = divide_up(size.height, most_rows);
  rows_ = strips_ == 1 ? size.height : divide_up(divide_up(size.height, strips_), kTileRows) * kTileRows;
  strips_ = divide_up(size.height, rows_);
  images_ = strips_ > 1 ? 1 : std::clamp<int64_t>(most_rows / size.height, 1, size.images);
  count_ = strips_ * divide_up(size.images, images_);
}

ImageChunks ImageChunks::of_input(const at::Tensor& input, int64_t stride) const {
  ImageChunks chunks = *this;
  chunks.size_ = image_size(input);
  chunks.rows_ = strips_ == 1 ? input.size(2) : rows_ * stride;
  return chunks;
}

bool ImageChunks::serve(const at::Tensor& weight, const Conv2dParams& p, bool strides) {
  return weight.size(2) * weight.size(3) > 1 && (strides || all(p.stride, 1)) && all(p.dilation, 1) &&
         p.groups == 1;
}

Chunk ImageChunks::operator[](int64_t index) const {
  if (strips_ == 1) {
    const int64_t first = index * images_;
    return {first, std::min(images_, size_.images - first), 0, size_.height};
  }
  const int64_t row = index % strips_ * rows_;
  return {index / strips_, 1, row, std::min(rows_, size_.height - row)};
}

View ImageChunks::layout(const Border& b, int64_t channels) const {
  const int64_t row = (size_.width + b.left + b.right) * channels;
  return {nullptr, row * (rows_ + b.top + b.bottom), row, channels};
}

View ImageChunks::inside(View layout, const Border& b, float* memory) {
  layout.data = memory + b.top * layout.row + b.left * layout.pixel;
  return layout;
}

ImageRows::ImageRows(const at::Tensor& t)
    : tensor_(t),
      strides_(tensor_strides(t)),
      width_(t.size(3)),
      channels_(t.size(1)),
      narrow_(t.scalar_type() == at::kBFloat16) {}

void ImageRows::read(int64_t image, int64_t row, float* to, const InputPrologue* prologue) const {
  const int64_t first = at(image, row);
  if (prologue && narrow_)
    prologue->apply(bits_of(tensor_) + first, strides_.pixel, to, width_, channels_);
  else if (prologue)
    prologue->apply(tensor_.const_data_ptr<float>() + first, strides_.pixel, to, width_, channels_);
  else if (narrow_)
    bf16_kernels().widen({bits_of(tensor_) + first, strides_.pixel}, {to, channels_}, width_, channels_);
  else
    copy_in(tensor_.const_data_ptr<float>() + first, strides_, {1, 1, width_, channels_},
            {to, 0, 0, channels_}, 0, 1);
}

void ImageRows::write(const Chunk& c, const View& from) const {
  if (!narrow_) return;
  for (int64_t n = 0; n < c.images; ++n)
    for (int64_t y = 0; y < c.rows; ++y)
      bf16_kernels().narrow({from.data + n * from.image + y * from.row, from.pixel},
                            {bits_of(tensor_) + at(c.image + n, c.row + y), strides_.pixel}, width_,
                            channels_);
}

View ImageRows::view_at(const Chunk& c) const {
  if (narrow_) return {};
  View v = view_of(tensor_);
  v.data += at(c.image, c.row);
  return v;
}

}  // namespace cnnfast::cpu
