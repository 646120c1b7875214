#include "cpu/paired_chain.h"

#include <algorithm>
#include <memory>

#include "cpu/aligned_floats.h"
#include "cpu/bf16_table.h"
#include "cpu/conv16_job.h"
#include "cpu/conv2d.h"
#include "cpu/images16.h"
#include "cpu/pack_cache.h"
#include "cpu/paired_conv.h"
#include "cpu/paired_groups.h"
#include "cpu/parallel.h"
#include "cpu/pool2d.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

// Weights that every group reads stay in the second-level cache, or, of as many pixels, may come from the
// third.
constexpr int64_t kNearWeightBytes = 512 * 1024, kWeightBytes = 2 << 20, kPixelsForFarWeights = 512;

ConvGeometry geometry_of(const ChainedConv& c) {
  return conv_geometry(c.input, c.weight, c.params, c.output.sizes(), c.activation);
}

int64_t image_bytes(const ChainedConv& c) {
  return c.output[0].numel() * static_cast<int64_t>(sizeof(uint16_t));
}

class Stage {
 public:
  explicit Stage(const ChainedConv& c)
      : geometry_(geometry_of(c)),
        input_(bring_in16(
            c.input, {c.params.padding[0], c.params.padding[1], c.params.padding[0], c.params.padding[1]})),
        output_(view16_of(c.output)),
        pairs_(packed_pairs(c.weight, geometry_)),
        shift_(pack_panels(
            geometry_, present(c.bias) ? widened(*c.bias).contiguous().const_data_ptr<float>() : nullptr)) {}

  void run(int64_t first, int64_t images) const {
    ConvGeometry g = geometry_;
    g.images = images;
    Conv16Job(g, input_.view, output_, View16{})
        .run(*pairs_, shift_,
             {input_.view.data + first * input_.view.image, input_.readable, input_.beyond,
              output_.data + first * output_.image, nullptr},
             0, 1);
  }

 private:
  ConvGeometry geometry_;
  Images16 input_;
  View16 output_;
  std::shared_ptr<const AlignedFloats> pairs_;
  AlignedFloats shift_;
};

// The pooling behind the last convolution.
class PoolStage {
 public:
  PoolStage(const at::Tensor& input, const ChainedPool& pool)
      : call_{pool_call(input, pool.params, pool.output.sizes()), view16_of(input), view16_of(pool.output),
              nullptr} {}

  void run(int64_t first, int64_t images) const {
    MaxPool16Call own = call_;
    own.scratch = thread_scratch(ScratchSlot::kPooled, (bf16_kernels().max_pool_scratch(own) + 3) / 4);
    bf16_kernels().max_pool(own, first * own.window.height, (first + images) * own.window.height);
  }

 private:
  MaxPool16Call call_;
};

// A border would be a copy of what is in cache.
bool follows(const ChainedConv& c) { return c.params.padding[0] == 0 && c.params.padding[1] == 0; }

// How many convolutions, from the first on, share groups of images; how many images those have.
std::pair<size_t, int64_t> first_ones(const std::vector<ChainedConv>& chain) {
  const int64_t images = chain.front().output.size(0);
  int64_t weights = 0, largest = 1, fewest = INT64_MAX;
  std::pair<size_t, int64_t> found{0, 1};
  for (size_t i = 0; i < chain.size(); ++i) {
    const ConvGeometry g = geometry_of(chain[i]);
    if ((i > 0 && !follows(chain[i])) || chain[i].output.numel() == 0 || !multiplies_pairs(g)) break;
    weights += pairs_bytes(g);
    largest = std::max(largest, image_bytes(chain[i]));
    fewest = std::min(fewest, g.out_height * g.out_width);
    const int64_t group = images_of_group(images, largest);
    if (weights > (group * fewest < kPixelsForFarWeights ? kNearWeightBytes : kWeightBytes)) break;
    found = {i + 1, group};
  }
  return found;
}

}  // namespace

size_t paired_chain_into(const std::vector<ChainedConv>& chain, const std::optional<ChainedPool>& pool) {
  if (chain.empty()) return 0;
  const auto [convs, group] = first_ones(chain);
  const bool pools = pool && pool->output.numel() > 0 && convs == chain.size();
  const int64_t images = chain.front().output.size(0), groups = (images + group - 1) / group;
  if (convs + pools < 2 || groups < kLeastGroups) return 0;
  std::vector<std::unique_ptr<Stage>> stages;
  for (size_t i = 0; i < convs; ++i) stages.push_back(std::make_unique<Stage>(chain[i]));
  std::optional<PoolStage> pooling;
  if (pools) pooling.emplace(chain.back().output, *pool);
  parallel_team(team_size(), [&, step = group](int thread, int team, Barrier&) {
    const TileUse tiles(true);
    const auto [begin, end] = share(groups, 1, thread, team);
    for (int64_t first = begin * step; first < std::min(end * step, images); first += step) {
      const int64_t count = std::min(step, images - first);
      for (const auto& stage : stages) stage->run(first, count);
      if (pooling) pooling->run(first, count);
    }
  });
  return convs + pools;
}

}  // namespace cnnfast::cpu
