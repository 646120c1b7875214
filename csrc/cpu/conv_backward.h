// Gradients of a convolution's input and weight from that of its output, by the float32 kernels, one group of
// images after the other.
#pragma once
#include <optional>

#include "cpu/bordered.h"
#include "cpu/conv_input_grad.h"
#include "cpu/image_groups.h"
#include "ops/conv_gradients.h"

namespace cnnfast::cpu {

class ConvBackward {
 public:
  // Images may be bfloat16; the weight is float32.
  ConvBackward(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& params,
               at::IntArrayRef output_sizes, bool need_input, bool need_weight);

  ImageGroups groups() const;
  // Zeros that must lie around the gradient of a group of so many images.
  Border border(int64_t images) const;
  // From the gradient of the images from `first` on.
  void add(int64_t first, const Bordered& grad);
  // That of the input has its type and layout, that of the weight is float32.
  ConvGradients take() { return std::move(found_); }

 private:
  void add_input(int64_t first, const at::Tensor& images, const Bordered& grad);
  void add_weight(const at::Tensor& images, const at::Tensor& grad);

  const at::Tensor& input_;
  const at::Tensor& weight_;
  Conv2dParams params_;
  std::vector<int64_t> output_sizes_;
  bool need_input_, need_weight_;
  ConvGradients found_;
};

}  // namespace cnnfast::cpu
