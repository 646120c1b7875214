#include "ops/common.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>

namespace cnnfast {

Activation parse_activation(const char* op, std::string_view name) {
  if (name == "none") return Activation::kNone;
  if (name == "relu") return Activation::kReLU;
  if (name == "sigmoid") return Activation::kSigmoid;
  TORCH_CHECK(false, "cnnfast::", op, ": activation must be \"none\", \"relu\" or \"sigmoid\", not \"", name,
              "\"");
}

std::string_view activation_name(Activation activation) {
  if (activation == Activation::kReLU) return "relu";
  return activation == Activation::kSigmoid ? "sigmoid" : "none";
}

void check_same_kind(const char* op, const at::Tensor& input, const char* name, const OptionalTensor& other) {
  if (!present(other)) return;
  TORCH_CHECK(other->device() == input.device(), "cnnfast::", op, ": input is on ", input.device(), ", but ",
              name, " is on ", other->device());
  TORCH_CHECK(other->scalar_type() == input.scalar_type(), "cnnfast::", op, ": input is ",
              input.scalar_type(), ", but ", name, " is ", other->scalar_type());
}

void check_per_channel(const char* op, const char* name, const OptionalTensor& t,
                       const c10::SymInt& channels) {
  if (!present(t)) return;
  TORCH_CHECK(t->dim() == 1 && t->sym_size(0) == channels, "cnnfast::", op, ": ", name, " must have shape (",
              channels, "), one number per channel, not ", t->sym_sizes());
}

void check_rank(const char* op, const char* name, const at::Tensor& t, int64_t rank) {
  TORCH_CHECK(t.dim() == rank, "cnnfast::", op, ": ", name, " must have ", rank, " dimensions, not shape ",
              t.sym_sizes());
}

void check_pair(const char* op, const char* name, at::IntArrayRef pair, int64_t least) {
  TORCH_CHECK(pair.size() == 2, "cnnfast::", op, ": ", name, " must be two numbers, not ", pair);
  TORCH_CHECK(pair[0] >= least && pair[1] >= least, "cnnfast::", op, ": ", name, " must be at least ", least,
              ", not ", pair);
}

c10::SymInt conv_output_size(const c10::SymInt& size, int64_t kernel, int64_t stride, int64_t padding,
                             int64_t dilation) {
  return (size + 2 * padding - dilation * (kernel - 1) - 1) / stride + 1;
}

at::Tensor activate(const at::Tensor& x, Activation activation) {
  if (activation == Activation::kReLU) return at::relu(x);
  if (activation == Activation::kSigmoid) return at::sigmoid(x);
  return x;
}

at::Tensor activation_backward(const at::Tensor& grad, const at::Tensor& output, Activation activation) {
  if (activation == Activation::kReLU) return at::threshold_backward(grad, output, 0);
  if (activation == Activation::kSigmoid) return at::sigmoid_backward(grad, output);
  return grad;
}

at::Tensor as_type(const at::Tensor& t, at::ScalarType type) {
  return t.scalar_type() == type ? t : t.to(type);
}

at::Tensor fresh_channels_last(const at::Tensor& t) {
  return at::empty_symint(t.sym_sizes(), t.options(), at::MemoryFormat::ChannelsLast).copy_(t);
}

bool& records_gradient() {
  thread_local bool recording = false;
  return recording;
}

at::Tensor no_gradient(const at::Tensor& like) { return at::empty({0}, like.options()); }

}  // namespace cnnfast
