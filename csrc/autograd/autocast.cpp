// Autocast: convolutions and linear layers run in the autocast type as torch's own do, local response
// normalisation in float32; batch normalisation and pooling take what they are given.
#include <ATen/autocast_mode.h>

#include <algorithm>

#include "autograd/common.h"
#include "info.h"
#include "ops/batch_norm.h"
#include "ops/bn_act_conv2d.h"
#include "ops/dense_block.h"
#include "ops/inception.h"
#include "ops/linear.h"
#include "ops/local_response_norm.h"

namespace cnnfast {
namespace {

template <c10::DeviceType device>
struct Autocast {
  static constexpr c10::DispatchKey kKey =
      device == c10::DeviceType::CPU ? c10::DispatchKey::AutocastCPU : c10::DispatchKey::AutocastCUDA;

  static at::Tensor cast(const at::Tensor& t) {
    return at::autocast::cached_cast(at::autocast::get_autocast_dtype(device), t, device);
  }
  static OptionalTensor cast(const OptionalTensor& t) { return present(t) ? OptionalTensor(cast(*t)) : t; }

  // Weights and biases of convolutions keep their type: products of pairs round weights while they pack them,
  // and copies of another type, of gradients too, take memory and time.
  static bool stays_float(const at::Tensor& parameter) {
    return device == c10::DeviceType::CPU && at::autocast::get_autocast_dtype(device) == at::kBFloat16 &&
           parameter.scalar_type() == at::kFloat;
  }
  static at::Tensor cast_parameter(const at::Tensor& t) { return stays_float(t) ? t : cast(t); }
  // So do those of linear layers of many rows, which are multiplied as those of convolutions are, and of few
  // rows or where products are float32 anyway: copies would take longer than those.
  static bool multiplies_wide(const at::Tensor& input, const at::Tensor& parameter) {
    return stays_float(parameter) &&
           !(has_few_rows(input) ? cpu_multiplies_bfloat16() : cpu_has_bfloat16_products());
  }
  static OptionalTensor cast_parameter(const OptionalTensor& t) {
    return present(t) ? OptionalTensor(cast_parameter(*t)) : t;
  }

  static at::Tensor conv2d(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                           const OptionalTensor& scale, const OptionalTensor& residual,
                           at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                           int64_t groups, std::string_view activation) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static auto op = typed_operator<decltype(conv2d_composite)>("cnnfast::conv2d");
    return op.call(cast(input), cast_parameter(weight), cast_parameter(bias), cast(scale), cast(residual),
                   stride, padding, dilation, groups, activation);
  }

  // Batch norm's own parameters stay as they are, like torch's.
  static BatchNormOutputs conv2d_batch_norm(const at::Tensor& input, const at::Tensor& weight,
                                            const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                            const OptionalTensor& bn_bias, const OptionalTensor& residual,
                                            at::IntArrayRef stride, at::IntArrayRef padding,
                                            at::IntArrayRef dilation, int64_t groups, double eps,
                                            std::string_view activation) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static auto op = typed_operator<decltype(conv2d_batch_norm_composite)>("cnnfast::conv2d_batch_norm");
    return op.call(cast(input), cast_parameter(weight), cast_parameter(bias), bn_weight, bn_bias,
                   cast(residual), stride, padding, dilation, groups, eps, activation);
  }

  static at::Tensor linear(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                           std::string_view activation) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static auto op = typed_operator<decltype(linear_composite)>("cnnfast::linear");
    if (has_many_rows(input, weight))
      return op.call(cast(input), cast_parameter(weight), cast_parameter(bias), activation);
    if (multiplies_wide(input, weight) && (!present(bias) || stays_float(*bias)))
      return op.call(cast(input).to(at::kFloat), weight, bias, activation).to(at::kBFloat16);
    return op.call(cast(input), cast(weight), cast(bias), activation);
  }

  // The wider of the two types: what an addition of its own would give.
  static std::pair<at::Tensor, OptionalTensor> promoted(const at::Tensor& input,
                                                        const OptionalTensor& residual) {
    if (!present(residual)) return {input, residual};
    const auto type = at::promote_types(input.scalar_type(), residual->scalar_type());
    return {as_type(input, type), as_type(*residual, type)};
  }

  static at::Tensor batch_norm_act(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                                   const OptionalTensor& weight, const OptionalTensor& bias,
                                   const OptionalTensor& residual, double eps, std::string_view activation) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static auto op = typed_operator<decltype(batch_norm_act_composite)>("cnnfast::batch_norm_act");
    const auto [x, r] = promoted(input, residual);
    return op.call(x, mean, var, weight, bias, r, eps, activation);
  }

  static BatchNorm2dOutputs batch_norm2d(const at::Tensor& input, const OptionalTensor& weight,
                                         const OptionalTensor& bias, const OptionalTensor& residual,
                                         double eps, std::string_view activation) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static auto op = typed_operator<decltype(batch_norm2d_composite)>("cnnfast::batch_norm2d");
    const auto [x, r] = promoted(input, residual);
    return op.call(x, weight, bias, r, eps, activation);
  }

  // Images of another type are normalised in it before the convolution rounds them, hence in two steps.
  static BatchNorm2dOutputs bn_act_conv2d(const at::Tensor& input, const at::Tensor& weight,
                                          const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                          const OptionalTensor& bn_bias, const OptionalTensor& mean,
                                          const OptionalTensor& var, const OptionalTensor& residual,
                                          at::IntArrayRef stride, at::IntArrayRef padding,
                                          at::IntArrayRef dilation, int64_t groups, double eps,
                                          std::string_view pre_activation) {
    if (input.scalar_type() == at::autocast::get_autocast_dtype(device)) {
      c10::impl::ExcludeDispatchKeyGuard guard(kKey);
      static auto op = typed_operator<decltype(bn_act_conv2d_composite)>("cnnfast::bn_act_conv2d");
      return op.call(input, cast_parameter(weight), cast_parameter(bias), bn_weight, bn_bias, mean, var,
                     cast(residual), stride, padding, dilation, groups, eps, pre_activation);
    }
    BatchNorm2dOutputs out;
    at::Tensor activated;
    if (present(mean) && present(var)) {
      activated = batch_norm_act(input, *mean, *var, bn_weight, bn_bias, std::nullopt, eps, pre_activation);
      out = {at::Tensor(), no_gradient(*mean), no_gradient(*var)};
    } else {
      out = batch_norm2d(input, bn_weight, bn_bias, std::nullopt, eps, pre_activation);
      activated = std::get<0>(out);
    }
    std::get<0>(out) =
        conv2d(activated, weight, bias, std::nullopt, residual, stride, padding, dilation, groups, "none");
    return out;
  }

  static at::Tensor local_response_norm(const at::Tensor& input, int64_t size, double alpha, double beta,
                                        double k) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static auto op = typed_operator<decltype(local_response_norm_composite)>("cnnfast::local_response_norm");
    return op.call(at::autocast::cached_cast(at::kFloat, input, device), size, alpha, beta, k);
  }

  static std::vector<at::Tensor> cast_parameters(at::TensorList list) {
    std::vector<at::Tensor> result;
    for (const auto& t : list) result.push_back(cast_parameter(t));
    return result;
  }
  static OptionalTensors cast_parameters(const OptionalTensors& list) {
    OptionalTensors result;
    for (size_t i = 0; i < list.size(); ++i) result.push_back(cast_parameter(list.get(i)));
    return result;
  }

  static std::vector<at::Tensor> inception(const at::Tensor& input, at::TensorList weights,
                                           const OptionalTensors& biases, at::IntArrayRef branches) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static auto op = typed_operator<decltype(inception_composite)>("cnnfast::inception");
    auto outputs = op.call(cast(input), cast_parameters(weights), cast_parameters(biases), branches);
    // A branch without convolution keeps the input's type in eager PyTorch, and the concatenation then takes
    // it.
    const auto keeps_type = [](const Branch& branch) {
      return std::none_of(branch.begin(), branch.end(),
                          [](const Stage& s) { return s.kind == StageKind::kConv; });
    };
    const auto parsed = parse_branches("inception", branches);
    if (std::any_of(parsed.begin(), parsed.end(), keeps_type))
      outputs[0] = as_type(outputs[0], at::promote_types(outputs[0].scalar_type(), input.scalar_type()));
    return outputs;
  }

  // Batch norm's own parameters and averages stay as they are.
  static DenseBlockOutputs dense_block(const at::Tensor& input, at::TensorList weights,
                                       const OptionalTensors& biases, const OptionalTensors& bn_weights,
                                       const OptionalTensors& bn_biases, const OptionalTensors& means,
                                       const OptionalTensors& vars, double eps, std::string_view activation) {
    c10::impl::ExcludeDispatchKeyGuard guard(kKey);
    static auto op = typed_operator<decltype(dense_block_composite)>("cnnfast::dense_block");
    auto outputs = op.call(cast(input), cast_parameters(weights), cast_parameters(biases), bn_weights,
                           bn_biases, means, vars, eps, activation);
    auto& output = std::get<0>(outputs);  // eager PyTorch concatenates with the input in its own type
    output = as_type(output, at::promote_types(output.scalar_type(), input.scalar_type()));
    return outputs;
  }

  static void implement(torch::Library& m) {
    m.impl("conv2d", TORCH_FN(conv2d));
    m.impl("conv2d_batch_norm", TORCH_FN(conv2d_batch_norm));
    m.impl("linear", TORCH_FN(linear));
    m.impl("batch_norm_act", TORCH_FN(batch_norm_act));
    m.impl("batch_norm2d", TORCH_FN(batch_norm2d));
    m.impl("bn_act_conv2d", TORCH_FN(bn_act_conv2d));
    m.impl("local_response_norm", TORCH_FN(local_response_norm));
    m.impl("inception", TORCH_FN(inception));
    m.impl("dense_block", TORCH_FN(dense_block));
  }
};

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, AutocastCPU, m) { Autocast<c10::DeviceType::CPU>::implement(m); }
TORCH_LIBRARY_IMPL(cnnfast, AutocastCUDA, m) { Autocast<c10::DeviceType::CUDA>::implement(m); }

}  // namespace cnnfast
