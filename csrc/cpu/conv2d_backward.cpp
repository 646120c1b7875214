// conv2d_backward and conv2d_batch_norm_backward on the CPU: the gradient of the convolution's output is
// written once, with the border that the input's gradient needs; that of the weight reads the same memory.
#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include <optional>

#include "cpu/activation_rows.h"
#include "cpu/bordered.h"
#include "cpu/channel_values.h"
#include "cpu/chunked_backward.h"
#include "cpu/conv2d.h"
#include "cpu/conv_backward.h"
#include "cpu/memory_pool.h"
#include "cpu/normalise.h"
#include "cpu/normalise_backward.h"
#include "cpu/one_pixel_conv.h"
#include "cpu/paired_backward.h"
#include "cpu/paired_conv.h"
#include "cpu/paired_input_grad.h"
#include "cpu/paired_weight_grad.h"
#include "cpu/strip_backward.h"
#include "cpu/widened.h"
#include "ops/batch_norm.h"
#include "ops/conv_gradients.h"

namespace cnnfast::cpu {
namespace {

// Gradients of input and weight from that of the output, by products of pairs.
class PairedConvBackward {
 public:
  PairedConvBackward(const at::Tensor& input, const at::Tensor& weight, const Conv2dParams& params,
                     at::IntArrayRef output_sizes, bool need_input, bool need_weight)
      : input_(input), weight_(weight), params_(params), need_input_(need_input), need_weight_(need_weight) {
    if (need_input && PairedInputGradient::serves(weight, params))
      input_gradient_.emplace(input, weight, params, output_sizes);
  }
  ImageGroups groups() const { return {input_.size(0), 0, 0, false}; }
  Border border(int64_t) const { return input_gradient_ ? input_gradient_->border() : Border{}; }
  void add(int64_t, const Bordered& grad) {
    const bool ours = input_gradient_.has_value();
    found_ =
        conv_gradients(grad.tensor, input_, weight_, params_, {need_input_ && !ours, need_weight_, false});
    if (ours) found_.input = input_gradient_->run(with_border16(grad, input_gradient_->border()));
  }
  ConvGradients take() { return std::move(found_); }

 private:
  const at::Tensor& input_;
  const at::Tensor& weight_;
  Conv2dParams params_;
  bool need_input_, need_weight_;
  std::optional<PairedInputGradient> input_gradient_;
  ConvGradients found_;
};

// Images may be bfloat16: they are widened in cache, or some at a time. The weight is float32.
Conv2dGradients conv2d_backward_float(const at::Tensor& grad_output, const at::Tensor& input,
                                      const at::Tensor& weight, const at::Tensor& output,
                                      const Conv2dParams& params, const Activation& act,
                                      std::array<bool, 5> output_mask) {
  const auto [need_input, need_weight, need_bias, need_scale, need_residual] = output_mask;
  const auto none = [&] { return no_gradient(input); };
  const auto sums_as_tensor = [&](const std::vector<double>& sums) {
    return channel_tensor(sums, input.options());
  };
  if (!need_residual) {
    const auto found =
        strip_backward(grad_output, input, weight, output, params, act, {need_input, need_weight, need_bias});
    if (found)
      return {need_input ? found->input : none(), need_weight ? found->weight : none(),
              need_bias ? sums_as_tensor(found->bias) : none(), none(), none()};
  }
  const WantedConvGradients wanted{need_input, need_weight, need_bias};
  const at::Tensor residual = need_residual ? gradient_empty(grad_output.sizes(), grad_output.options(),
                                                             at::MemoryFormat::ChannelsLast)
                                            : none();
  if (ChunkedBackward::serves(input, weight, params, grad_output.sizes(), wanted)) {
    const ActivationRows rows(grad_output, output, act);
    const OutputRows of_residual = need_residual ? OutputRows(residual) : OutputRows();
    const int64_t width = rows.size().width;
    const auto write = [&](int64_t row, float* to, bool own, float* sums) {
      rows.run(row, to, sums);
      if (own && need_residual) of_residual.write(row * width, width, to);
    };
    const auto found = ChunkedBackward(input, weight, params, grad_output.sizes(), wanted).run(write);
    return {need_input ? found.input : none(), need_weight ? found.weight : none(),
            need_bias ? sums_as_tensor(found.bias) : none(), none(), residual};
  }
  ConvBackward conv(input, weight, params, grad_output.sizes(), need_input, need_weight);
  std::vector<double> bias(static_cast<size_t>(grad_output.size(1)), 0.0);
  conv.groups().each([&](int64_t first, int64_t count) {
    std::vector<double> sums;
    const Bordered grad =
        activation_gradient(images_at(grad_output, first, count), images_at(output, first, count), act,
                            conv.border(count), need_bias ? &sums : nullptr);
    for (size_t c = 0; c < sums.size(); ++c) bias[c] += sums[c];
    // Memory of its own.
    if (need_residual) write_images(grad.view, images_at(residual, first, count));
    conv.add(first, grad);
  });
  const ConvGradients found = conv.take();
  return {need_input ? found.input : none(), need_weight ? found.weight : none(),
          need_bias ? sums_as_tensor(bias) : none(), none(), residual};
}

Conv2dGradients as_given(const PairedGradients& found, const at::Tensor& input, const at::Tensor& weight,
                         std::array<bool, 5> output_mask) {
  const auto [need_input, need_weight, need_bias, need_scale, need_residual] = output_mask;
  const auto none = [&] { return no_gradient(input); };
  return {need_input ? found.input : none(), need_weight ? found.weight : none(),
          need_bias ? channel_tensor(found.bias, input.options()).to(weight.scalar_type()) : none(), none(),
          none()};
}

// Images are bfloat16.
Conv2dGradients conv2d_backward_by_pairs(const at::Tensor& grad_output, const at::Tensor& input,
                                         const at::Tensor& weight, const at::Tensor& output,
                                         const Conv2dParams& params, const Activation& act,
                                         std::array<bool, 5> output_mask) {
  const auto [need_input, need_weight, need_bias, need_scale, need_residual] = output_mask;
  const auto none = [&] { return no_gradient(input); };
  const auto rounded = [&](const std::vector<double>& sums) {
    return channel_tensor(sums, input.options()).to(weight.scalar_type());
  };
  if (!need_residual) {
    const auto found = paired_backward(
        grad_output, {input, weight, output, params, act, {need_input, need_weight, need_bias}});
    if (found) return as_given(*found, input, weight, output_mask);
  }
  PairedConvBackward conv(input, weight, params, grad_output.sizes(), need_input, need_weight);
  std::vector<double> sums;
  const Bordered grad = activation_gradient16(grad_output, output, act, conv.border(grad_output.size(0)),
                                              need_bias ? &sums : nullptr);
  if (need_input || need_weight) conv.add(0, grad);
  const ConvGradients found = conv.take();
  return {need_input ? found.input : none(), need_weight ? found.weight : none(),
          need_bias ? rounded(sums) : none(), none(),
          need_residual ? grad.tensor.contiguous(at::MemoryFormat::ChannelsLast) : none()};
}

// Else products of widened values serve: all of them in one pass over memory.
bool pairs_serve(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& weight,
                 const Conv2dParams& params, bool need_weight) {
  return multiplies_pairs(conv_geometry(input, weight, params, grad_output.sizes())) &&
         (!need_weight || pairs_serve_weight_gradient(weight));
}

Conv2dGradients conv2d_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                    const at::Tensor& weight, const OptionalTensor& scale,
                                    const at::Tensor& output, at::IntArrayRef stride, at::IntArrayRef padding,
                                    at::IntArrayRef dilation, int64_t groups, std::string_view activation,
                                    std::array<bool, 5> output_mask) {
  const Activation act = parse_activation("conv2d_backward", activation);
  const Conv2dParams params{stride, padding, dilation, groups};
  const auto type = input.scalar_type(), parameters = weight.scalar_type();
  const bool narrow = takes_widened(grad_output, {input, output});
  if (!present(scale) && !output_mask[4]) {
    check_conv2d_gradient("conv2d_backward", grad_output, input, weight, params);
    const auto found = one_pixel_backward(grad_output, input, weight, output, params, act,
                                          {output_mask[0], output_mask[1], output_mask[2]});
    const auto or_none = [&](const at::Tensor& t) { return t.defined() ? t : no_gradient(input); };
    if (found)
      return {or_none(found->input), or_none(found->weight), or_none(found->bias), no_gradient(input),
              no_gradient(input)};
  }
  if (narrow && !present(scale)) {
    check_conv2d_gradient("conv2d_backward", grad_output, input, weight, params);
    if (pairs_serve(grad_output, input, weight, params, output_mask[1]))
      return conv2d_backward_by_pairs(grad_output, input, weight, output, params, act, output_mask);
    const auto [need_input, need_weight, need_bias, need_scale, need_residual] = output_mask;
    if (!need_residual) {
      const auto found = joined_backward(
          grad_output, {input, weight, output, params, act, {need_input, need_weight, need_bias}});
      if (found) return as_given(*found, input, weight, output_mask);
    }
    return rounded_to(
        {type, parameters, parameters, type, type},
        conv2d_backward_float(grad_output, input, widened_kept(weight), output, params, act, output_mask));
  }
  if (narrow) {
    const at::Tensor grad = widened_kept(grad_output);
    return rounded_to({type, parameters, parameters, type, type},
                      conv2d_backward(grad, widened_kept(input), widened_kept(weight), widened_kept(scale),
                                      output.is_same(grad_output) ? grad : widened_kept(output), stride,
                                      padding, dilation, groups, activation, output_mask));
  }
  const bool ours = all_float(input, {grad_output, weight, output}) && is_plain_float(grad_output) &&
                    is_plain_float(weight) && is_plain_float(output) && !present(scale) &&
                    grad_output.numel() > 0;
  if (!ours)
    return conv2d_backward(grad_output, input, weight, scale, output, stride, padding, dilation, groups,
                           activation, output_mask);
  check_conv2d_gradient("conv2d_backward", grad_output, input, weight, params);
  return conv2d_backward_float(grad_output, input, weight, output, params, act, output_mask);
}

// The gradient of the convolution's output exists for some images at a time. With ConvBackward, or with
// PairedConvBackward where pairs serve.
template <class Backward>
ConvGradients gradients_by_images(const NormGradientWriter& write, const at::Tensor& input,
                                  const at::Tensor& weight, const Conv2dParams& params,
                                  at::IntArrayRef output_sizes, at::ScalarType products, bool need_input,
                                  bool need_weight) {
  Backward conv(input, weight, params, output_sizes, need_input, need_weight);
  conv.groups().each([&](int64_t first, int64_t count) {
    std::vector<int64_t> sizes = output_sizes.vec();
    sizes[0] = count;
    const Border border = conv.border(count);
    const Bordered grad = bordered(sizes, input.options().dtype(products), border);
    write.images(first, grad, border);
    conv.add(first, grad);
  });
  return conv.take();
}

// In float32, some rows at a time where that serves.
ConvGradients gradients_by_rows(const NormGradientWriter& write, const at::Tensor& input,
                                const at::Tensor& weight, const Conv2dParams& params,
                                at::IntArrayRef output_sizes, bool need_input, bool need_weight) {
  const WantedConvGradients wanted{need_input, need_weight, false};
  if (!ChunkedBackward::serves(input, weight, params, output_sizes, wanted))
    return gradients_by_images<ConvBackward>(write, input, weight, params, output_sizes, at::kFloat,
                                             need_input, need_weight);
  const ChunkedGradients found =
      ChunkedBackward(input, weight, params, output_sizes, wanted)
          .run([&](int64_t row, float* to, bool own, float*) { write.row(row, to, own); });
  return {found.input, found.weight, at::Tensor()};
}

// Images may be bfloat16.
BatchNormGradients conv2d_batch_norm_backward_by(const at::Tensor& grad_output, const at::Tensor& input,
                                                 const at::Tensor& weight, const OptionalTensor& bn_weight,
                                                 const at::Tensor& conv_output, const at::Tensor& conv_mean,
                                                 const at::Tensor& var, const at::Tensor& output,
                                                 const Conv2dParams& params, double eps,
                                                 std::string_view activation, at::ScalarType products,
                                                 std::array<bool, 6> output_mask) {
  const auto [need_input, need_weight, need_bias, need_bn_weight, need_bn_bias, need_residual] = output_mask;
  const bool need_conv = need_input || need_weight;
  ConvGradients found;
  const auto through_conv = [&](const NormGradientWriter& write) {
    found =
        products == at::kFloat
            ? gradients_by_rows(write, input, weight, params, grad_output.sizes(), need_input, need_weight)
            : gradients_by_images<PairedConvBackward>(write, input, weight, params, grad_output.sizes(),
                                                      products, need_input, need_weight);
  };
  const auto norm = batch_norm2d_backward_by_images(
      need_conv ? NormGradientReader(through_conv) : NormGradientReader(), grad_output, conv_output,
      conv_mean, var, bn_weight, output, eps, activation,
      {need_conv, false, false, need_bn_weight, need_bn_bias, need_residual});
  const auto none = [&] { return no_gradient(input); };
  return {need_input ? found.input : none(), need_weight ? found.weight : none(),
          // The mean takes any bias away again: its gradient is zero, not merely small.
          need_bias ? at::zeros_like(conv_mean, weight.options()) : none(), std::get<3>(norm),
          std::get<4>(norm), std::get<5>(norm)};
}

BatchNormGradients conv2d_batch_norm_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                                  const at::Tensor& weight, const OptionalTensor& bn_weight,
                                                  const at::Tensor& conv_output, const at::Tensor& conv_mean,
                                                  const at::Tensor& var, const at::Tensor& output,
                                                  at::IntArrayRef stride, at::IntArrayRef padding,
                                                  at::IntArrayRef dilation, int64_t groups, double eps,
                                                  std::string_view activation,
                                                  std::array<bool, 6> output_mask) {
  check_bias_for_output("conv2d_batch_norm_backward", output, conv_output, activation);
  // Where there is no output, a tensor in its place that always fits.
  const bool again = !output_determines(parse_activation("conv2d_batch_norm_backward", activation));
  const at::Tensor& values = again ? grad_output : output;
  if (takes_widened(grad_output, {input, conv_output, values})) {
    const auto type = input.scalar_type(), of_weight = weight.scalar_type();
    const auto parameters = present(bn_weight) ? bn_weight->scalar_type() : var.scalar_type();
    check_conv2d_gradient("conv2d_batch_norm_backward", grad_output, input, weight,
                          {stride, padding, dilation, groups});
    if (pairs_serve(grad_output, input, weight, {stride, padding, dilation, groups}, output_mask[1]))
      return rounded_to({type, of_weight, of_weight, parameters, parameters, type},
                        conv2d_batch_norm_backward_by(grad_output, input, weight, widened(bn_weight),
                                                      conv_output, widened(conv_mean), widened(var), output,
                                                      {stride, padding, dilation, groups}, eps, activation,
                                                      at::kBFloat16, output_mask));
    return rounded_to({type, of_weight, of_weight, parameters, parameters, type},
                      conv2d_batch_norm_backward_by(grad_output, input, widened_kept(weight),
                                                    widened(bn_weight), conv_output, widened(conv_mean),
                                                    widened(var), output, {stride, padding, dilation, groups},
                                                    eps, activation, at::kFloat, output_mask));
  }
  const bool ours = all_float(input, {grad_output, weight, bn_weight, conv_output, conv_mean, var, values}) &&
                    is_plain_float(grad_output) && grad_output.numel() > 0;
  if (!ours)
    return conv2d_batch_norm_backward_composite(grad_output, input, weight, bn_weight, conv_output, conv_mean,
                                                var, output, stride, padding, dilation, groups, eps,
                                                activation, output_mask);
  return conv2d_batch_norm_backward_by(grad_output, input, weight, bn_weight, conv_output, conv_mean, var,
                                       output, {stride, padding, dilation, groups}, eps, activation,
                                       at::kFloat, output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("conv2d_backward", TORCH_FN(conv2d_backward_cpu));
  m.impl("conv2d_batch_norm_backward", TORCH_FN(conv2d_batch_norm_backward_cpu));
}

}  // namespace cnnfast::cpu
