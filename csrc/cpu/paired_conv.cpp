#include "cpu/paired_conv.h"

#include <ATen/Functions.h>

#include <cstdlib>

#include "cpu/conv16_job.h"
#include "cpu/images16.h"
#include "cpu/memory_pool.h"
#include "cpu/pack_cache.h"
#include "cpu/parallel.h"
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

bool paired_conv2d_into(const Conv2dArgs& a, const at::Tensor& output) {
  const Conv2dParams& p = a.params;
  if (!multiplies_bfloat16() || present(a.scale) || a.weight.scalar_type() != at::kBFloat16) return false;
  if (p.groups > 1 && a.weight.size(0) / p.groups < kLeastGroup) return false;
  const int64_t ph = p.padding[0], pw = p.padding[1];
  const ConvGeometry g{a.input.size(0),
                       a.input.size(1),
                       a.weight.size(0),
                       p.groups,
                       a.weight.size(2),
                       a.weight.size(3),
                       p.stride[0],
                       p.stride[1],
                       p.dilation[0],
                       p.dilation[1],
                       output.size(2),
                       output.size(3),
                       parse_activation("conv2d", a.activation)};
  at::Tensor residual;
  if (present(a.residual))
    residual =
        channels_adjacent(*a.residual) ? *a.residual : a.residual->contiguous(at::MemoryFormat::ChannelsLast);
  const AlignedFloats shift =
      pack_panels(g, present(a.bias) ? widened(*a.bias).contiguous().const_data_ptr<float>() : nullptr);
  run(g, bring_in16(a.input, {ph, pw, ph, pw}), *packed_pairs(a.weight, g), shift, residual, output);
  return true;
}

at::Tensor paired_conv2d(const Conv2dArgs& a, const std::vector<c10::SymInt>& sizes) {
  if (!multiplies_bfloat16()) return {};
  const at::Tensor output = output_empty(concrete(sizes), a.input.options(), at::MemoryFormat::ChannelsLast);
  return paired_conv2d_into(a, output) ? output : at::Tensor();
}

}  // namespace cnnfast::cpu
