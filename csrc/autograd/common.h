// Calls of this library's own operators through torch's dispatcher, for the autograd and autocast layers.
#pragma once
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/grad_mode.h>
#include <torch/csrc/autograd/autograd_not_implemented_fallback.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include <algorithm>

#include "ops/common.h"

namespace cnnfast {

template <class Signature>
auto typed_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

// Tells the operators below autograd, for which gradients are off, whether one is being recorded.
class Recording {
 public:
  Recording() : before_(records_gradient()) { records_gradient() = at::GradMode::is_enabled(); }
  ~Recording() { records_gradient() = before_; }
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

 private:
  bool before_;
};

inline bool wants_gradient(const OptionalTensor& t) { return present(t) && t->requires_grad(); }

// An operator's output where its gradient is computed from it; else undefined, and in-place operations may
// write into it, as they may behind the layers of torch.nn.
inline at::Tensor output_to_save(const at::Tensor& output, std::string_view activation) {
  return activation == "none" ? at::Tensor() : output;
}

// What was saved of an output; the gradient, of the same shape, where nothing had to be.
inline const at::Tensor& saved_output(const at::Tensor& saved, const at::Tensor& grad) {
  return saved.defined() ? saved : grad;
}

// What a norm's gradient needs of the activation behind it (see bias_for_output).
inline at::Tensor output_or_bias_to_save(const char* op, const at::Tensor& output, const OptionalTensor& bias,
                                         std::string_view activation) {
  return output_determines(parse_activation(op, activation)) ? output_to_save(output, activation)
                                                             : value_or_undefined(bias);
}

inline at::Tensor saved_output_or_bias(const char* op, const at::Tensor& saved, const at::Tensor& grad,
                                       std::string_view activation) {
  if (saved.defined() || output_determines(parse_activation(op, activation)))
    return saved_output(saved, grad);
  return no_gradient(grad);
}

// Whether a norm's gradient computes what the activation was given again, in place of keeping it.
inline bool computes_again(const at::Tensor& images, const OptionalTensor& residual) {
  return images.is_cpu() && !present(residual);
}

// Whether one bit per value is kept of ReLU in place of its output: on GPUs, for the types of their kernels.
inline bool keeps_bits(const at::Tensor& images, std::string_view activation) {
  const auto type = images.scalar_type();
  return images.is_cuda() && images.dim() == 4 && activation == "relu" &&
         (type == at::kFloat || type == at::kHalf || type == at::kBFloat16);
}

// Whether an activation's input is to be kept for its gradient. Then it runs by itself, by ATen.
inline bool keeps_pre_activation(const char* op, std::string_view activation,
                                 std::initializer_list<OptionalTensor> tensors) {
  if (!at::GradMode::is_enabled() || output_determines(parse_activation(op, activation))) return false;
  return std::any_of(tensors.begin(), tensors.end(), wants_gradient);
}

// Whether a backward function that was given this gradient may write into it: no hook, no other node and no
// view can still read it, and nothing records or traces what is done.
inline bool held_here_alone(const at::Tensor& grad) {
  const auto tracing = c10::DispatchKeySet({c10::DispatchKey::Python, c10::DispatchKey::Functionalize});
  return !at::GradMode::is_enabled() && !grad.key_set().has_any(tracing) && grad.use_count() == 1 &&
         grad.has_storage() && grad.storage().use_count() == 1;
}

// Undefined where no gradient was asked for.
inline at::Tensor gradient_or_none(bool wanted, const at::Tensor& gradient) {
  return wanted ? gradient : at::Tensor();
}

}  // namespace cnnfast
