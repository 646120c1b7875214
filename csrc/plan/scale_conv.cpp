// A product with one factor per image and channel, as squeeze-excite ends, or batch norm and activation, as
// dense layers begin, and the 1x1 convolution that alone reads it: a block of pixels is scaled into near
// memory and multiplied at once.
#include <algorithm>
#include <sstream>

#include "cpu/parallel.h"
#include "plan/lowering.h"

namespace cnnfast::plan {
namespace {

// Of the second-level cache, for a block of scaled pixels.
constexpr int64_t kBlockFloats = 32 * 1024;
constexpr int64_t kBlockGrain = 48;  // pixels: whole register blocks of every panel width

class ScaleConv : public Step {
 public:
  ScaleConv(int64_t node, const Scaling& scaling, const cpu::ConvGeometry& g,
            std::shared_ptr<const ConvConstants> constants, std::vector<Place> reads, Place to)
      : Step(node, std::move(reads), std::move(to)),
        scaling_(scaling),
        residual_(scaling.per_image() ? 2 : 1),
        constants_(std::move(constants)),
        plane_(g.out_height * g.out_width),
        panels_(cpu::Panels::of(g)),
        block_(std::max<int64_t>(1, kBlockFloats / g.in_channels / kBlockGrain) * kBlockGrain),
        job_(g, {nullptr, plane_ * g.in_channels, g.out_width * g.in_channels, g.in_channels},
             writes_.strides(), has_residual() ? reads_[residual_].strides() : cpu::View{}) {}

  double flops() const override { return job_.geometry().flops(); }
  std::string text() const override {
    return (scaling_.per_image() ? "multiply, one value per channel, " : "affine, ") +
           conv_text(job_.geometry()) + " to " + size_text(writes_.size);
  }
  Constants first_constants(int thread, int team) const override {
    const int64_t first = job_.first_weight(thread, team);
    return {constants_->weight.data() + first, constants_->weight.size() - first};
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    static const cpu::AlignedFloats none(0);
    const cpu::ConvGeometry& g = job_.geometry();
    const int64_t pixels = g.images * plane_, tile = cpu::kernels().tile_pixels(panels_.vectors);
    const bool by_channels = job_.split_by_channels(team);
    const auto [begin, end] =
        by_channels ? std::pair<int64_t, int64_t>{0, pixels} : cpu::share(pixels, tile, thread, team);
    const auto [first, last] = by_channels ? cpu::share(panels_.count, 1, thread, team)
                                           : std::pair<int64_t, int64_t>{0, panels_.count};
    if (begin >= end || first >= last) return;
    const float* residual = has_residual() ? reads_[residual_].view(memory).data : nullptr;
    float* scaled = cpu::thread_scratch(cpu::ScratchSlot::kStrip, block_ * g.in_channels);
    for (int64_t at = begin; at < end; at += block_) {
      const int64_t stop = std::min(at + block_, end);
      scale(memory, at, stop, scaled);
      job_.run_part({constants_->weight.data(), none, constants_->shift}, scaled - at * g.in_channels,
                    writes_.view(memory).data, residual, {at, stop, first, last, false});
    }
  }

 private:
  bool has_residual() const { return reads_.size() > residual_; }

  // Pixels [begin, end), row by row.
  void scale(const Memory& memory, int64_t begin, int64_t end, float* scaled) const {
    const cpu::View from = reads_[0].view(memory);
    const cpu::View factor = scaling_.per_image() ? reads_[1].view(memory) : cpu::View{};
    const int64_t width = writes_.size.width;
    cpu::AffineCall call{};
    call.channels = call.output_stride = job_.geometry().in_channels;
    call.input_stride = from.pixel;
    call.scale = scaling_.scale;
    call.shift = scaling_.shift;
    call.activation = scaling_.activation;
    while (begin < end) {
      const int64_t image = begin / plane_, y = begin % plane_ / width, x = begin % width;
      const int64_t count = std::min(width - x, end - begin);
      call.input = from.data + image * from.image + y * from.row + x * from.pixel;
      if (factor.data) call.scale = factor.data + image * factor.image;
      call.output = scaled;
      cpu::kernels().affine(call, count);
      scaled += count * call.channels;
      begin += count;
    }
  }

  Scaling scaling_;
  size_t residual_;  // its position in what is read
  std::shared_ptr<const ConvConstants> constants_;
  int64_t plane_;
  cpu::Panels panels_;
  int64_t block_;
  cpu::ConvJob job_;
};

}  // namespace

std::unique_ptr<Step> scale_conv_step(int64_t node, const Scaling& scaling, const cpu::ConvGeometry& geometry,
                                      std::shared_ptr<const ConvConstants> constants,
                                      std::vector<Place> reads, Place to) {
  return std::make_unique<ScaleConv>(node, scaling, geometry, std::move(constants), std::move(reads),
                                     std::move(to));
}

void Lowering::find_scale_convs() {
  const std::vector<int64_t> reader = only_readers();
  for (size_t node = 0; node < graph_.nodes.size(); ++node) {
    const Node& n = graph_.nodes[node];
    const int64_t conv = reader[node];
    const bool product = n.op == Op::kMultiply && n.inputs.size() == 2 &&
                         !(values_[n.inputs[0]] == values_[n.inputs[1]]) &&
                         is_per_channel(values_[n.inputs[0]], values_[n.inputs[1]]);
    if (!(product || n.op == Op::kAffine) || prologue_[node] || conv < 0 ||
        graph_.nodes[conv].op != Op::kConv2d || graph_.nodes[conv].inputs[0] != static_cast<int64_t>(node))
      continue;
    if (graph_.half() && (!product || !takes_pairs_here(conv) || shuffled_by_[conv] >= 0)) continue;
    scaled_[node] = is_plain_1x1(conv) && pooled_by_[conv] < 0 && values_[conv].images > 0;
  }
}

void Lowering::emit_scale_conv(int64_t node) {
  const Node& n = graph_.nodes[node];
  const Node& product = graph_.nodes[n.inputs[0]];
  Scaling scaling{product.activation, nullptr, nullptr};
  if (product.op == Op::kAffine) {
    scaling.scale = constants_.constant(product.attr[0]);
    scaling.shift = constants_.constant(product.attr[1]);
  }
  std::vector<Place> reads;
  for (const int64_t input : product.inputs) reads.push_back(place(input));
  const cpu::ConvGeometry g = conv_geometry(node);
  if (graph_.half()) return emit_scale_conv16(node, g, product.activation, reads[0], reads[1]);
  if (n.inputs.size() == 2) reads.push_back(place(n.inputs[1]));
  add(scale_conv_step(node, scaling, g, constants_.conv_constants(node, g), std::move(reads), place(node)));
}

}  // namespace cnnfast::plan
