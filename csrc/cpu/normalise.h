// Batch normalisation on tensors, for the operators that contain one. Images may be bfloat16, read as they
// are or, where a kernel takes float32 alone, widened block by block in cache; parameters and statistics are
// float32.
#pragma once
#include <ATen/core/Tensor.h>

#include "cpu/bordered.h"
#include "cpu/conv2d.h"
#include "cpu/conv_job.h"
#include "cpu/pixel_rows.h"
#include "ops/batch_norm2d.h"

namespace cnnfast::cpu {

struct Statistics {
  at::Tensor mean, var;  // var is biased
};

// NaN where there is no row.
Statistics batch_statistics(const PixelRows& x);

// Means of so many rows from the first on, added to zeros, and the squares around them. `origin`: memory for
// a row.
void part_statistics(const PixelRows& x, int64_t first, int64_t rows, float* origin, float* mean,
                     float* squares);

// Batch normalisation as one factor and one shift per channel.
struct ScaleShift {
  AlignedFloats scale, shift;
};

ScaleShift fold(const at::Tensor& mean, const at::Tensor& var, const OptionalTensor& weight,
                const OptionalTensor& bias, double eps);

// act(x * scale + shift + residual) of the rows [begin, end), by the calling thread; `residual` may have
// none.
void normalise_rows(const PixelRows& x, const InputPrologue& p, const PixelRows& residual,
                    const OutputRows& to, int64_t begin, int64_t end);
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

// batch_norm_act by the kernels; arguments must have passed the check, statistics and parameters be float32.
at::Tensor batch_norm_act_float(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                                const OptionalTensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& residual, double eps, std::string_view activation);
// The same for statistics and parameters of either type.
at::Tensor batch_norm_act_widened(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                                  const OptionalTensor& weight, const OptionalTensor& bias,
                                  const OptionalTensor& residual, double eps, std::string_view activation);

// Whether the float32 kernels take these tensors.
bool all_float(const at::Tensor& input, std::initializer_list<OptionalTensor> others);

}  // namespace cnnfast::cpu
