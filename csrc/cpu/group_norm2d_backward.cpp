// group_norm2d_backward on the CPU, as group_norm2d.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/image_parts.h"
#include "cpu/memory_pool.h"
#include "cpu/norm_backward_rows.h"
#include "ops/group_norm2d.h"

namespace cnnfast::cpu {
namespace {

// What the gradient of every value has beside its own factor (see NormBackwardCall), and the sums that those
// of the parameters are made of.
class GroupNormBackward {
 public:
  GroupNormBackward(const ImageParts& as, const at::Tensor& mean, const at::Tensor& var,
                    const OptionalTensor& weight, const OptionalTensor& bias, double eps)
      : as_(as),
        factors_(as, weight, bias, eps),
        sums_(as, 2 * as.channels),
        mean_(as.values(as.channels)),
        tilt_(mean_.size()),
        offset_(mean_.size()),
        grads_(mean_.size()),
        products_(mean_.size()),
        inverse_(as.values(as.groups)) {
    const at::Tensor means = mean.contiguous(), vars = var.contiguous();
    for (int64_t n = 0; n < as.images; ++n)
      for (int64_t g = 0; g < as.groups; ++g) {
        const float m = means.const_data_ptr<float>()[n * as.groups + g];
        const double v = vars.const_data_ptr<float>()[n * as.groups + g];
        factors_.set(n, g, m, v);
        inverse_[n * as.groups + g] = 1.0 / std::sqrt(v + eps);
        std::fill_n(mean_.begin() + n * as.channels + g * as.group(), as.group(), m);
      }
  }

  void run(const BackwardRows& from, const Activation& activation, const OutputRows& grad_input) {
    const auto call_of = [&](int64_t image) {
      const int64_t first = image * as_.channels;
      NormBackwardCall call{};
      call.mean = mean_.data() + first;
      call.slope = factors_.scale(image);
      call.tilt = tilt_.data() + first;
      call.offset = offset_.data() + first;
      call.channels = as_.channels;
      call.activation = activation;
      call.scale = factors_.scale(image);
      call.again_shift = factors_.shift(image);
      return call;
    };
    as_.run(
        [&](int64_t image, int64_t part) {
          float* const sums = sums_.at(image, part);
          add_backward_sums(call_of(image), from, as_.first_row(image, part), as_.rows_of(part), sums,
                            sums + as_.channels);
        },
        [&](int64_t image) { finish(image); },
        [&](int64_t image, int64_t begin, int64_t end) {
          if (!grad_input.wanted()) return;
          OutputRows own = grad_input;
          if (own.data) own.data += begin * as_.channels;
          if (own.narrow) own.narrow += begin * as_.channels;
          backward_rows(call_of(image), from, begin, end, own, OutputRows());
        });
  }

  std::vector<double> weight_gradient() const {
    return over_images([&](int64_t n, int64_t c) {
      return products_[n * as_.channels + c] * inverse_[n * as_.groups + c / as_.group()];
    });
  }
  std::vector<double> bias_gradient() const {
    return over_images([&](int64_t n, int64_t c) { return grads_[n * as_.channels + c]; });
  }

 private:
  void finish(int64_t image) {
    const int64_t first = image * as_.channels;
    for (int64_t part = 0; part < as_.parts; ++part)
      for (int64_t c = 0; c < as_.channels; ++c) {
        grads_[first + c] += sums_.at(image, part)[c];
        products_[first + c] += sums_.at(image, part)[as_.channels + c];
      }
    for (int64_t g = 0; g < as_.groups; ++g) {
      double grad = 0.0, product = 0.0;
      const int64_t begin = g * as_.group(), end = begin + as_.group();
      for (int64_t c = begin; c < end; ++c) {
        grad += factors_.weight(c) * grads_[first + c];
        product += factors_.weight(c) * products_[first + c];
      }
      const double inverse = inverse_[image * as_.groups + g] / as_.values_of_group();
      const double cube = inverse * std::pow(inverse_[image * as_.groups + g], 2);
      std::fill(offset_.begin() + first + begin, offset_.begin() + first + end,
                static_cast<float>(-inverse * grad));
      std::fill(tilt_.begin() + first + begin, tilt_.begin() + first + end,
                static_cast<float>(-cube * product));
    }
  }

  template <class Value>
  std::vector<double> over_images(Value&& value) const {
    std::vector<double> sums(static_cast<size_t>(as_.channels), 0.0);
    for (int64_t n = 0; n < as_.images; ++n)
      for (int64_t c = 0; c < as_.channels; ++c) sums[c] += value(n, c);
    return sums;
  }

  const ImageParts& as_;
  ImageFactors factors_;
  PartSums sums_;
  std::vector<float> mean_, tilt_, offset_;  // of every channel of every image
  std::vector<double> grads_, products_;     // likewise
  std::vector<double> inverse_;              // 1 / sqrt(var + eps), of every group of every image
};

GroupNorm2dGradients group_norm2d_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                               const at::Tensor& mean, const at::Tensor& var, int64_t groups,
                                               const OptionalTensor& weight, const OptionalTensor& bias,
                                               double eps, std::string_view activation,
                                               std::array<bool, 3> output_mask) {
  if (!norm_has_kernels(input, {weight, bias}) || grad_output.scalar_type() != input.scalar_type() ||
      !norm_has_kernels(grad_output, {}))
    return group_norm2d_backward_composite(grad_output, input, mean, var, groups, weight, bias, eps,
                                           activation, output_mask);
  check_group_norm2d_backward(grad_output, input, mean, var, groups, weight, bias);
  const ImageParts as(input, groups);
  const at::Tensor grad_input =
      output_mask[0] ? gradient_empty(input.sizes(), input.options(), at::MemoryFormat::ChannelsLast)
                     : no_gradient(input);
  GroupNormBackward backward(as, mean, var, weight, bias, eps);
  BackwardRows from;
  from.grad = pixel_rows(grad_output);
  from.input = pixel_rows(input);
  backward.run(from, parse_activation("group_norm2d_backward", activation),
               output_mask[0] ? OutputRows(grad_input) : OutputRows());
  const auto per_channel = [&](bool wanted, const OptionalTensor& parameter, auto&& values) {
    if (!wanted) return no_gradient(input);
    const at::Tensor sum = channel_tensor(values(), input.options());
    return present(parameter) ? as_type(sum, parameter->scalar_type()) : sum;
  };
  return {grad_input, per_channel(output_mask[1], weight, [&] { return backward.weight_gradient(); }),
          per_channel(output_mask[2], bias, [&] { return backward.bias_gradient(); })};
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("group_norm2d_backward", TORCH_FN(group_norm2d_backward_cpu)); }

}  // namespace cnnfast::cpu
