// What every operator's argument check shares.
#pragma once
#include <ATen/core/Tensor.h>

#include <optional>
#include <string_view>
#include <vector>

#include "activation.h"

namespace cnnfast {

using OptionalTensor = std::optional<at::Tensor>;

// An activation with its numbers as they were written, for ATen's float64; kernels take them as floats.
struct WrittenActivation : Activation {
  WrittenActivation(Kind kind, double a, double b)
      : Activation{kind, static_cast<float>(a), static_cast<float>(b)}, exact_a(a), exact_b(b) {}
  WrittenActivation(const Activation& other) : Activation(other), exact_a(other.a), exact_b(other.b) {}

  double exact_a, exact_b;
};

// From words such as "relu" or "leaky_relu(0.2)"; an error names the operator and what there is.
WrittenActivation parse_activation(const char* op, std::string_view name);
// Whether the gradient follows from the activation's output; else it needs the input.
bool output_determines(const Activation& activation);
// An error unless it does.
void check_pre_activation(const char* op, std::string_view name);
// Of none, ReLU and sigmoid.
std::string_view plain_activation_name(Activation::Kind kind);

inline bool present(const OptionalTensor& t) { return t.has_value() && t->defined(); }
inline at::Tensor value_or_undefined(const OptionalTensor& t) { return present(t) ? *t : at::Tensor(); }

// Same device and dtype as `input`; absent tensors pass. Errors name both arguments.
void check_same_kind(const char* op, const at::Tensor& input, const char* name, const OptionalTensor& other);
// The same for weights and biases. On the CPU float32 ones go with bfloat16 images, too: where products are
// of floats, rounded weights would be copies for nothing.
void check_parameter(const char* op, const at::Tensor& input, const char* name, const OptionalTensor& t);
// One number per channel.
void check_per_channel(const char* op, const char* name, const OptionalTensor& t,
                       const c10::SymInt& channels);
void check_rank(const char* op, const char* name, const at::Tensor& t, int64_t rank);
// A pair of numbers, each at least `least`.
void check_pair(const char* op, const char* name, at::IntArrayRef pair, int64_t least);

// Positions of a window of `kernel` (spread by dilation) over `size` with padding on both sides.
c10::SymInt conv_output_size(const c10::SymInt& size, int64_t kernel, int64_t stride, int64_t padding,
                             int64_t dilation);

// The activation by ATen, and its gradient from the activation's output where that determines it.
at::Tensor activate(const at::Tensor& x, const WrittenActivation& activation);
at::Tensor activation_backward(const at::Tensor& grad, const at::Tensor& output,
                               const WrittenActivation& activation);
// The same for every activation, from what went into it.
at::Tensor gradient_through(const at::Tensor& grad, const at::Tensor& x, const WrittenActivation& activation);

// Whether this thread is inside an operator whose gradient is recorded; set by autograd/.
bool& records_gradient();

// t itself where it has the type already: at::Tensor::to would return an alias, which operators below
// autograd must not.
at::Tensor as_type(const at::Tensor& t, at::ScalarType type);
OptionalTensor as_type(const OptionalTensor& t, at::ScalarType type);
// A fresh tensor in channels_last memory with t's values.
at::Tensor fresh_channels_last(const at::Tensor& t);
// A tensor that nobody else holds, in channels_last memory to the stride: itself where it has that already.
at::Tensor own_channels_last(const at::Tensor& fresh);
// What a backward operator returns for a gradient that nobody asked for.
at::Tensor no_gradient(const at::Tensor& like);

}  // namespace cnnfast
