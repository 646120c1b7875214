// Rows of the gradient in front of an activation that a pooling is behind, from the pooling's, on bfloat16
// images: what the pooling hands on stays in cache.
#pragma once
#include "cpu/kernel_table.h"
#include "cpu/pixel_rows.h"
#include "ops/inception.h"

namespace cnnfast::cpu {

class PooledRows {
 public:
  // `output`: of the activation, which `pool`, a stage without one, reads.
  PooledRows(const at::Tensor& grad_output, const at::Tensor& output, Activation activation,
             const Stage& pool);

  const ImageSize& size() const { return size_; }
  const PixelRows& output() const { return output_; }
  // So many rows cost less together than one by one; an image is a multiple of it, or ends with less.
  int64_t rows_together() const { return together_; }

  // Rows [first, first + count), counted over all images, to pixels side by side, in float32. By the calling
  // thread.
  void run(int64_t first, int64_t count, float* to) const;

 private:
  // Of the pooling's gradient, in the calling thread's memory.
  const uint16_t* spread(int64_t first, int64_t count) const;
  // Behind the activation, from the pooling's.
  void mask(const uint16_t* spread, int64_t first, int64_t count, float* to) const;

  bool max_;
  PoolCall call_;
  ImageSize size_;
  Activation activation_;
  at::Tensor images_, grad_;
  PixelRows output_;
  int64_t together_;
};

}  // namespace cnnfast::cpu
