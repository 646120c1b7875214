#include "cpu/paired_input_grad.h"

#include <ATen/Functions.h>

#include <cstring>

#include "cpu/conv16_job.h"
#include "cpu/memory_pool.h"
#include "cpu/pack_cache.h"
#include "cpu/paired_conv.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

// Below this much work a second thread costs more than it saves.
constexpr double kSerialFlops = 2e6;
// Groups of fewer channels leave most of a panel of pairs empty.
constexpr int64_t kLeastGroup = 8;

}  // namespace

bool PairedInputGradient::serves(const at::Tensor& weight, const Conv2dParams& p) {
  return has_phases(p) &&
         (p.groups == 1 || std::min(weight.size(1), weight.size(0) / p.groups) >= kLeastGroup);
}

namespace {

int64_t joined_pixels(int64_t channels, int64_t columns) {
  int64_t pixels = kHalfPanel / channels;
  while (pixels > 1 && columns % pixels) --pixels;
  return std::max<int64_t>(1, pixels);
}

}  // namespace

bool PairedInputGradient::joins(const at::Tensor& weight, const Conv2dParams& p, int64_t columns) {
  return !multiplies_by_tiles() && p.groups == 1 && p.stride[0] == 1 && p.stride[1] == 1 &&
         p.dilation[1] == 1 && joined_pixels(weight.size(1), columns) > 1;
}

PairedInputGradient::PairedInputGradient(const at::Tensor& input, const at::Tensor& weight,
                                         const Conv2dParams& params, at::IntArrayRef output_sizes)
    : input_(input),
      weight_(params.groups == 1 ? widened(weight) : swapped_groups(widened(weight), params.groups)),
      params_(params),
      parts_(input.sizes(), weight.sizes(), params, output_sizes, InputGradientParts::Values::kPairs) {
  if (joins(weight, params, input.size(3))) join_pixels();
}

void PairedInputGradient::join_pixels() {
  ConvGeometry& g = parts_.parts.front().geometry;
  joined_ = joined_pixels(g.out_channels, g.out_width);
  g.out_channels *= joined_;
  g.kernel_w += joined_ - 1;
  g.stride_w = joined_;
  g.out_width /= joined_;
}

// Inputs of every joined pixel x outputs x height x width of the wider kernel, turned.
at::Tensor PairedInputGradient::joined_weight() const {
  const ConvGeometry& g = parts_.parts.front().geometry;
  const at::Tensor turned = weight_.transpose(0, 1).flip({2, 3});
  const int64_t channels = turned.size(0);
  at::Tensor wide = at::zeros({g.out_channels, g.in_channels, g.kernel_h, g.kernel_w}, turned.options());
  for (int64_t i = 0; i < joined_; ++i)
    wide.narrow(0, i * channels, channels).narrow(3, i, turned.size(3)).copy_(turned);
  return wide;
}

void PairedInputGradient::pack() {
  if (joined_ > 1) {
    const at::Tensor wide = joined_weight();
    packed_.push_back(
        pack_pairs(parts_.parts.front().geometry, wide.const_data_ptr<float>(), weight_strides(wide)));
    return;
  }
  const WeightStrides s = weight_strides(weight_);
  const bool swapped = params_.groups == 1;  // read with the channels in each other's place
  const WeightStrides turned{swapped ? s.in : s.out, swapped ? s.out : s.in, -params_.stride[0] * s.row,
                             -params_.stride[1] * s.column};
  for (const InputGradientPart& part : parts_.parts)
    packed_.push_back(pack_pairs(
        part.geometry,
        weight_.const_data_ptr<float>() + part.rows.last * s.row + part.columns.last * s.column, turned));
}

void PairedInputGradient::run_images(const Images16& grad, int64_t images, const View16& to, int thread,
                                     int team) const {
  const AlignedFloats no_shift(0);
  for (size_t i = 0; i < packed_.size(); ++i) {
    const InputGradientPart& part = parts_.parts[i];
    View16 target = to;
    target.data += part.rows.first * to.row + part.columns.first * to.pixel;
    target.row *= params_.stride[0];
    target.pixel *= params_.stride[1] * joined_;
    const uint16_t* from = grad.view.data + (parts_.border.top + part.rows.lowest) * grad.view.row +
                           (parts_.border.left + part.columns.lowest) * grad.view.pixel;
    ConvGeometry g = part.geometry;
    g.images = images;
    Conv16Job(g, grad.view, target, View16{})
        .run(packed_[i], no_shift, {from, grad.readable, grad.beyond, target.data, nullptr}, thread, team);
  }
}

at::Tensor PairedInputGradient::in_layout(const at::Tensor& result) const {
  const bool same = channels_adjacent(input_) && input_.is_contiguous(at::MemoryFormat::ChannelsLast);
  return same ? result : at::empty_like(input_).copy_(result);
}

at::Tensor PairedInputGradient::run(const Images16& grad) {
  const at::Tensor result = gradient_empty(input_.sizes(), input_.options(), at::MemoryFormat::ChannelsLast);
  const View16 to = view16_of(result);
  pack();
  double flops = 0;
  for (const InputGradientPart& part : parts_.parts) flops += part.geometry.flops();
  parallel_team(flops < kSerialFlops ? 1 : team_size(), [&](int thread, int team, Barrier& barrier) {
    if (!covers_all()) {
      const auto [begin, end] = share(result.numel(), 1024, thread, team);
      std::memset(to.data + begin, 0, sizeof(uint16_t) * static_cast<size_t>(end - begin));
      barrier.wait();
    }
    const TileUse tiles(true);
    run_images(grad, input_.size(0), to, thread, team);
  });
  return in_layout(result);
}

}  // namespace cnnfast::cpu
