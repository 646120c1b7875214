// linear on the CPU: a convolution with one tap, where a row of the batch is a pixel.
#include "ops/linear.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/conv_job.h"
#include "cpu/pack_cache.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"

namespace cnnfast::cpu {
namespace {

constexpr double kSerialFlops = 4e5;
// Weights of a training change at every step. Packing many of them for few rows moves three times the memory
// that the product reads.
constexpr int64_t kManyWeights = 1 << 18, kFewRows = 256;

at::Tensor linear_cpu(const at::Tensor& input, const at::Tensor& weight, const OptionalTensor& bias,
                      std::string_view activation) {
  if (!is_plain_float(input)) return linear_composite(input, weight, bias, activation);
  const auto symbolic_sizes = check_linear(input, weight, bias, activation);
  std::vector<int64_t> sizes;
  for (const auto& size : symbolic_sizes) sizes.push_back(size.expect_int());
  const at::Tensor output = at::empty(sizes, input.options());
  if (output.numel() == 0) return output;
  const int64_t in = weight.size(1), out = weight.size(0), rows = output.numel() / out;
  if (records_gradient() && weight.numel() > kManyWeights && rows < kFewRows)
    return linear_composite(input, weight, bias, activation);
  const at::Tensor dense = input.contiguous();
  const ConvGeometry g{1, in, out, 1, 1, 1, 1, 1, 1, 1, 1, rows, parse_activation("linear", activation)};
  const auto packed = packed_weight(weight, g);
  const AlignedFloats scale(0);
  const AlignedFloats shift =
      present(bias) ? pack_channels(g, bias->contiguous().const_data_ptr<float>()) : AlignedFloats(0);
  const ConvJob job(g, {dense.data_ptr<float>(), rows * in, rows * in, in},
                    {output.data_ptr<float>(), rows * out, rows * out, out}, View{});
  parallel_team(g.flops() < kSerialFlops ? 1 : team_size(),
                [&](int thread, int team, Barrier&) { job.run({*packed, scale, shift}, thread, team); });
  return output;
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("linear", TORCH_FN(linear_cpu)); }

}  // namespace cnnfast::cpu
