// Operators on bfloat16 tensors by the float32 kernels: operands are widened, results rounded once to
// nearest. Sums stay in float32 throughout, as they do where instructions multiply bfloat16.
#pragma once
#include <ATen/core/Tensor.h>

#include <array>
#include <tuple>
#include <vector>

#include "cpu/kernel_table.h"
#include "ops/dense_block.h"

namespace cnnfast::cpu {

// Whether an operator on these images computes so: bfloat16, and not empty. Arguments must then have passed
// the operator's check before they are widened: afterwards all types are one.
bool takes_widened(const at::Tensor& input);
// A gradient and what belongs to it, all bfloat16; where there is a float32 tensor among them ATen answers.
bool takes_widened(const at::Tensor& grad_output, std::initializer_list<at::Tensor> others);

// A float32 copy of a bfloat16 tensor with its strides, or those of channels_last memory where there are gaps
// between its pixels; every other tensor is given back as it is.
at::Tensor widened(const at::Tensor& t);
OptionalTensor widened(const OptionalTensor& t);
OptionalTensors widened(const OptionalTensors& list);
// The same for a step of training (cpu/memory_pool.h).
at::Tensor widened_kept(const at::Tensor& t);
OptionalTensor widened_kept(const OptionalTensor& t);
std::vector<at::Tensor> widened_kept(at::TensorList list);

// Where `type` is bfloat16 a rounded copy of a float32 tensor, with its strides; else the tensor itself.
at::Tensor rounded_to(at::ScalarType type, const at::Tensor& t);
std::vector<at::Tensor> rounded_to(at::ScalarType type, std::vector<at::Tensor> list);

// Copies images into a tensor of their sizes whose channels are adjacent, a slice of channels, too: float32,
// or bfloat16, to which they are rounded.
void write_images(const View& from, const at::Tensor& to);

// rounded_to for the results of an operator, each with its own type.
template <class... T>
std::tuple<T...> rounded_to(const std::array<at::ScalarType, sizeof...(T)>& types, std::tuple<T...> results) {
  size_t i = 0;
  std::apply([&](auto&... t) { ((t = rounded_to(types[i++], t)), ...); }, results);
  return results;
}

}  // namespace cnnfast::cpu
