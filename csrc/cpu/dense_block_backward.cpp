// dense_block_backward on the CPU: float32 in one gradient buffer of the output's size, from the last layer
// to the first.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/channel_sums.h"
#include "cpu/normalisation.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"
#include "ops/dense_block.h"

namespace cnnfast::cpu {
namespace {

constexpr int64_t kSerialElements = 1 << 14;

int threads_for(int64_t elements) { return elements < kSerialElements ? 1 : team_size(); }

// What the batch's own statistics add to a channel's gradient, factor * (x - mean) + constant. The terms of
// all layers that read a channel are collected and added in one pass, when its gradient is to be read itself.
class StatisticsTerms {
 public:
  StatisticsTerms(const at::Tensor& mean, const at::Tensor& values)
      : mean_(mean.contiguous()), values_(values), factor_(mean.numel(), 0.0), constant_(mean.numel(), 0.0) {}

  // One layer's: sum of dz and of dz * (x - mean) over the pixels, of the channels from the first on.
  void collect(const Normalisation& norm, const std::vector<double>& sum,
               const std::vector<double>& product) {
    if (factor_.empty()) return;
    const double count = static_cast<double>(values_.count);
    for (size_t c = 0; c < sum.size(); ++c) {
      const double scale = norm.scale.data()[c], inverse_std = norm.inverse_std[c];
      factor_[c] -= scale * inverse_std * inverse_std * product[c] / count;
      constant_[c] -= scale * sum[c] / count;
    }
  }

  void add_to(const Pixels& grad, int64_t channel, int64_t count) const {
    if (factor_.empty()) return;
    AlignedFloats scale(count), shift(count);
    for (int64_t c = 0; c < count; ++c) {
      const double factor = factor_[channel + c];
      scale.data()[c] = static_cast<float>(factor);
      shift.data()[c] =
          static_cast<float>(constant_[channel + c] - factor * mean_.const_data_ptr<float>()[channel + c]);
    }
    parallel_team(threads_for(grad.count * count), [&](int thread, int team, Barrier&) {
      const auto [begin, end] = share(grad.count, 1, thread, team);
      float* own = grad.data + begin * grad.channels + channel;
      kernels().affine({values_.data + begin * values_.channels + channel,
                        own,
                        own,
                        scale.data(),
                        shift.data(),
                        values_.channels,
                        grad.channels,
                        grad.channels,
                        count,
                        {}},
                       end - begin);
    });
  }

 private:
  const at::Tensor mean_;
  Pixels values_;
  std::vector<double> factor_, constant_;
};

struct ChannelSums {
  std::vector<double> sum, product;
};

class Backward {
 public:
  Backward(const at::Tensor& grad_output, const at::Tensor& output, const at::Tensor& mean,
           const std::vector<DenseLayer>& layers, Activation activation)
      : values_(output),
        grad_(fresh_channels_last(grad_output)),
        activated_(at::empty({output.numel() / output.size(1) * layers.back().inputs}, output.options())),
        terms_(mean, values_),
        activation_(activation) {}

  const at::Tensor& grad() const { return grad_; }
  void finish_channels(int64_t channel, int64_t count) const { terms_.add_to(Pixels(grad_), channel, count); }

  // The layer's activated input, in memory that all layers share.
  at::Tensor activated(const DenseLayer& layer, const Normalisation& norm) const {
    const Pixels x(values_);
    const at::Tensor images = activated_.narrow(0, 0, x.count * layer.inputs)
                                  .view({values_.size(0), values_.size(2), values_.size(3), layer.inputs})
                                  .permute({0, 3, 1, 2});
    float* target = images.data_ptr<float>();
    const AffinePrologue p = norm.prologue(activation_);
    parallel_team(threads_for(images.numel()), [&](int thread, int team, Barrier&) {
      const auto [begin, end] = share(x.count, 1, thread, team);
      kernels().affine({x.data + begin * x.channels, nullptr, target + begin * layer.inputs, p.scale, p.shift,
                        x.channels, 0, layer.inputs, layer.inputs, p.activation},
                       end - begin);
    });
    return images;
  }

  // From the gradient of the activated input to that of the layer's input, which adds up in the buffer.
  ChannelSums add_input_gradient(const DenseLayer& layer, const Normalisation& norm,
                                 const at::Tensor& activated, const at::Tensor& grad_activated) {
    const Pixels a(activated), x(values_), grad(grad_),
        da(grad_activated.contiguous(at::MemoryFormat::ChannelsLast));
    const int64_t channels = layer.inputs, parts = (x.count + kRowsPerPart - 1) / kRowsPerPart;
    std::vector<float> sum(static_cast<size_t>(parts * channels), 0.0f), product(sum);
    const float* mean = norm.mean.const_data_ptr<float>();
    parallel_team(threads_for(x.count * channels), [&](int thread, int team, Barrier&) {
      const auto [begin, end] = share(parts, 1, thread, team);
      for (int64_t part = begin; part < end; ++part) {
        const int64_t row = part * kRowsPerPart;
        kernels().bn_act_backward(
            {a.data + row * channels, da.data + row * channels, x.data + row * x.channels,
             grad.data + row * grad.channels, norm.scale.data(), mean, sum.data() + part * channels,
             product.data() + part * channels, channels, channels, x.channels, grad.channels, channels,
             activation_},
            std::min(kRowsPerPart, x.count - row));
      }
    });
    const ChannelSums sums{sum_of_parts(sum, channels), sum_of_parts(product, channels)};
    terms_.collect(norm, sums.sum, sums.product);
    return sums;
  }

 private:
  const at::Tensor values_;
  const at::Tensor grad_, activated_;
  StatisticsTerms terms_;
  Activation activation_;
};

at::Tensor as_tensor(const std::vector<double>& values, const at::TensorOptions& options) {
  const at::Tensor t = at::empty({static_cast<int64_t>(values.size())}, options);
  std::copy(values.begin(), values.end(), t.data_ptr<float>());
  return t;
}

DenseBlockGradients dense_block_backward_cpu(const at::Tensor& grad_output, const at::Tensor& given_output,
                                             at::TensorList weights, const OptionalTensors& bn_weights,
                                             const OptionalTensors& bn_biases, const OptionalTensors& means,
                                             const OptionalTensors& vars, const at::Tensor& mean,
                                             const at::Tensor& var, double eps, std::string_view activation,
                                             const c10::List<bool>& output_mask) {
  const bool served = is_plain_float(given_output) && is_plain_float(grad_output) && given_output.numel() &&
                      all_float(bn_weights) && all_float(bn_biases) && all_float(means) && all_float(vars);
  if (!served)
    return dense_block_backward_composite(grad_output, given_output, weights, bn_weights, bn_biases, means,
                                          vars, mean, var, eps, activation, output_mask);
  const auto layers = dense_layers(weights);
  const DenseBlockMask mask(output_mask, layers.size());
  const at::Tensor output = given_output.contiguous(at::MemoryFormat::ChannelsLast);
  DenseBlockGradientLists found(layers.size(), output);
  Backward backward(grad_output, output, mean, layers, parse_activation("dense_block_backward", activation));
  for (size_t i = layers.size(); i-- > 0;) {
    const DenseLayer& layer = layers[i];
    if (!mask.conv(i).any()) continue;
    backward.finish_channels(layer.inputs, layer.growth);
    const Normalisation norm(layer_statistic(means, mean, i, layer), layer_statistic(vars, var, i, layer),
                             bn_weights.get(i), bn_biases.get(i), eps);
    const at::Tensor activated = backward.activated(layer, norm);
    const auto conv =
        conv_gradients(layer.own(backward.grad()), activated, weights[i], layer.params(), mask.conv(i));
    if (mask.weight(i)) found.weights[i] = conv.weight;
    if (mask.bias(i)) found.biases[i] = conv.bias;
    if (!mask.below(i)) continue;
    auto sums = backward.add_input_gradient(layer, norm, activated, conv.input);
    if (mask.bn_bias(i)) found.bn_biases[i] = as_tensor(sums.sum, output.options());
    for (int64_t c = 0; c < layer.inputs; ++c) sums.product[c] *= norm.inverse_std[c];
    if (mask.bn_weight(i)) found.bn_weights[i] = as_tensor(sums.product, output.options());
  }
  if (!mask.input()) return found.with_input(no_gradient(output));
  backward.finish_channels(0, layers[0].inputs);
  return found.with_input(fresh_channels_last(layers[0].read(backward.grad())));
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("dense_block_backward", TORCH_FN(dense_block_backward_cpu)); }

}  // namespace cnnfast::cpu
