// linear on the CPU: a convolution with one tap, where a row of the batch is a pixel; in training, with few
// rows, from the weights as they lie, and with many by the operators of convolutions.
#include "ops/linear.h"

#include <ATen/Functions.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <torch/library.h>

#include <numeric>

#include "cpu/conv_job.h"
#include "cpu/pack_cache.h"
#include "cpu/paired_conv.h"
#include "cpu/parallel.h"
#include "cpu/streamed_linear.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"
#include "ops/conv2d.h"

namespace cnnfast::cpu {
namespace {

constexpr double kSerialFlops = 4e5;

// Weights of a training change at every step. Packing many of them for few rows moves three times the memory
// that the product reads.
constexpr int64_t kFewRows = 256;

// Rows x features.
at::Tensor as_rows(const at::Tensor& t) { return t.contiguous().view({-1, t.size(-1)}); }

bool is_float_or_bfloat16(const at::Tensor& t) { return is_plain_float(t) || takes_widened(t); }

int64_t rows_of(const at::Tensor& features) { return features.numel() / features.size(-1); }

bool takes_images(const at::Tensor& input, const at::Tensor& weight) {
  return has_many_rows(input, weight) && is_float_or_bfloat16(input) && is_float_or_bfloat16(weight);
}

// Pixels are rows. Images, for threads to share: some, whatever the rows were.
at::Tensor as_images(const at::Tensor& features) {
  const int64_t rows = rows_of(features), images = std::gcd(rows, int64_t{64});
  return features.contiguous().view({images, 1, rows / images, features.size(-1)}).permute({0, 3, 1, 2});
}
at::Tensor as_features(const at::Tensor& images, at::IntArrayRef sizes) {
  return images.permute({0, 2, 3, 1}).contiguous().view(sizes);
}
at::Tensor as_kernel(const at::Tensor& weight) {
  return weight.contiguous().view({weight.size(0), weight.size(1), 1, 1});
}

template <class Signature>
auto typed_operator(const char* name) {
  return c10::Dispatcher::singleton().findSchemaOrThrow(name, "").typed<Signature>();
}

constexpr int64_t kOnce[2] = {1, 1}, kNoBorder[2] = {0, 0};

at::Tensor linear_of_images(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                            std::string_view activation, at::IntArrayRef sizes) {
  static auto op = typed_operator<decltype(conv2d_composite)>("cnnfast::conv2d");
  return as_features(
      op.call(as_images(input), as_kernel(weight), bias, {}, {}, kOnce, kNoBorder, kOnce, 1, activation),
      sizes);
}

LinearGradients linear_of_images_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                          const at::Tensor& weight, const at::Tensor& output,
                                          std::string_view activation, std::array<bool, 3> output_mask) {
  static auto op = typed_operator<decltype(conv2d_backward)>("cnnfast::conv2d_backward");
  const auto [need_input, need_weight, need_bias] = output_mask;
  const at::Tensor grad = as_images(grad_output);
  const auto found = op.call(grad, as_images(input), as_kernel(weight), {},
                             output.is_same(grad_output) ? grad : as_images(output), kOnce, kNoBorder, kOnce,
                             1, activation, {need_input, need_weight, need_bias, false, false});
  return {need_input ? as_features(std::get<0>(found), input.sizes()) : no_gradient(input),
          need_weight ? std::get<1>(found).reshape(weight.sizes()) : no_gradient(input), std::get<2>(found)};
}

// Float32.
at::Tensor product_of_many_weights(const at::Tensor& input, const at::Tensor& weight,
                                   const OptionalTensor& bias, std::string_view activation) {
  const at::Tensor rows = as_rows(input);
  if (!streams_linear(rows, weight)) return linear_composite(input, weight, bias, activation);
  at::Tensor y = streamed_linear(rows, weight);
  if (present(bias)) y.add_(*bias);
  return activate(y, parse_activation("linear", activation));
}

at::Tensor linear_cpu(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                      std::string_view activation) {
  const bool narrow = takes_widened(input), many = takes_images(input, weight);
  if (narrow ? !many && has_bfloat16_products() : !is_plain_float(input))
    return linear_composite(input, weight, bias, activation);
  const auto symbolic_sizes = check_linear(input, weight, bias, activation);
  std::vector<int64_t> sizes;
  for (const auto& size : symbolic_sizes) sizes.push_back(size.expect_int());
  if (narrow && many) return linear_of_images(input, weight, bias, activation, sizes);
  const at::Tensor output = at::empty(sizes, input.options().dtype(at::kFloat));
  if (output.numel() == 0) return output;
  const int64_t in = weight.size(1), out = weight.size(0), rows = output.numel() / out;
  if (records_gradient() && weight.numel() > kManyWeights && rows < kFewRows) {
    const at::Tensor x = widened(input), w = widened(weight);
    return rounded_to(input.scalar_type(),
                      product_of_many_weights(x, w, widened(bias), activation).view(sizes));
  }
  const at::Tensor dense = widened(input.contiguous());
  const ConvGeometry g{1, in, out, 1, 1, 1, 1, 1, 1, 1, 1, rows, parse_activation("linear", activation)};
  const auto packed = packed_weight(weight, g);
  const AlignedFloats scale(0);
  const AlignedFloats shift = present(bias)
                                  ? pack_channels(g, widened(*bias).contiguous().const_data_ptr<float>())
                                  : AlignedFloats(0);
  const ConvJob job(g, {dense.data_ptr<float>(), rows * in, rows * in, in},
                    {output.data_ptr<float>(), rows * out, rows * out, out}, View{});
  parallel_team(g.flops() < kSerialFlops ? 1 : team_size(),
                [&](int thread, int team, Barrier&) { job.run({*packed, scale, shift}, thread, team); });
  return rounded_to(input.scalar_type(), output);
}

// Float32.
LinearGradients streamed_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                  const at::Tensor& weight, const at::Tensor& output,
                                  std::string_view activation, std::array<bool, 3> output_mask) {
  const auto [need_input, need_weight, need_bias] = output_mask;
  const at::Tensor rows =
      as_rows(activation_backward(grad_output, output, parse_activation("linear_backward", activation)));
  return {need_input ? streamed_linear_input_grad(rows, weight).view(input.sizes()) : no_gradient(input),
          need_weight ? streamed_linear_weight_grad(rows, as_rows(input)) : no_gradient(input),
          need_bias ? rows.sum(0) : no_gradient(input)};
}

LinearGradients linear_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                    const at::Tensor& weight, const at::Tensor& output,
                                    std::string_view activation, std::array<bool, 3> output_mask) {
  const bool alike = grad_output.scalar_type() == input.scalar_type() &&
                     output.scalar_type() == input.scalar_type() && is_float_or_bfloat16(grad_output) &&
                     is_float_or_bfloat16(output);
  if (alike && takes_images(input, weight) && grad_output.numel() > 0)
    return linear_of_images_backward(grad_output, input, weight, output, activation, output_mask);
  const bool plain = is_plain_float(grad_output) && is_plain_float(input) && is_plain_float(output);
  if (plain && grad_output.numel() > 0 &&
      (keeps_linear_gradients(as_rows(input), weight) || multiplies_near_weights(as_rows(input), weight)))
    return streamed_backward(grad_output, input, weight, output, activation, output_mask);
  if (has_bfloat16_products() || !takes_widened(grad_output, {input, weight, output}))
    return linear_backward(grad_output, input, weight, output, activation, output_mask);
  const at::Tensor grad = widened_kept(grad_output);
  const auto type = input.scalar_type();
  return rounded_to(
      {type, type, type},
      linear_backward(grad, widened_kept(input), widened_kept(weight),
                      output.is_same(grad_output) ? grad : widened_kept(output), activation, output_mask));
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("linear", TORCH_FN(linear_cpu));
  m.impl("linear_backward", TORCH_FN(linear_backward_cpu));
}

}  // namespace cnnfast::cpu
