// The gradient of batch normalisation on tensors: sums per channel, then the gradient of every value. Images
// may be bfloat16, as in cpu/normalise.h.
#pragma once
#include <functional>

#include "cpu/bordered.h"
#include "cpu/pixel_rows.h"
#include "ops/batch_norm2d.h"

namespace cnnfast::cpu {

// batch_norm2d_backward by the kernels; arguments must have passed the check, statistics and parameters be
// float32.
BatchNormGradients batch_norm2d_backward_float(const at::Tensor& grad_output, const at::Tensor& input,
                                               const at::Tensor& mean, const at::Tensor& var,
                                               const OptionalTensor& weight, const at::Tensor& output,
                                               double eps, std::string_view activation, bool batch_statistics,
                                               std::array<bool, 6> output_mask);

// The same for statistics and parameters of either type.
BatchNormGradients batch_norm2d_backward_widened(const at::Tensor& grad_output, const at::Tensor& input,
                                                 const at::Tensor& mean, const at::Tensor& var,
                                                 const OptionalTensor& weight, const at::Tensor& output,
                                                 double eps, std::string_view activation,
                                                 bool batch_statistics, std::array<bool, 6> output_mask);

// Both over the memory of grad_output where that lies in channels_last memory.
BatchNormGradients batch_norm2d_backward_over(const at::Tensor& grad_output, const at::Tensor& input,
                                              const at::Tensor& mean, const at::Tensor& var,
                                              const OptionalTensor& weight, const at::Tensor& output,
                                              double eps, std::string_view activation, bool batch_statistics,
                                              std::array<bool, 6> output_mask);
BatchNormGradients batch_norm2d_backward_widened_over(const at::Tensor& grad_output, const at::Tensor& input,
                                                      const at::Tensor& mean, const at::Tensor& var,
                                                      const OptionalTensor& weight, const at::Tensor& output,
                                                      double eps, std::string_view activation,
                                                      bool batch_statistics, std::array<bool, 6> output_mask);

struct NormGradientWriter {
  // Writes the input's gradient of the images from `first` on, as many as `to` has, with a border of zeros.
  std::function<void(int64_t first, const Bordered& to, const Border& border)> images;
  // That of a row over all images, by the calling thread; the residual's only where `own`.
  std::function<void(int64_t row, float* to, bool own)> row;
};
// Has all images written, and takes them.
using NormGradientReader = std::function<void(const NormGradientWriter&)>;

// The same where the statistics are the batch's own, with the input's gradient (if wanted) for `reader`; the
// first of the results is empty.
BatchNormGradients batch_norm2d_backward_by_images(const NormGradientReader& reader,
                                                   const at::Tensor& grad_output, const at::Tensor& input,
                                                   const at::Tensor& mean, const at::Tensor& var,
                                                   const OptionalTensor& weight, const at::Tensor& output,
                                                   double eps, std::string_view activation,
                                                   std::array<bool, 6> output_mask);

}  // namespace cnnfast::cpu
