// linear on the CPU: a convolution with one tap, where a row of the batch is a pixel.
#include "ops/linear.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/conv_job.h"
#include "cpu/pack_cache.h"
#include "cpu/paired_conv.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

constexpr double kSerialFlops = 4e5;
// Weights of a training change at every step. Packing many of them for few rows moves three times the memory
// that the product reads.
constexpr int64_t kManyWeights = 1 << 18, kFewRows = 256;

at::Tensor linear_cpu(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                      std::string_view activation) {
  const bool wide = takes_widened(input) && !multiplies_bfloat16();
  if (!wide && !is_plain_float(input)) return linear_composite(input, weight, bias, activation);
  const auto symbolic_sizes = check_linear(input, weight, bias, activation);
  std::vector<int64_t> sizes;
  for (const auto& size : symbolic_sizes) sizes.push_back(size.expect_int());
  const at::Tensor output = at::empty(sizes, input.options().dtype(at::kFloat));
  if (output.numel() == 0) return output;
  const int64_t in = weight.size(1), out = weight.size(0), rows = output.numel() / out;
  if (records_gradient() && weight.numel() > kManyWeights && rows < kFewRows)
    return rounded_to(input.scalar_type(),
                      linear_composite(widened(input), widened(weight), widened(bias), activation));
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

LinearGradients linear_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                    const at::Tensor& weight, const at::Tensor& output,
                                    std::string_view activation, std::array<bool, 3> output_mask) {
  if (multiplies_bfloat16() || !takes_widened(grad_output, {input, weight, output}))
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
