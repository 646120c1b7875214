// The gradient in front of an activation on bfloat16 images, row by row.
#pragma once
#include "cpu/bf16_table.h"
#include "cpu/images16.h"

namespace cnnfast::cpu {

class ActivationRows16 {
 public:
  // The output is not read without an activation.
  ActivationRows16(const at::Tensor& grad_output, const at::Tensor& output, Activation activation);
  // Of images in memory; the data of `output` is null without an activation.
  ActivationRows16(ImageSize size, const View16& grad, const View16& output, Activation activation)
      : size_(size),
        activation_(activation),
        grad_{grad, nullptr, nullptr, {}},
        output_{output, nullptr, nullptr, {}} {}

  // Rows [begin, end) over all images into `to`, whose first image is image `first`. Adds the channels' sums
  // to `sums` unless it is null.
  void run(int64_t begin, int64_t end, int64_t first, const View16& to, float* sums) const;

 private:
  ImageSize size_;
  Activation activation_;
  Images16 grad_, output_;
};

}  // namespace cnnfast::cpu
