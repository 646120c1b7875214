// conv2d_batch_norm and batch_norm_act on the CPU: float32 through the kernel table, other types through
// ATen.
#include "ops/batch_norm.h"

#include <ATen/Functions.h>
#include <ATen/TensorOperators.h>
#include <torch/library.h>

#include "cpu/conv2d.h"
#include "cpu/conv_job.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"

namespace cnnfast::cpu {
namespace {

// Rows summed in float32 before they join a float64 sum: few enough to keep the error of plain summation
// small. The parts are the same for any number of threads, so results do not depend on it.
constexpr int64_t kRowsPerPart = 256;

// Sum over rows of x, or of (x - mean)^2, per channel. Rows are adjacent, `channels` floats each.
std::vector<double> channel_sums(const float* x, int64_t rows, int64_t channels, const float* mean) {
  const int64_t parts = (rows + kRowsPerPart - 1) / kRowsPerPart;
  std::vector<float> partial(static_cast<size_t>(parts * channels), 0.0f);
  parallel_team(rows * channels < (1 << 14) ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(parts, 1, thread, team);
    for (int64_t part = begin; part < end; ++part)
      kernels().column_sum(x + part * kRowsPerPart * channels, channels,
                           std::min(kRowsPerPart, rows - part * kRowsPerPart), channels, mean,
                           partial.data() + part * channels);
  });
  std::vector<double> sums(static_cast<size_t>(channels), 0.0);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t c = 0; c < channels; ++c) sums[c] += partial[part * channels + c];
  return sums;
}

at::Tensor divided(const std::vector<double>& sums, int64_t count, const at::TensorOptions& options) {
  at::Tensor t = at::empty({static_cast<int64_t>(sums.size())}, options);
  float* p = t.data_ptr<float>();
  for (size_t c = 0; c < sums.size(); ++c) p[c] = static_cast<float>(sums[c] / static_cast<double>(count));
  return t;
}

at::Tensor normalise(const at::Tensor& images, const at::Tensor& mean, const at::Tensor& var,
                     const OptionalTensor& weight, const OptionalTensor& bias, const OptionalTensor& residual,
                     double eps, Activation activation) {
  const at::Tensor output = at::empty(images.sizes(), images.options(), at::MemoryFormat::ChannelsLast);
  if (output.numel() == 0) return output;
  const int64_t channels = images.size(1);
  AlignedFloats scale(channels), shift(channels);
  const at::Tensor m = mean.contiguous(), v = var.contiguous();
  const at::Tensor w = present(weight) ? weight->contiguous() : at::Tensor();
  const at::Tensor b = present(bias) ? bias->contiguous() : at::Tensor();
  for (int64_t c = 0; c < channels; ++c) {
    const double s =
        (w.defined() ? w.const_data_ptr<float>()[c] : 1.0) / std::sqrt(v.const_data_ptr<float>()[c] + eps);
    scale.data()[c] = static_cast<float>(s);
    shift.data()[c] = static_cast<float>((b.defined() ? b.const_data_ptr<float>()[c] : 0.0) -
                                         m.const_data_ptr<float>()[c] * s);
  }
  const at::Tensor x = images.contiguous(at::MemoryFormat::ChannelsLast);
  const at::Tensor r =
      present(residual) ? residual->contiguous(at::MemoryFormat::ChannelsLast) : at::Tensor();
  const int64_t rows = x.numel() / channels;
  parallel_team(x.numel() < (1 << 14) ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(rows, 1, thread, team);
    const AffineCall call{x.const_data_ptr<float>() + begin * channels,
                          r.defined() ? r.const_data_ptr<float>() + begin * channels : nullptr,
                          output.data_ptr<float>() + begin * channels,
                          scale.data(),
                          shift.data(),
                          channels,
                          channels,
                          channels,
                          channels,
                          activation};
    kernels().affine(call, end - begin);
  });
  return output;
}

bool all_float(const at::Tensor& input, std::initializer_list<OptionalTensor> others) {
  bool all = is_plain_float(input);
  for (const auto& t : others) all = all && (!present(t) || t->scalar_type() == at::kFloat);
  return all;
}

BatchNormOutputs conv2d_batch_norm_cpu(const at::Tensor& input, const at::Tensor& weight,
                                       const OptionalTensor& bias, const OptionalTensor& bn_weight,
                                       const OptionalTensor& bn_bias, const OptionalTensor& residual,
                                       at::IntArrayRef stride, at::IntArrayRef padding,
                                       at::IntArrayRef dilation, int64_t groups, double eps,
                                       std::string_view activation) {
  if (!all_float(input, {bn_weight, bn_bias}) || input.numel() == 0)
    return conv2d_batch_norm_composite(input, weight, bias, bn_weight, bn_bias, residual, stride, padding,
                                       dilation, groups, eps, activation);
  const Conv2dParams params{stride, padding, dilation, groups};
  const auto sizes =
      check_conv2d_batch_norm({input, weight, bias, bn_weight, bn_bias, residual, params, eps, activation});
  const OptionalTensor none;
  const at::Tensor conv = conv2d_float({input, weight, none, none, none, params, "none"}, sizes);
  const int64_t channels = conv.size(1), rows = conv.numel() / channels;
  const float* values = conv.const_data_ptr<float>();
  const at::Tensor mean = divided(channel_sums(values, rows, channels, nullptr), rows, input.options());
  const at::Tensor var =
      divided(channel_sums(values, rows, channels, mean.const_data_ptr<float>()), rows, input.options());
  const at::Tensor output = normalise(conv, mean, var, bn_weight, bn_bias, residual, eps,
                                      parse_activation("conv2d_batch_norm", activation));
  return {output, conv, present(bias) ? mean + *bias : mean, var};
}

at::Tensor batch_norm_act_cpu(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                              const OptionalTensor& weight, const OptionalTensor& bias,
                              const OptionalTensor& residual, double eps, std::string_view activation) {
  if (!all_float(input, {mean, var, weight, bias}))
    return batch_norm_act_composite(input, mean, var, weight, bias, residual, eps, activation);
  check_batch_norm_act(input, mean, var, weight, bias, residual, activation);
  return normalise(input, mean, var, weight, bias, residual, eps,
                   parse_activation("batch_norm_act", activation));
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("conv2d_batch_norm", TORCH_FN(conv2d_batch_norm_cpu));
  m.impl("batch_norm_act", TORCH_FN(batch_norm_act_cpu));
}

}  // namespace cnnfast::cpu
