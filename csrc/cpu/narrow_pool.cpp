#include "cpu/narrow_pool.h"

#include <algorithm>

#include "cpu/aligned_floats.h"
#include "cpu/bf16_table.h"

namespace cnnfast::cpu {
namespace {

// Of a strip, in and out: they stay in the second-level cache.
constexpr int64_t kStripFloats = 96 * 1024;
// Of a strip of the input's gradient where nothing else is widened.
constexpr int64_t kNearStripFloats = 64 * 1024;

// Rows [begin, end) of an image, widened: a view of the image of which only these rows exist.
class Rows {
 public:
  Rows(int64_t begin, int64_t end, int64_t width, int64_t channels, float*& scratch)
      : begin_(begin), end_(std::max(begin, end)), width_(width), channels_(channels), data_(scratch) {
    scratch += (end_ - begin_) * width * channels;
  }
  View view() const {
    const int64_t row = width_ * channels_;
    return {data_ - begin_ * row, 0, row, channels_};
  }
  void widen(const View16& from, int64_t image) const {
    for (int64_t y = begin_; y < end_; ++y)
      bf16_kernels().widen({at(from, image, y), from.pixel}, {row(y), channels_}, width_, channels_);
  }
  void round_to(const View16& to, int64_t image) const {
    for (int64_t y = begin_; y < end_; ++y)
      bf16_kernels().narrow({row(y), channels_}, {at(to, image, y), to.pixel}, width_, channels_);
  }

 private:
  static uint16_t* at(const View16& v, int64_t image, int64_t y) {
    return v.data + image * v.image + y * v.row;
  }
  float* row(int64_t y) const { return data_ + (y - begin_) * width_ * channels_; }

  int64_t begin_, end_, width_, channels_;
  float* data_;
};

// Windows that reach into input rows [begin, end).
std::pair<int64_t, int64_t> windows_of(const PoolCall& p, int64_t begin, int64_t end) {
  const int64_t reach = std::max<int64_t>(0, begin + p.pad_h - (p.kernel_h - 1) * p.dilation_h);
  const int64_t first = (reach + p.stride_h - 1) / p.stride_h,
                last = std::min(p.height, (end - 1 + p.pad_h) / p.stride_h + 1);
  return {first, std::max(first, last)};
}

// body(image, begin, end) for parts of the rows [begin, end) of images of `height` rows, `step` at most.
template <class Body>
void for_strips(int64_t begin, int64_t end, int64_t height, int64_t step, Body&& body) {
  for (int64_t row = begin; row < end;) {
    const int64_t y = row % height, count = std::min({step, height - y, end - row});
    body(row / height, y, y + count);
    row += count;
  }
}

}  // namespace

void NarrowPoolBackward::run(int64_t row_begin, int64_t row_end) const {
  if (input.data && MaxPoolApart16Call::serves(call))
    return bf16_kernels().max_pool_apart_backward({call, input, grad, grad_input}, row_begin, row_end);
  const int64_t in_row = call.in_width * call.channels, out_row = call.width * call.channels;
  const int64_t row_floats = input.data ? in_row : in_row + out_row / call.stride_h;
  const int64_t fitting = (input.data ? kNearStripFloats : kStripFloats) / row_floats;
  const int64_t step = std::max(call.stride_h, fitting / call.stride_h * call.stride_h);
  for_strips(row_begin, row_end, call.in_height, step, [&](int64_t image, int64_t begin, int64_t end) {
    input.data ? max_strip(image, begin, end) : mean_strip(image, begin, end);
  });
}

void NarrowPoolBackward::max_strip(int64_t image, int64_t begin, int64_t end) const {
  float* scratch = thread_scratch(ScratchSlot::kWidened, (end - begin) * call.in_width * call.channels);
  const Rows to(begin, end, call.in_width, call.channels, scratch);
  MaxPoolBackward16Call part{{call, {}, to.view()}, input, grad};
  part.input.data += image * input.image;
  part.grad.data += image * grad.image;
  bf16_kernels().max_pool_backward(part, begin, end);
  to.round_to(grad_input, image);
}

void NarrowPoolBackward::mean_strip(int64_t image, int64_t begin, int64_t end) const {
  const auto [first, last] = windows_of(call, begin, end);
  float* scratch = thread_scratch(ScratchSlot::kWidened,
                                  (end - begin) * call.in_width * call.channels +
                                      std::max<int64_t>(0, last - first) * call.width * call.channels);
  const Rows grads(first, last, call.width, call.channels, scratch),
      to(begin, end, call.in_width, call.channels, scratch);
  grads.widen(grad, image);
  const PoolBackwardCall part{call, grads.view(), to.view()};
  kernels().avg_pool_backward(part, begin, end);
  to.round_to(grad_input, image);
}

}  // namespace cnnfast::cpu
