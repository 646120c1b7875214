// Rows of the gradient in front of an activation, from that behind it and the activation's output, in
// float32; both may be bfloat16.
#pragma once
#include "cpu/pixel_rows.h"

namespace cnnfast::cpu {

// Of `pixels` pixels from the first on, to pixels side by side. `scratch`: for both, where one of them alone
// is bfloat16.
void activation_gradient_rows(const PixelRows& grad, const PixelRows& output, int64_t first, int64_t pixels,
                              Activation activation, float* scratch, float* to);

class ActivationRows {
 public:
  // Without an activation the output is not read.
  ActivationRows(const at::Tensor& grad_output, const at::Tensor& output, Activation activation);

  const ImageSize& size() const { return size_; }
  // Row `row`, counted over all images, to pixels side by side; where `sums` is given their sums by channel
  // are added to it. By the calling thread.
  void run(int64_t row, float* to, float* sums) const;

 private:
  void copy(int64_t first, float* to) const;
  void mask(int64_t first, float* to) const;

  ImageSize size_;
  Activation activation_;
  PixelRows grad_, output_{};
};

}  // namespace cnnfast::cpu
