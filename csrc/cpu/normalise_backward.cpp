#include "cpu/normalise_backward.h"

#include <ATen/Functions.h>

#include "cpu/aligned_floats.h"
#include "cpu/channel_sums.h"
#include "cpu/channel_values.h"
#include "cpu/memory_pool.h"
#include "cpu/norm_backward_rows.h"
#include "cpu/normalise.h"
#include "cpu/parallel.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

// `width` sums, float64: sum_part(first_row, rows, sums) adds one part's to zeros, in float32.
template <class SumPart>
std::vector<double> sums_by_parts(int64_t rows, int64_t channels, int64_t width, SumPart&& sum_part) {
  const int64_t parts = (rows + kRowsPerPart - 1) / kRowsPerPart;
  std::vector<float> partial(static_cast<size_t>(parts * width), 0.0f);
  parallel_team(threads_for(rows * channels), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(parts, 1, thread, team);
    for (int64_t part = begin; part < end; ++part) {
      const int64_t first = part * kRowsPerPart;
      sum_part(first, std::min(kRowsPerPart, rows - first), partial.data() + part * width);
    }
  });
  return sum_of_parts(partial, width);
}

// What the gradient needs per channel: sums over the batch of the gradient before the activation, and of its
// product with the input less its mean.
struct ChannelSums {
  std::vector<double> grad, product;
};

ChannelSums backward_sums(const NormBackwardCall& call, const BackwardRows& from) {
  const int64_t channels = call.channels;
  const auto both =
      sums_by_parts(from.input.rows, channels, 2 * channels, [&](int64_t begin, int64_t n, float* partial) {
        add_backward_sums(call, from, begin, n, partial, partial + channels);
      });
  return {{both.begin(), both.begin() + channels}, {both.begin() + channels, both.end()}};
}

void backward_values(const NormBackwardCall& call, const BackwardRows& from, const OutputRows& grad_input,
                     const OutputRows& grad_residual) {
  const int64_t channels = call.channels;
  parallel_team(threads_for(from.input.rows * channels), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(from.input.rows, 1, thread, team);
    OutputRows own = grad_input;
    if (own.data) own.data += begin * channels;
    if (own.narrow) own.narrow += begin * channels;
    backward_rows(call, from, begin, end, own, grad_residual);
  });
}

// Of `size.images` images from `first_image` on.
void backward_values(const NormBackwardCall& call, const BackwardRows& from, ImageSize size,
                     int64_t first_image, const Bordered& grad_input, const Border& border,
                     const OutputRows& grad_residual) {
  const int64_t first_row = first_image * size.height;
  const View& v = grad_input.view;
  const View16& v16 = grad_input.view16;
  parallel_team(threads_for(size.images * size.height * size.width * size.channels), [&](int thread, int team,
                                                                                         Barrier&) {
    const auto [begin, end] = share(size.images * size.height, 1, thread, team);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t image = row / size.height, y = row % size.height;
      OutputRows own(v.data ? v.data + image * v.image + y * v.row : nullptr);
      if (v16.data) own.narrow = v16.data + image * v16.image + y * v16.row;
      own.channels = size.channels;
      const int64_t pixel = (first_row + row) * size.width;
      backward_rows(call, from, pixel, pixel + size.width, own, grad_residual);
    }
    const auto [first, last] = share(size.images, 1, thread, team);
    v16.data ? zero_border(v16, size, border, first, last) : zero_border(v, size, border, first, last);
  });
}

// The normalisation's derivatives per channel, in float64.
struct Slopes {
  std::vector<double> inverse_std, slope;  // 1 / sqrt(var + eps), and that times the weight

  // An empty batch has no variance, but gradients: zeros.
  Slopes(const at::Tensor& var, const OptionalTensor& weight, double eps, bool empty)
      : inverse_std(static_cast<size_t>(var.numel())), slope(inverse_std.size()) {
    const ChannelValues v(var, 1.0), w(weight, 1.0);
    for (int64_t c = 0; c < var.numel(); ++c) {
      inverse_std[c] = empty ? 0.0 : 1.0 / std::sqrt(v[c] + eps);
      slope[c] = w[c] * inverse_std[c];
    }
  }
  double of_variance(size_t c) const { return -0.5 * slope[c] * inverse_std[c] * inverse_std[c]; }
};

// The gradient's slope, tilt and offset (see NormBackwardCall) where mean and variance follow the input.
struct Coefficients {
  AlignedFloats slope, tilt, offset;

  Coefficients(const Slopes& s, const ChannelSums& sums, int64_t rows, bool through_statistics)
      : slope(static_cast<int64_t>(s.slope.size())), tilt(slope.size()), offset(slope.size()) {
    for (int64_t c = 0; c < slope.size(); ++c) {
      slope.data()[c] = static_cast<float>(s.slope[c]);
      if (!through_statistics) continue;
      offset.data()[c] = static_cast<float>(-s.slope[c] * sums.grad[c] / static_cast<double>(rows));
      tilt.data()[c] =
          static_cast<float>(2.0 * s.of_variance(c) * sums.product[c] / static_cast<double>(rows));
    }
  }
};

// Where the gradient of the input goes: pixels side by side, or some images at a time with borders.
struct InputTarget {
  OutputRows dense;
  NormGradientReader reader;
};

BatchNormGradients norm_backward(const InputTarget& target, const at::Tensor& grad_output,
                                 const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                                 const OptionalTensor& weight, const at::Tensor& output, double eps,
                                 std::string_view activation, bool batch_statistics,
                                 std::array<bool, 6> output_mask) {
  const auto [need_input, need_mean, need_var, need_weight, need_bias, need_residual] = output_mask;
  const Activation act = parse_activation("batch_norm2d_backward", activation);
  const bool again = !output_determines(act);
  const BackwardRows from{pixel_rows(grad_output), again ? PixelRows() : pixel_rows(output),
                          pixel_rows(input)};
  const PixelRows& x = from.input;
  const at::Tensor center = mean.contiguous();
  const at::Tensor grad_residual =
      need_residual ? gradient_empty(input.sizes(), input.options(), at::MemoryFormat::ChannelsLast)
                    : no_gradient(input);
  const OutputRows of_residual = need_residual && x.rows > 0 ? OutputRows(grad_residual) : OutputRows();
  NormBackwardCall call{};
  call.mean = center.const_data_ptr<float>();
  call.channels = x.channels;
  call.activation = act;
  const ScaleShift before = again ? fold(mean, var, weight, widened(bias_for_output(output)), eps)
                                  : ScaleShift{AlignedFloats(0), AlignedFloats(0)};
  if (again) {
    call.scale = before.scale.data();
    call.again_shift = before.shift.data();
  }
  const bool through_statistics = batch_statistics && need_input;
  ChannelSums sums;
  if (through_statistics || need_mean || need_var || need_weight || need_bias)
    sums = backward_sums(call, from);
  const Slopes slopes(var, weight, eps, x.rows == 0);
  const Coefficients coefficients(slopes, sums, x.rows, through_statistics && x.rows > 0);
  call.slope = coefficients.slope.data();
  call.tilt = through_statistics ? coefficients.tilt.data() : nullptr;
  call.offset = coefficients.offset.data();
  if (x.rows > 0 && target.reader)
    target.reader({[&](int64_t first, const Bordered& to, const Border& border) {
                     backward_values(call, from, image_size(to.tensor), first, to, border, of_residual);
                   },
                   [&, width = input.size(3)](int64_t row, float* to, bool own) {
                     OutputRows target(to);
                     target.channels = call.channels;
                     backward_rows(call, from, row * width, (row + 1) * width, target,
                                   own ? of_residual : OutputRows());
                   }});
  else if (x.rows > 0 && (target.dense.wanted() || need_residual))
    backward_values(call, from, target.dense, of_residual);
  auto per_channel = [&](bool wanted, auto&& value) {
    if (!wanted) return no_gradient(input);
    std::vector<double> values(static_cast<size_t>(x.channels));
    for (size_t c = 0; c < values.size(); ++c) values[c] = value(c);
    return channel_tensor(values, input.options());
  };
  return {no_gradient(input),
          per_channel(need_mean, [&](size_t c) { return -slopes.slope[c] * sums.grad[c]; }),
          per_channel(need_var, [&](size_t c) { return slopes.of_variance(c) * sums.product[c]; }),
          per_channel(need_weight, [&](size_t c) { return sums.product[c] * slopes.inverse_std[c]; }),
          per_channel(need_bias, [&](size_t c) { return sums.grad[c]; }),
          grad_residual};
}

}  // namespace

BatchNormGradients batch_norm2d_backward_float(const at::Tensor& grad_output, const at::Tensor& input,
                                               const at::Tensor& mean, const at::Tensor& var,
                                               const OptionalTensor& weight, const at::Tensor& output,
                                               double eps, std::string_view activation, bool batch_statistics,
                                               std::array<bool, 6> output_mask) {
  const at::Tensor grad_input =
      output_mask[0] ? gradient_empty(input.sizes(), input.options(), at::MemoryFormat::ChannelsLast)
                     : no_gradient(input);
  InputTarget target;
  if (output_mask[0]) target.dense = OutputRows(grad_input);
  auto found = norm_backward(target, grad_output, input, mean, var, weight, output, eps, activation,
                             batch_statistics, output_mask);
  std::get<0>(found) = grad_input;
  return found;
}

BatchNormGradients batch_norm2d_backward_over(const at::Tensor& grad_output, const at::Tensor& input,
                                              const at::Tensor& mean, const at::Tensor& var,
                                              const OptionalTensor& weight, const at::Tensor& output,
                                              double eps, std::string_view activation, bool batch_statistics,
                                              std::array<bool, 6> output_mask) {
  if (!output_mask[0] || !grad_output.is_contiguous(at::MemoryFormat::ChannelsLast))
    return batch_norm2d_backward_float(grad_output, input, mean, var, weight, output, eps, activation,
                                       batch_statistics, output_mask);
  InputTarget target;
  target.dense = OutputRows(grad_output);  // every value is read before its place is written
  auto found = norm_backward(target, grad_output, input, mean, var, weight, output, eps, activation,
                             batch_statistics, output_mask);
  std::get<0>(found) = grad_output;
  return found;
}

namespace {

// `backward` is one of the two above.
BatchNormGradients with_widened_parameters(decltype(batch_norm2d_backward_float)& backward,
                                           const at::Tensor& grad_output, const at::Tensor& input,
                                           const at::Tensor& mean, const at::Tensor& var,
                                           const OptionalTensor& weight, const at::Tensor& output, double eps,
                                           std::string_view activation, bool batch_statistics,
                                           std::array<bool, 6> output_mask) {
  const auto type = input.scalar_type();
  const auto parameters = present(weight) ? weight->scalar_type() : at::kFloat;
  return rounded_to({type, mean.scalar_type(), var.scalar_type(), parameters, parameters, type},
                    backward(grad_output, input, widened(mean), widened(var), widened(weight), output, eps,
                             activation, batch_statistics, output_mask));
}

}  // namespace

BatchNormGradients batch_norm2d_backward_widened(const at::Tensor& grad_output, const at::Tensor& input,
                                                 const at::Tensor& mean, const at::Tensor& var,
                                                 const OptionalTensor& weight, const at::Tensor& output,
                                                 double eps, std::string_view activation,
                                                 bool batch_statistics, std::array<bool, 6> output_mask) {
  return with_widened_parameters(batch_norm2d_backward_float, grad_output, input, mean, var, weight, output,
                                 eps, activation, batch_statistics, output_mask);
}

BatchNormGradients batch_norm2d_backward_widened_over(const at::Tensor& grad_output, const at::Tensor& input,
                                                      const at::Tensor& mean, const at::Tensor& var,
                                                      const OptionalTensor& weight, const at::Tensor& output,
                                                      double eps, std::string_view activation,
                                                      bool batch_statistics,
                                                      std::array<bool, 6> output_mask) {
  return with_widened_parameters(batch_norm2d_backward_over, grad_output, input, mean, var, weight, output,
                                 eps, activation, batch_statistics, output_mask);
}

BatchNormGradients batch_norm2d_backward_by_images(const NormGradientReader& reader,
                                                   const at::Tensor& grad_output, const at::Tensor& input,
                                                   const at::Tensor& mean, const at::Tensor& var,
                                                   const OptionalTensor& weight, const at::Tensor& output,
                                                   double eps, std::string_view activation,
                                                   std::array<bool, 6> output_mask) {
  InputTarget target;
  target.reader = reader;
  return norm_backward(target, grad_output, input, mean, var, weight, output, eps, activation,
                       /*batch_statistics=*/true, output_mask);
}

}  // namespace cnnfast::cpu
