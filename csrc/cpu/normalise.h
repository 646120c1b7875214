// Batch normalisation on tensors, for the operators that contain one. Images may be bfloat16, read as they
// are or, where a kernel takes float32 alone, widened block by block in cache; parameters and statistics are
// float32.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>

#include "cpu/bordered.h"
#include "cpu/conv2d.h"
#include "cpu/conv_job.h"
#include "cpu/tensor_view.h"
#include "ops/batch_norm2d.h"

namespace cnnfast::cpu {

// Every pixel of an image batch as a row of adjacent channels, all rows at one distance.
struct PixelRows {
  const float* data;  // null where values are bfloat16
  int64_t stride, rows, channels;
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

struct Statistics {
  at::Tensor mean, var;  // var is biased
};

// NaN where there is no row.
Statistics batch_statistics(const PixelRows& x);

// Batch normalisation as one factor and one shift per channel.
struct ScaleShift {
  AlignedFloats scale, shift;
};

ScaleShift fold(const at::Tensor& mean, const at::Tensor& var, const OptionalTensor& weight,
                const OptionalTensor& bias, double eps);

// act(x * scale + shift + residual) to channels_last memory without gaps, float32 or bfloat16.
void normalise_into(const PixelRows& x, const InputPrologue& p, const OptionalTensor& residual,
                    const at::Tensor& output);
// The same in memory of its own, of the sizes and the type given.
at::Tensor normalise(const PixelRows& x, at::IntArrayRef sizes, const ScaleShift& s,
                     const OptionalTensor& residual, Activation activation, at::ScalarType type);

// A convolution's input through its prologue with `border` zeros around every image, as a view of the first
// pixel inside the border; `storage` holds it. It is copied for the border anyway.
View normalised_with_border(const at::Tensor& t, const InputPrologue& prologue, Border border,
                            at::Tensor& storage);

// batch_norm_act and batch_norm2d_backward by the kernels; arguments must have passed the checks and be
// float32.
at::Tensor batch_norm_act_float(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                                const OptionalTensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& residual, double eps, std::string_view activation);
BatchNormGradients batch_norm2d_backward_float(const at::Tensor& grad_output, const at::Tensor& input,
                                               const at::Tensor& mean, const at::Tensor& var,
                                               const OptionalTensor& weight, const at::Tensor& output,
                                               double eps, std::string_view activation, bool batch_statistics,
                                               std::array<bool, 6> output_mask);

// The same on bfloat16 images, widened (cpu/widened.h).
at::Tensor batch_norm_act_widened(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                                  const OptionalTensor& weight, const OptionalTensor& bias,
                                  const OptionalTensor& residual, double eps, std::string_view activation);
BatchNormGradients batch_norm2d_backward_widened(const at::Tensor& grad_output, const at::Tensor& input,
                                                 const at::Tensor& mean, const at::Tensor& var,
                                                 const OptionalTensor& weight, const at::Tensor& output,
                                                 double eps, std::string_view activation,
                                                 bool batch_statistics, std::array<bool, 6> output_mask);

// batch_norm2d_backward_float over the memory of grad_output where that lies in channels_last memory.
BatchNormGradients batch_norm2d_backward_over(const at::Tensor& grad_output, const at::Tensor& input,
                                              const at::Tensor& mean, const at::Tensor& var,
                                              const OptionalTensor& weight, const at::Tensor& output,
                                              double eps, std::string_view activation, bool batch_statistics,
                                              std::array<bool, 6> output_mask);

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

// Whether the float32 kernels take these tensors.
bool all_float(const at::Tensor& input, std::initializer_list<OptionalTensor> others);

}  // namespace cnnfast::cpu
