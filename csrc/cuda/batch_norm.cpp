// batch_norm_act, batch_norm2d and their gradients on CUDA tensors by the kernels: float32, float16 and
// bfloat16.
#include <ATen/Functions.h>
#include <c10/cuda/CUDAGuard.h>

#include "cuda/batch_norm_kernels.h"
#include "cuda/batch_norm_tensors.h"
#include "cuda/tensors.h"
#include "ops/batch_norm2d_relu.h"
#include "ops/device_kernel.h"

namespace cnnfast::cuda {
namespace {

Layout layout_of(const at::Tensor& images, int blocks_per_processor, int64_t least_rows = 1) {
  return make_layout(pixel_count(images), images.size(1), processors() * blocks_per_processor, least_rows);
}

}  // namespace

void batch_statistics_into(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var) {
  const at::Tensor x = with_pixels(input);
  const Layout layout = layout_of(x, kStatisticsBlocks, kLeastRows);
  const at::Tensor workspace = empty_floats(statistics_floats(layout), x);
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    BatchNormKernels<T>::statistics(current_stream(), static_cast<const T*>(x.const_data_ptr()),
                                    pixel_distance(x), layout, workspace.mutable_data_ptr<float>(),
                                    mean.mutable_data_ptr<float>(), var.mutable_data_ptr<float>());
  });
}

Statistics batch_statistics(const at::Tensor& input) {
  const int64_t channels = input.size(1);
  if (input.numel() == 0)  // no kernel has a grid of nothing; ATen has NaN there
    return {at::full({channels}, NAN, input.options().dtype(at::kFloat)),
            at::full({channels}, NAN, input.options().dtype(at::kFloat))};
  const Statistics s{empty_floats(channels, input), empty_floats(channels, input)};
  batch_statistics_into(input, s.mean, s.var);
  return s;
}

Normalisation::Normalisation(const at::Tensor& mean, const at::Tensor& var, const OptionalTensor& weight,
                             const OptionalTensor& bias, double eps)
    : mean(in_float(mean)),
      var(in_float(var)),
      weight(in_float(weight)),
      bias(in_float(bias)),
      eps(static_cast<float>(eps)) {}

namespace {

// Tensors of numbers per channel may be undefined.
void forward_into(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                  const at::Tensor& weight, const at::Tensor& bias, float eps, const OptionalTensor& residual,
                  const Activation& activation, const at::Tensor& output, const at::Tensor& mask) {
  if (output.numel() == 0) return;
  // Held here until the kernel is in the stream: the allocator gives memory back in the stream's order.
  const at::Tensor x = with_pixels(input);
  const at::Tensor added = present(residual) ? with_pixels(*residual) : at::Tensor();
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    BatchNormKernels<T>::forward(
        current_stream(),
        {image_of<T>(x), image_of<T>(added), target_of<T>(output),
         mask.defined() ? mask.mutable_data_ptr<uint8_t>() : nullptr, floats(mean), floats(var),
         floats(weight), floats(bias), eps, activation, layout_of(x, kForwardBlocks)});
  });
}

}  // namespace

void normalise_into(const at::Tensor& input, const Normalisation& norm, const OptionalTensor& residual,
                    const Activation& activation, const at::Tensor& output, const at::Tensor& mask) {
  forward_into(input, norm.mean, norm.var, norm.weight, norm.bias, norm.eps, residual, activation, output,
               mask);
}

void finish_into(const at::Tensor& input, const OptionalTensor& scale, const OptionalTensor& bias,
                 const OptionalTensor& residual, const Activation& activation, const at::Tensor& output) {
  forward_into(input, {}, {}, in_float(scale), in_float(bias), 0.0f, residual, activation, output, {});
}

at::Tensor mask_like(const at::Tensor& images) {
  return at::empty({(images.numel() + 7) / 8}, images.options().dtype(at::kByte));
}

void accumulate_gradient(const at::Tensor& grad, const at::Tensor& input, const Normalisation& norm,
                         const Activation& activation, const at::Tensor& accumulate,
                         const at::Tensor& grad_weight, const at::Tensor& grad_bias, const at::Tensor& factor,
                         const at::Tensor& constant) {
  const at::Tensor da = with_pixels(grad), x = with_pixels(input);
  const Layout layout = layout_of(x, kBackwardBlocks, kLeastRows);
  const at::Tensor workspace = empty_floats(backward_floats(layout), x);
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    const ReduceArgs<T> reduce{image_of<T>(da),
                               image_of<T>(x),
                               {},
                               {},
                               {},
                               target_of<T>(accumulate),
                               floats(norm.mean),
                               floats(norm.var),
                               floats(norm.weight),
                               floats(norm.bias),
                               norm.eps,
                               activation,
                               layout,
                               {},
                               {}};
    BatchNormKernels<T>::accumulate(current_stream(), reduce, factor.defined(),
                                    workspace.mutable_data_ptr<float>(), float_target(grad_weight),
                                    float_target(grad_bias), float_target(factor), float_target(constant));
  });
}

void add_terms(const at::Tensor& grad, const at::Tensor& input, const at::Tensor& mean,
               const at::Tensor& factor, const at::Tensor& constant) {
  const at::Tensor x = with_pixels(input);
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    BatchNormKernels<T>::terms(current_stream(), target_of<T>(grad), image_of<T>(x),
                               layout_of(x, kBackwardBlocks), floats(mean), floats(factor), floats(constant));
  });
}

at::Tensor batch_norm_act(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                          const OptionalTensor& weight, const OptionalTensor& bias,
                          const OptionalTensor& residual, double eps, std::string_view activation) {
  check_batch_norm_act(input, mean, var, weight, bias, residual, activation);
  const Activation act = parse_activation("batch_norm_act", activation);
  if (!served(input) || !has_kernel(act)) throw Unserved();
  const c10::cuda::CUDAGuard guard(input.device());
  at::Tensor output = empty_images(input.sizes(), input);
  normalise_into(input, Normalisation(mean, var, weight, bias, eps), residual, act, output);
  return output;
}

namespace {

struct Gradients {
  at::Tensor input, mean, var, weight, bias, residual;  // undefined where not wanted
};

// All tensors are served; `result` where the source asks for it, `mask` likewise.
Gradients backward(const at::Tensor& grad_output, const at::Tensor& input, const at::Tensor& mean,
                   const at::Tensor& var, const OptionalTensor& weight, Source source,
                   const at::Tensor& result, const at::Tensor& mask, double eps, const Activation& activation,
                   bool batch_statistics, std::array<bool, 6> wanted) {
  const int64_t channels = input.size(1);
  const auto per_channel = [&](bool is_wanted) {
    return is_wanted ? empty_floats(channels, input) : at::Tensor();
  };
  const auto images = [&](bool is_wanted) {
    return is_wanted ? empty_images(input.sizes(), input) : at::Tensor();
  };
  Gradients g{images(wanted[0]),      per_channel(wanted[1]), per_channel(wanted[2]),
              per_channel(wanted[3]), per_channel(wanted[4]), images(wanted[5])};
  if (input.numel() == 0) {
    for (const at::Tensor& sum : {g.mean, g.var, g.weight, g.bias})
      if (sum.defined()) sum.zero_();
    return g;
  }
  const at::Tensor grad = with_pixels(grad_output), x = with_pixels(input);
  const at::Tensor y = result.defined() ? with_pixels(result) : at::Tensor();
  const at::Tensor means = in_float(mean), vars = in_float(var), gains = in_float(weight);
  const Layout layout = layout_of(x, kBackwardBlocks, kLeastRows);
  const at::Tensor workspace = empty_floats(backward_floats(layout), x);
  by_type(x.scalar_type(), [&](auto type) {
    using T = decltype(type);
    BatchNormKernels<T>::backward(
        current_stream(),
        {source, image_of<T>(grad), image_of<T>(x), image_of<T>(y),
         mask.defined() ? mask.const_data_ptr<uint8_t>() : nullptr, target_of<T>(g.input),
         target_of<T>(g.residual), floats(means), floats(vars), floats(gains), float_target(g.weight),
         float_target(g.bias), float_target(g.mean), float_target(g.var), static_cast<float>(eps), activation,
         batch_statistics, layout, workspace.mutable_data_ptr<float>()});
  });
  return g;
}

// As the operators return them: each in its parameter's type, empty tensors for what nobody wants.
BatchNormGradients finished(const Gradients& g, const at::Tensor& input, const at::Tensor& mean,
                            const at::Tensor& var, const OptionalTensor& weight) {
  const auto none = [&](const at::Tensor& t) { return t.defined() ? t : no_gradient(input); };
  const auto typed = [&](const at::Tensor& t, at::ScalarType type) {
    return t.defined() ? as_type(t, type) : no_gradient(input);
  };
  const auto parameters = present(weight) ? weight->scalar_type() : statistics_type(input.scalar_type());
  return {none(g.input),
          typed(g.mean, mean.scalar_type()),
          typed(g.var, var.scalar_type()),
          typed(g.weight, parameters),
          typed(g.bias, parameters),
          none(g.residual)};
}

BatchNorm2dOutputs batch_norm2d(const at::Tensor& input, const OptionalTensor& weight,
                                const OptionalTensor& bias, const OptionalTensor& residual, double eps,
                                std::string_view activation) {
  const Activation act = parse_activation("batch_norm2d", activation);
  if (!served(input) || !has_kernel(act)) throw Unserved();
  check_batch_norm2d(input, weight, bias, residual, activation);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor x = with_pixels(input);  // one copy for both passes, where there must be one
  const Statistics s = batch_statistics(x);
  at::Tensor output = empty_images(input.sizes(), input);
  normalise_into(x, Normalisation(s.mean, s.var, weight, bias, eps), residual, act, output);
  return {output, s.mean, s.var};
}

BatchNorm2dReluOutputs batch_norm2d_relu(const at::Tensor& input, const OptionalTensor& weight,
                                         const OptionalTensor& bias, const OptionalTensor& residual,
                                         double eps) {
  if (!served(input)) throw Unserved();
  check_batch_norm2d(input, weight, bias, residual, "relu");
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor x = with_pixels(input);
  const Statistics s = batch_statistics(x);
  at::Tensor output = empty_images(input.sizes(), input), mask = mask_like(input);
  normalise_into(x, Normalisation(s.mean, s.var, weight, bias, eps), residual, {Activation::kReLU}, output,
                 mask);
  return {output, s.mean, s.var, mask};
}

BatchNorm2dReluGradients batch_norm2d_relu_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                                    const at::Tensor& mean, const at::Tensor& var,
                                                    const OptionalTensor& weight, const at::Tensor& positive,
                                                    double eps, std::array<bool, 4> output_mask) {
  if (!served(input) || !served_with(input, grad_output)) throw Unserved();
  check_batch_norm2d_relu_backward(grad_output, input, mean, var, weight, positive);
  const c10::cuda::CUDAGuard guard(input.device());
  const at::Tensor bits = positive.contiguous();
  const Gradients g =
      backward(grad_output, input, mean, var, weight, Source::kMask, {}, bits, eps, {Activation::kReLU}, true,
               {output_mask[0], false, false, output_mask[1], output_mask[2], output_mask[3]});
  const auto all = finished(g, input, mean, var, weight);
  return {std::get<0>(all), std::get<3>(all), std::get<4>(all), std::get<5>(all)};
}

}  // namespace

BatchNormGradients batch_norm2d_backward(const at::Tensor& grad_output, const at::Tensor& input,
                                         const at::Tensor& mean, const at::Tensor& var,
                                         const OptionalTensor& weight, const at::Tensor& output, double eps,
                                         std::string_view activation, bool batch_statistics,
                                         std::array<bool, 6> output_mask) {
  const Activation act = parse_activation("batch_norm2d_backward", activation);
  if (!served(input) || !served_with(input, grad_output) || !output_determines(act) ||
      (act.kind != Activation::kNone && !served_with(input, output)))
    throw Unserved();
  TORCH_CHECK(grad_output.sizes() == input.sizes(), "cnnfast::batch_norm2d_backward: grad_output has shape ",
              grad_output.sizes(), ", but input has ", input.sizes());
  const c10::cuda::CUDAGuard guard(input.device());
  const bool plain = act.kind == Activation::kNone;
  return finished(backward(grad_output, input, mean, var, weight, plain ? Source::kNone : Source::kResult,
                           plain ? at::Tensor() : output, {}, eps, act, batch_statistics, output_mask),
                  input, mean, var, weight);
}

namespace {

std::tuple<at::Tensor, at::Tensor> statistics(const at::Tensor& input) {
  if (!served(input)) throw Unserved();
  const c10::cuda::CUDAGuard guard(input.device());
  const Statistics s = batch_statistics(input);
  return {s.mean, s.var};
}

std::tuple<at::Tensor, at::Tensor> batch_norm_act_bits(const at::Tensor& input, const at::Tensor& mean,
                                                       const at::Tensor& var, const OptionalTensor& weight,
                                                       const OptionalTensor& bias,
                                                       const OptionalTensor& residual, double eps) {
  check_batch_norm_act(input, mean, var, weight, bias, residual, "relu");
  if (!served(input)) throw Unserved();
  const c10::cuda::CUDAGuard guard(input.device());
  at::Tensor output = empty_images(input.sizes(), input), mask = mask_like(input);
  normalise_into(input, Normalisation(mean, var, weight, bias, eps), residual, {Activation::kReLU}, output,
                 mask);
  return {output, mask};
}

[[maybe_unused]] const bool registered[] = {
    DeviceKernel<batch_statistics_composite>::set(statistics),
    DeviceKernel<batch_norm_act_composite>::set(batch_norm_act),
    DeviceKernel<batch_norm_act_bits_composite>::set(batch_norm_act_bits),
    DeviceKernel<batch_norm2d_composite>::set(batch_norm2d),
    DeviceKernel<batch_norm2d_backward_composite>::set(batch_norm2d_backward),
    DeviceKernel<batch_norm2d_relu_composite>::set(batch_norm2d_relu),
    DeviceKernel<batch_norm2d_relu_backward_composite>::set(batch_norm2d_relu_backward)};

}  // namespace
}  // namespace cnnfast::cuda
