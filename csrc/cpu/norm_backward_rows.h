// The gradient of a normalisation on rows of pixels, for the operators that contain one. Tensors may be
// float32 or bfloat16, which is read as it is or, where they differ, widened block by block.
#pragma once
#include "cpu/pixel_rows.h"

namespace cnnfast::cpu {

// What the gradient is computed from. Without `output` the call computes the activation's argument again.
struct BackwardRows {
  PixelRows grad, output, input;
  static constexpr int64_t kTensors = 3;

  bool narrow() const { return grad.narrow || output.narrow || input.narrow; }
  bool all_narrow() const { return grad.narrow && (output.narrow || !output.given()) && input.narrow; }
};

// sums[c] += g and products[c] += g * (x - mean[c]) over the rows [begin, begin + count), in float32.
void add_backward_sums(const NormBackwardCall& call, const BackwardRows& from, int64_t begin, int64_t count,
                       float* sums, float* products);

// Rows [begin, end): the gradient of row `begin` goes to the first row of `grad_input`.
void backward_rows(const NormBackwardCall& call, const BackwardRows& from, int64_t begin, int64_t end,
                   const OutputRows& grad_input, const OutputRows& grad_residual);

}  // namespace cnnfast::cpu
