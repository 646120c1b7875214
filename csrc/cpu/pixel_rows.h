// An image batch as rows of pixels, float32 or bfloat16, for what works on every pixel alike.
#pragma once
#include <ATen/core/Tensor.h>

#include <algorithm>

#include "cpu/aligned_floats.h"
#include "cpu/bf16_table.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"

namespace cnnfast::cpu {

// Every pixel of an image batch as a row of adjacent channels, all rows at one distance.
struct PixelRows {
  const float* data = nullptr;  // null where values are bfloat16
  int64_t stride = 0, rows = 0, channels = 0;
  at::Tensor storage;  // keeps the memory
  const uint16_t* narrow = nullptr;

  bool given() const { return data || narrow; }
};

// Copies the tensor only where its pixels lie otherwise.
PixelRows pixel_rows(const at::Tensor& t);

struct FloatRows {
  const float* data;
  int64_t stride;
};

// Rows [first, first + count), widened into `scratch` where they are bfloat16.
FloatRows float_rows(const PixelRows& x, int64_t first, int64_t count, float* scratch);

// Rows of channels_last memory that are written: float32, or bfloat16 by way of scratch memory.
struct OutputRows {
  explicit OutputRows(const at::Tensor& t) : channels(t.size(1)) {
    if (t.scalar_type() == at::kBFloat16)
      narrow = reinterpret_cast<uint16_t*>(t.data_ptr<at::BFloat16>());
    else
      data = t.data_ptr<float>();
  }
  OutputRows() = default;
  explicit OutputRows(float* rows) : data(rows) {}

  bool wanted() const { return data || narrow; }
  float* at(int64_t first, float* scratch) const {
    return narrow ? scratch : data ? data + first * channels : nullptr;
  }
  void finish(int64_t first, int64_t count, const float* scratch) const {
    if (narrow)
      bf16_kernels().narrow({scratch, channels}, {narrow + first * channels, channels}, count, channels);
  }

  // Pixels that lie side by side elsewhere.
  void write(int64_t first, int64_t count, const float* from) const {
    if (data) std::copy_n(from, count * channels, data + first * channels);
    finish(first, count, from);
  }

  float* data = nullptr;
  uint16_t* narrow = nullptr;
  int64_t channels = 0;
};

// bfloat16 values that are widened at a time, of each tensor: they stay in the first-level cache.
constexpr int64_t kBlockValues = 2048;

// body(first, count, scratch) for blocks of the rows [begin, end): all at once without bfloat16 among them,
// else with memory for `tensors` blocks.
template <class Body>
void for_blocks(bool narrow, int64_t channels, int64_t tensors, int64_t begin, int64_t end, Body&& body) {
  const int64_t step =
      narrow ? std::max<int64_t>(1, kBlockValues / channels) : std::max<int64_t>(1, end - begin);
  float* scratch = narrow ? thread_scratch(ScratchSlot::kWidened, tensors * step * channels) : nullptr;
  for (int64_t first = begin; first < end; first += step)
    body(first, std::min(step, end - first), scratch, step * channels);
}

}  // namespace cnnfast::cpu
