// dense_block_backward on the CPU: float32 in one gradient buffer of the output's size, from the last layer
// to the first.
#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/activation_rows.h"
#include "cpu/bf16_table.h"
#include "cpu/channel_sums.h"
#include "cpu/channel_values.h"
#include "cpu/chunked_backward.h"
#include "cpu/memory_pool.h"
#include "cpu/normalisation.h"
#include "cpu/normalise.h"
#include "cpu/paired_conv.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"
#include "ops/dense_block.h"

namespace cnnfast::cpu {
namespace {

// What the batch's own statistics add to a channel's gradient, factor * (x - mean) + constant. The terms of
// all layers that read a channel are collected and added in one pass, when its gradient is to be read itself.
class StatisticsTerms {
 public:
  StatisticsTerms(const at::Tensor& mean, const PixelRows& values)
      : mean_(mean.contiguous()), values_(values), factor_(mean.numel(), 0.0), constant_(mean.numel(), 0.0) {}

  // One layer's: sum of dz and of dz * (x - mean) over the pixels, of the channels from the first on.
  void collect(const Normalisation& norm, const std::vector<double>& sum,
               const std::vector<double>& product) {
    if (factor_.empty()) return;
    const double count = static_cast<double>(values_.rows);
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
      const int64_t first = begin * values_.stride + channel;
      const auto add = [&, rows = end - begin](auto kernel, const auto* values) {
        kernel({values + first,
                own,
                own,
                scale.data(),
                shift.data(),
                values_.stride,
                grad.channels,
                grad.channels,
                count,
                {}},
               rows);
      };
      values_.narrow ? add(bf16_kernels().norm->affine_wide, values_.narrow)
                     : add(kernels().affine, values_.data);
    });
  }

 private:
  const at::Tensor mean_;
  PixelRows values_;
  std::vector<double> factor_, constant_;
};

struct ChannelSums {
  std::vector<double> sum, product;
};

// Takes over the first of several terms.
void add_to(at::Tensor& sum, const at::Tensor& term) {
  if (sum.defined() && sum.numel() > 0)
    sum.add_(term);
  else
    sum = term;
}

void add_to(ChannelSums& sum, const ChannelSums& term) {
  if (sum.sum.empty()) {
    sum = term;
    return;
  }
  for (size_t c = 0; c < sum.sum.size(); ++c) {
    sum.sum[c] += term.sum[c];
    sum.product[c] += term.product[c];
  }
}

struct LayerGradients {
  at::Tensor weight, bias;  // as wanted
  ChannelSums sums;
};

// Images worked on at once: what is normalised again, and its gradient, take a part of the block's memory.
constexpr int64_t kImageParts = 4;
constexpr int64_t kSmallElements = 1 << 16;

class Backward {
 public:
  // `grad`: float32 in channels_last memory; written over. `pairs`: products are those of pairs of bfloat16.
  Backward(const at::Tensor& grad, const at::Tensor& output, bool pairs, const at::Tensor& mean,
           Activation activation)
      : values_(output),
        rows_(pixel_rows(output)),
        pairs_(pairs),
        grad_(grad),
        terms_(mean, rows_),
        activation_(activation) {}

  const at::Tensor& grad() const { return grad_; }
  void finish_channels(int64_t channel, int64_t count) const { terms_.add_to(Pixels(grad_), channel, count); }

  int64_t images_at_once(const DenseLayer& layer) const {
    const int64_t images = values_.size(0), all = values_.numel() / values_.size(1) * layer.inputs;
    return all <= kSmallElements ? images : (images + kImageParts - 1) / kImageParts;
  }

  // The layer's activated input, of some images.
  at::Tensor activated(const DenseLayer& layer, const Normalisation& norm, int64_t first,
                       int64_t count) const {
    const at::Tensor images = layer.read(values_).narrow(0, first, count);
    const at::Tensor result =
        gradient_empty(images.sizes(), images.options().dtype(products()), at::MemoryFormat::ChannelsLast);
    normalise_into(pixel_rows(images), norm.prologue(activation_), std::nullopt, result);
    return result;
  }

  // From the gradient of the activated input of some images, the first of them `image`, to that of the
  // layer's input, which adds up in the buffer.
  ChannelSums add_input_gradient(const DenseLayer& layer, const Normalisation& norm,
                                 const at::Tensor& grad_activated, int64_t image) {
    const PixelRows da = pixel_rows(grad_activated.contiguous(at::MemoryFormat::ChannelsLast));
    const int64_t channels = layer.inputs, parts = (da.rows + kRowsPerPart - 1) / kRowsPerPart;
    const int64_t before = image * pixels_per_image();
    std::vector<float> sum(static_cast<size_t>(parts * channels), 0.0f), product(sum);
    parallel_team(threads_for(da.rows * channels), [&](int thread, int team, Barrier&) {
      const auto [begin, end] = share(parts, 1, thread, team);
      for (int64_t part = begin; part < end; ++part) {
        const int64_t row = part * kRowsPerPart, rows = std::min(kRowsPerPart, da.rows - row);
        float *const sums = sum.data() + part * channels, *const products = product.data() + part * channels;
        if (da.narrow)
          add_rows(norm, bf16_kernels().norm->bn_act_backward, da.narrow + row * channels, rows_.narrow,
                   channels, before + row, rows, sums, products);
        else
          add_wide_rows(norm, da.data + row * channels, channels, before + row, rows, sums, products);
      }
    });
    return {sum_of_parts(sum, channels), sum_of_parts(product, channels)};
  }

  // All of a layer, some rows of images at a time.
  LayerGradients run_by_chunks(const DenseLayer& layer, const Normalisation& norm, const at::Tensor& weight,
                               WantedConvGradients wanted) {
    const at::Tensor input = layer.read(values_), own = layer.own(grad_);
    const InputPrologue prologue = norm.prologue(activation_);
    ChunkedBackward conv(input, weight, layer.params(), own.sizes(), wanted, &prologue);
    const ActivationRows rows(own, own, {});
    const int64_t channels = layer.inputs;
    std::vector<float> sum(wanted.input ? static_cast<size_t>(conv.chunks() * channels) : 0, 0.0f),
        product(sum);
    const auto found = conv.run([&](int64_t row, float* to, bool, float* sums) { rows.run(row, to, sums); },
                                [&](int64_t index, const Chunk& c, const View& da) {
                                  add_chunk(norm, c, da, channels, sum.data() + index * channels,
                                            product.data() + index * channels);
                                });
    LayerGradients result{found.weight, {}, {}};
    if (wanted.bias) result.bias = channel_tensor(found.bias, grad_.options());
    if (wanted.input) result.sums = {sum_of_parts(sum, channels), sum_of_parts(product, channels)};
    return result;
  }

  // The same for a few images at a time.
  LayerGradients run_by_images(const DenseLayer& layer, const Normalisation& norm, const at::Tensor& weight,
                               WantedConvGradients wanted) {
    LayerGradients result;
    const int64_t images = values_.size(0), step = images_at_once(layer);
    for (int64_t first = 0; first < images; first += step) {
      const int64_t count = std::min(step, images - first);
      const at::Tensor grad = layer.own(grad_).narrow(0, first, count);
      at::Tensor input = activated(layer, norm, first, count);
      const auto conv = conv_gradients(rounded_to(products(), grad), input, weight, layer.params(), wanted);
      input.reset();
      if (wanted.weight) add_to(result.weight, conv.weight);
      if (wanted.bias) add_to(result.bias, conv.bias);
      if (wanted.input) add_to(result.sums, add_input_gradient(layer, norm, conv.input, first));
    }
    return result;
  }

  LayerGradients run(const DenseLayer& layer, const Normalisation& norm, const at::Tensor& weight,
                     WantedConvGradients wanted) {
    const bool chunks = !pairs_ && ChunkedBackward::serves(layer.read(values_), weight, layer.params(),
                                                           layer.own(grad_).sizes(), wanted);
    return chunks ? run_by_chunks(layer, norm, weight, wanted) : run_by_images(layer, norm, weight, wanted);
  }

  void collect(const Normalisation& norm, const ChannelSums& sums) {
    terms_.collect(norm, sums.sum, sums.product);
  }

 private:
  void add_chunk(const Normalisation& norm, const Chunk& c, const View& da, int64_t channels, float* sum,
                 float* product) const {
    const int64_t width = values_.size(3);
    for (int64_t n = 0; n < c.images; ++n)
      add_wide_rows(norm, da.data + n * da.image, channels,
                    (c.image + n) * pixels_per_image() + c.row * width, c.rows * width, sum, product);
  }

  // From the gradient of the activated input of `rows` pixels from the first on, side by side.
  template <class X, class D>
  void add_rows(const Normalisation& norm, void (*kernel)(const BnActBackwardRows<X, D>&, int64_t),
                const D* grad_activated, const X* values, int64_t channels, int64_t first, int64_t rows,
                float* sum, float* product) const {
    const Pixels grad(grad_);
    kernel({grad_activated, values + first * rows_.stride, grad.data + first * grad.channels,
            norm.scale.data(), norm.shift.data(), norm.mean.const_data_ptr<float>(), sum, product, channels,
            rows_.stride, grad.channels, channels, activation_},
           rows);
  }
  void add_wide_rows(const Normalisation& norm, const float* grad_activated, int64_t channels, int64_t first,
                     int64_t rows, float* sum, float* product) const {
    if (rows_.narrow)
      add_rows(norm, bf16_kernels().norm->bn_act_backward_wide, grad_activated, rows_.narrow, channels, first,
               rows, sum, product);
    else
      add_rows(norm, kernels().bn_act_backward, grad_activated, rows_.data, channels, first, rows, sum,
               product);
  }

  at::ScalarType products() const { return pairs_ ? at::kBFloat16 : at::kFloat; }

  int64_t pixels_per_image() const { return values_.size(2) * values_.size(3); }

  const at::Tensor values_;  // the output, float32 or bfloat16
  const PixelRows rows_;     // its pixels
  const bool pairs_;
  const at::Tensor grad_;
  StatisticsTerms terms_;
  Activation activation_;
};

std::vector<at::Tensor> rounded_like(const OptionalTensors& parameters, std::vector<at::Tensor> gradients) {
  for (size_t i = 0; i < gradients.size(); ++i)
    if (present(parameters.get(i))) gradients[i] = rounded_to(parameters.get(i)->scalar_type(), gradients[i]);
  return gradients;
}

struct BackwardArgs {
  const at::Tensor &grad_output, &output;
  at::TensorList weights;
  const OptionalTensors &bn_weights, &bn_biases, &means, &vars;
  const at::Tensor &mean, &var;
  double eps;
  std::string_view activation;
  const c10::List<bool>& output_mask;
};

// Everything is float32, but for the output and the input's gradient, which may be bfloat16, and for the
// weights where `pairs` of bfloat16 are multiplied. The gradient's memory may be written over where it is
// `used_up`.
DenseBlockGradients dense_block_backward_float(const BackwardArgs& a, bool pairs, bool used_up) {
  const auto layers = dense_layers(a.weights);
  const DenseBlockMask mask(a.output_mask, layers.size());
  const at::Tensor output = a.output.contiguous(at::MemoryFormat::ChannelsLast);
  DenseBlockGradientLists found(layers.size(), output);
  const auto floats = output.options().dtype(at::kFloat);
  const bool in_place = used_up && a.grad_output.is_contiguous(at::MemoryFormat::ChannelsLast);
  Backward backward(in_place ? a.grad_output : fresh_channels_last(a.grad_output), output, pairs, a.mean,
                    parse_activation("dense_block_backward", a.activation));
  for (size_t i = layers.size(); i-- > 0;) {
    const DenseLayer& layer = layers[i];
    if (!mask.conv(i).any()) continue;
    backward.finish_channels(layer.inputs, layer.growth);
    const Normalisation norm(layer_statistic(a.means, a.mean, i, layer),
                             layer_statistic(a.vars, a.var, i, layer), a.bn_weights.get(i),
                             a.bn_biases.get(i), a.eps);
    auto [weight, bias, sums] = backward.run(layer, norm, a.weights[i], mask.conv(i));
    if (mask.weight(i)) found.weights[i] = weight;
    if (mask.bias(i)) found.biases[i] = bias;
    if (!mask.below(i)) continue;
    backward.collect(norm, sums);
    if (mask.bn_bias(i)) found.bn_biases[i] = channel_tensor(sums.sum, floats);
    for (int64_t c = 0; c < layer.inputs; ++c) sums.product[c] *= norm.inverse_std[c];
    if (mask.bn_weight(i)) found.bn_weights[i] = channel_tensor(sums.product, floats);
  }
  if (!mask.input()) return found.with_input(no_gradient(output));
  backward.finish_channels(0, layers[0].inputs);
  const at::Tensor of_input = layers[0].read(backward.grad());
  const at::Tensor own = gradient_empty(of_input.sizes(), output.options(), at::MemoryFormat::ChannelsLast);
  write_images(view_of(of_input), own);
  return found.with_input(own);
}

// Leaves the gradient without elements, so that its memory is free before the caller lets go of it.
void empty_out(const at::Tensor& grad) {
  if (grad.storage().use_count() != 1) return;
  const at::AutoDispatchBelowADInplaceOrView below;
  grad.set_();
}

// On bfloat16 images.
DenseBlockGradients dense_block_backward_narrow(const BackwardArgs& a, bool used_up) {
  const bool pairs = multiplies_bfloat16();
  const std::vector<at::Tensor> weights = pairs ? a.weights.vec() : widened_kept(a.weights);
  const auto bn_weights = widened(a.bn_weights), bn_biases = widened(a.bn_biases), means = widened(a.means),
             vars = widened(a.vars);
  const at::Tensor grad = widened_kept(a.grad_output), mean = widened(a.mean), var = widened(a.var);
  if (used_up) empty_out(a.grad_output);
  // The widened gradient belongs to nobody else: its memory is used up.
  auto [of_input, of_weights, of_biases, of_bn_weights, of_bn_biases] =
      dense_block_backward_float({grad, a.output, weights, bn_weights, bn_biases, means, vars, mean, var,
                                  a.eps, a.activation, a.output_mask},
                                 pairs, /*used_up=*/true);
  const auto of_conv = a.weights[0].scalar_type();
  return {of_input, rounded_to(of_conv, std::move(of_weights)), rounded_to(of_conv, std::move(of_biases)),
          rounded_like(a.bn_weights, std::move(of_bn_weights)),
          rounded_like(a.bn_biases, std::move(of_bn_biases))};
}

template <bool kUsesUpGradient>
DenseBlockGradients dense_block_backward_cpu(const at::Tensor& grad_output, const at::Tensor& output,
                                             at::TensorList weights, const OptionalTensors& bn_weights,
                                             const OptionalTensors& bn_biases, const OptionalTensors& means,
                                             const OptionalTensors& vars, const at::Tensor& mean,
                                             const at::Tensor& var, double eps, std::string_view activation,
                                             const c10::List<bool>& output_mask) {
  const BackwardArgs args{grad_output, output, weights, bn_weights, bn_biases,  means,
                          vars,        mean,   var,     eps,        activation, output_mask};
  if (takes_widened(grad_output, {output})) return dense_block_backward_narrow(args, kUsesUpGradient);
  const bool served = is_plain_float(output) && is_plain_float(grad_output) && output.numel() &&
                      all_float(bn_weights) && all_float(bn_biases) && all_float(means) && all_float(vars);
  return served ? dense_block_backward_float(args, /*pairs=*/false, kUsesUpGradient)
                : dense_block_backward_composite(grad_output, output, weights, bn_weights, bn_biases, means,
                                                 vars, mean, var, eps, activation, output_mask);
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("dense_block_backward", TORCH_FN(dense_block_backward_cpu<false>));
  m.impl("dense_block_backward_", TORCH_FN(dense_block_backward_cpu<true>));
}

}  // namespace cnnfast::cpu
