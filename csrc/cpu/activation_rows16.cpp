#include "cpu/activation_rows16.h"

#include "cpu/tensor_view.h"

namespace cnnfast::cpu {
namespace {

uint16_t* row_of(const View16& v, int64_t image, int64_t y) { return v.data + image * v.image + y * v.row; }

}  // namespace

ActivationRows16::ActivationRows16(const at::Tensor& grad_output, const at::Tensor& output,
                                   Activation activation)
    : size_(image_size(grad_output)), activation_(activation), grad_(bring_in16(grad_output, {})), output_{} {
  if (activation.kind != Activation::kNone) output_ = bring_in16(output, {});
}

void ActivationRows16::run(int64_t begin, int64_t end, int64_t first, const View16& to, float* sums) const {
  for (int64_t row = begin; row < end; ++row) {
    const int64_t image = row / size_.height, y = row % size_.height;
    const uint16_t* output = output_.view.data ? row_of(output_.view, image, y) : nullptr;
    bf16_kernels().activation_backward({{row_of(grad_.view, image, y), grad_.view.pixel},
                                        {output, output_.view.pixel},
                                        {row_of(to, image - first, y), to.pixel},
                                        size_.channels,
                                        activation_,
                                        sums},
                                       size_.width);
  }
}

}  // namespace cnnfast::cpu
