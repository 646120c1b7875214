#include "ops/batch_norm2d_relu.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

namespace cnnfast {
namespace {

constexpr const char* kBackward = "batch_norm2d_relu_backward";

at::Tensor bit_values(const at::Tensor& like) {
  return at::bitwise_left_shift(at::ones({8}, like.options().dtype(at::kInt)),
                                at::arange(8, like.options().dtype(at::kInt)));
}

// In the order of images, rows, columns, channels; the last byte is filled up with zeros.
at::Tensor pack_bits(const at::Tensor& images) {
  const at::Tensor flat = images.permute({0, 2, 3, 1}).reshape({-1});
  const int64_t behind = (8 - flat.numel() % 8) % 8;
  const at::Tensor bytes = at::constant_pad_nd(flat.to(at::kInt), {0, behind}).view({-1, 8});
  return (bytes * bit_values(images)).sum(1).to(at::kByte);
}

at::Tensor unpack_bits(const at::Tensor& bits, const at::Tensor& images) {
  const at::Tensor each = at::bitwise_and(bits.to(at::kInt).unsqueeze(1), bit_values(images)).ne(0);
  return each.reshape({-1})
      .narrow(0, 0, images.numel())
      .view({images.size(0), images.size(2), images.size(3), images.size(1)})
      .permute({0, 3, 1, 2});
}

}  // namespace

c10::SymInt bytes_of_bits(const at::Tensor& images) { return (images.sym_numel() + 7) / 8; }

void check_batch_norm2d_relu_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                      const at::Tensor& mean, const at::Tensor& var,
                                      const OptionalTensor& weight, const at::Tensor& positive) {
  check_rank(kBackward, "input", input, 4);
  TORCH_CHECK(grad_output.sym_sizes() == input.sym_sizes(), "cnnfast::", kBackward,
              ": grad_output has shape ", grad_output.sym_sizes(), ", but input has ", input.sym_sizes());
  check_statistic(kBackward, "mean", mean, input, input.sym_size(1));
  check_statistic(kBackward, "var", var, input, input.sym_size(1));
  check_statistic(kBackward, "weight", weight, input, input.sym_size(1));
  TORCH_CHECK(positive.scalar_type() == at::kByte && positive.dim() == 1 &&
                  positive.sym_size(0) == bytes_of_bits(input) && positive.device() == input.device(),
              "cnnfast::", kBackward, ": positive must be ", bytes_of_bits(input),
              " bytes on the input's device, one bit per value of input ", input.sym_sizes(), ", not ",
              positive.scalar_type(), " of shape ", positive.sym_sizes(), " on ", positive.device());
}

std::tuple<at::Tensor, at::Tensor> batch_norm_act_bits_composite(
    const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var, const OptionalTensor& weight,
    const OptionalTensor& bias, const OptionalTensor& residual, double eps) {
  const at::Tensor output = batch_norm_act_composite(input, mean, var, weight, bias, residual, eps, "relu");
  // Not of NaN, whose gradient passes, as at::threshold_backward has it.
  return {output, pack_bits(output.le(0).logical_not())};
}

BatchNorm2dReluOutputs batch_norm2d_relu_composite(const at::Tensor& input, const OptionalTensor& weight,
                                                   const OptionalTensor& bias, const OptionalTensor& residual,
                                                   double eps) {
  check_batch_norm2d(input, weight, bias, residual, "relu");
  const auto [mean, var] = batch_statistics_composite(input);
  const auto [output, positive] =
      batch_norm_act_bits_composite(input, mean, var, weight, bias, residual, eps);
  return {output, mean, var, positive};
}

BatchNorm2dReluGradients batch_norm2d_relu_backward_composite(
    const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
    const OptionalTensor& weight, const at::Tensor& positive, double eps, std::array<bool, 4> output_mask) {
  check_batch_norm2d_relu_backward(grad_output, input, mean, var, weight, positive);
  const at::Tensor grad =
      at::where(unpack_bits(positive, input), grad_output, at::zeros({}, grad_output.options()));
  const auto g = batch_norm2d_backward_composite(
      grad, input, mean, var, weight, grad, eps, "none", true,
      {output_mask[0], false, false, output_mask[1], output_mask[2], output_mask[3]});
  return {std::get<0>(g), std::get<3>(g), std::get<4>(g), std::get<5>(g)};
}

ConvBatchNormReluOutputs conv2d_batch_norm_relu_composite(
    const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bn_weight,
    const OptionalTensor& bn_bias, const OptionalTensor& residual, at::IntArrayRef stride,
    at::IntArrayRef padding, at::IntArrayRef dilation, int64_t groups, double eps) {
  const OptionalTensor none;
  const at::Tensor conv =
      conv2d_composite(input, weight, none, none, none, stride, padding, dilation, groups, "none");
  const auto [output, mean, var, positive] =
      batch_norm2d_relu_composite(conv, bn_weight, bn_bias, residual, eps);
  return {output, conv, mean, var, positive};
}

ConvBatchNormReluOutputs conv2d_batch_norm_relu_by_two(const at::Tensor& input, const at::Tensor& weight,
                                                       const OptionalTensor& bn_weight,
                                                       const OptionalTensor& bn_bias,
                                                       const OptionalTensor& residual, at::IntArrayRef stride,
                                                       at::IntArrayRef padding, at::IntArrayRef dilation,
                                                       int64_t groups, double eps) {
  static const auto convolve = c10::Dispatcher::singleton()
                                   .findSchemaOrThrow("cnnfast::conv2d", "")
                                   .typed<decltype(conv2d_composite)>();
  static const auto normalise = c10::Dispatcher::singleton()
                                    .findSchemaOrThrow("cnnfast::batch_norm2d_relu", "")
                                    .typed<decltype(batch_norm2d_relu_composite)>();
  const OptionalTensor none;
  const at::Tensor conv =
      convolve.call(input, weight, none, none, none, stride, padding, dilation, groups, "none");
  const auto [output, mean, var, positive] = normalise.call(conv, bn_weight, bn_bias, residual, eps);
  return {output, conv, mean, var, positive};
}

TORCH_LIBRARY_IMPL(cnnfast, CompositeExplicitAutograd, m) {
  m.impl("batch_norm2d_relu", TORCH_FN(batch_norm2d_relu_composite));
  m.impl("conv2d_batch_norm_relu", TORCH_FN(conv2d_batch_norm_relu_by_two));
  m.impl("batch_norm2d_relu_backward", TORCH_FN(batch_norm2d_relu_backward_composite));
}

}  // namespace cnnfast
