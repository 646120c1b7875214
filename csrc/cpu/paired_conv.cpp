#include "cpu/paired_conv.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cstdlib>

#include "cpu/conv16_job.h"
#include "cpu/conv2d.h"
#include "cpu/images16.h"
#include "cpu/memory_pool.h"
#include "cpu/pack_cache.h"
#include "cpu/parallel.h"
#include "cpu/planes.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

// Below this much work a second thread costs more than it saves.
constexpr double kSerialFlops = 2e6;
// Fewer channels leave most of a panel of pairs empty.
constexpr int64_t kLeastGroup = 8;

void run(const ConvGeometry& g, const Images16& input, const AlignedFloats& pairs, const AlignedFloats& shift,
         const at::Tensor& residual, const at::Tensor& output) {
  const View16 from = residual.defined() ? view16_of(residual) : View16{}, to = view16_of(output);
  const Conv16Job job(g, input.view, to, from);
  const Conv16Memory memory{input.view.data, input.readable, input.beyond, to.data, from.data};
  parallel_team(g.flops() < kSerialFlops ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const TileUse tiles(true);
    job.run(pairs, shift, memory, thread, team);
  });
}

}  // namespace

bool multiplies_bfloat16() {
  static const bool everywhere = std::getenv("CNNFAST_BF16_PAIRS") != nullptr;
  return everywhere || multiplies_by_tiles();
}

bool has_bfloat16_products() { return multiplies_bfloat16() || bf16_kernels().multiplies; }

bool multiplies_pairs(const ConvGeometry& g) {
  if (g.groups > 1 && g.group_out() < kLeastGroup) return false;
  if (multiplies_bfloat16()) return true;
  if (!bf16_kernels().multiplies) return false;
  ConvGeometry widened = g;
  widened.algorithm = trained_algorithm(g);
  return pair_cycles(g) < widened_cycles(widened);
}

namespace {

ConvGeometry geometry_of(const Conv2dArgs& a, at::IntArrayRef output_sizes) {
  return conv_geometry(a.input, a.weight, a.params, output_sizes, parse_activation("conv2d", a.activation));
}

bool pairs_serve(const Conv2dArgs& a, at::IntArrayRef output_sizes) {
  return !present(a.scale) && multiplies_pairs(geometry_of(a, output_sizes));
}

}  // namespace

void multiply_pairs_into(const Conv2dArgs& a, const at::Tensor& output) {
  const ConvGeometry g = geometry_of(a, output.sizes());
  const int64_t ph = a.params.padding[0], pw = a.params.padding[1];
  at::Tensor residual;
  if (present(a.residual))
    residual = channels_adjacent(*a.residual) ? *a.residual : channels_last_copy(*a.residual);
  const AlignedFloats shift =
      pack_panels(g, present(a.bias) ? widened(*a.bias).contiguous().const_data_ptr<float>() : nullptr);
  run(g, bring_in16(a.input, {ph, pw, ph, pw}), *packed_pairs(a.weight, g), shift, residual, output);
}

bool paired_conv2d_into(const Conv2dArgs& a, const at::Tensor& output) {
  if (!pairs_serve(a, output.sizes())) return false;
  multiply_pairs_into(a, output);
  return true;
}

at::Tensor paired_conv2d(const Conv2dArgs& a, const std::vector<c10::SymInt>& sizes) {
  const std::vector<int64_t> output_sizes = concrete(sizes);
  if (!pairs_serve(a, output_sizes)) return {};
  const at::Tensor output = output_empty(output_sizes, a.input.options(), at::MemoryFormat::ChannelsLast);
  multiply_pairs_into(a, output);
  return output;
}

}  // namespace cnnfast::cpu
