// Which convolutions of bfloat16 values multiply them as pairs. Others are widened to float32, or take
// products of whole numbers.
#include "cpu/bf16_table.h"
#include "cpu/depthwise16_pack.h"
#include "cpu/paired_conv.h"
#include "plan/steps16.h"

namespace cnnfast::plan {
namespace {

// Without instructions for pairs: few pixels, many weights. Reading the weights takes longer than the
// products, and pairs are half as long.
constexpr int64_t kFewPixels = 16;
constexpr int64_t kManyWeights = 1 << 18;
// Fewer channels leave most of a panel of pairs empty.
constexpr int64_t kLeastChannels = 8;

// Without pairs: on widened values, or by products of whole numbers.
double other_cycles(const cpu::ConvGeometry& g) {
  return g.algorithm.fixed ? cpu::conv_cycles(g, g.algorithm) : cpu::widened_cycles(g);
}

}  // namespace

bool takes_pairs(const cpu::ConvGeometry& g) {
  if (cpu::takes_depthwise_pairs(g)) return true;
  if (g.group_out() < kLeastChannels && g.groups > 1) return false;
  if (cpu::multiplies_bfloat16()) return true;
  if (cpu::bf16_kernels().multiplies) return cpu::pair_cycles(g) < other_cycles(g);
  return g.images * g.out_height * g.out_width <= kFewPixels && g.out_channels * g.depth() >= kManyWeights;
}

}  // namespace cnnfast::plan
