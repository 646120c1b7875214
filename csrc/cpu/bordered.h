// Gradients in channels_last memory with zeros around every image, as convolutions from outputs to inputs
// read them.
#pragma once
#include <vector>

#include "cpu/images16.h"
#include "cpu/tensor_view.h"

namespace cnnfast::cpu {

struct Bordered {
  at::Tensor storage;
  at::Tensor tensor;  // what lies inside the border
  View view{};        // the same; its first pixel
  View16 view16{};    // instead of it where values are bfloat16
};

// Memory of its own, of which nothing is set yet.
Bordered bordered(at::IntArrayRef sizes, const at::TensorOptions& options, const Border& border);

// As the kernels that multiply pairs read it, from the first pixel of the border on.
Images16 with_border16(const Bordered& t, const Border& border);

// The gradient before an activation, from its output, in float32; both may be bfloat16. Where `sums` is given
// also its sums over pixels. May be grad_output's own memory where nothing has to be done.
Bordered activation_gradient(const at::Tensor& grad_output, const at::Tensor& output, Activation activation,
                             const Border& border, std::vector<double>* sums);
// The same in bfloat16, as both must be then; always a copy.
Bordered activation_gradient16(const at::Tensor& grad_output, const at::Tensor& output, Activation activation,
                               const Border& border, std::vector<double>* sums);

}  // namespace cnnfast::cpu
