#include "plan/zones.h"

#include <algorithm>
#include <memory>
#include <sstream>

#include "plan/lowering.h"

namespace cnnfast::plan {
namespace {

// What one zone more costs: its weights are packed by themselves, and its pixels do not fill blocks.
constexpr double kZoneCycles = 2000;
// Zones have weights of their own, of all convolutions of a network together.
constexpr double kLeastGain = 0.75;

std::vector<Reach> reaches(int64_t outputs, int64_t inputs, int64_t pad, int64_t stride, int64_t dilation,
                           int64_t taps) {
  std::vector<Reach> found;
  for (int64_t y = 0; y < outputs; ++y) {
    int64_t first = 0, last = taps;
    const int64_t from = y * stride - pad;
    while (first < taps && from + first * dilation < 0) ++first;
    while (last > first && from + (last - 1) * dilation >= inputs) --last;
    const Reach own{y, y + 1, first, last - first};
    const bool same =
        !found.empty() && found.back().first_tap == own.first_tap && found.back().taps == own.taps;
    if (same)
      ++found.back().end;
    else
      found.push_back(own);
  }
  return found;
}

class ZonedConv : public Step {
 public:
  ZonedConv(int64_t node, const cpu::ConvGeometry& g, const PaddedImage& image,
            const std::vector<Zone>& zones, std::vector<std::shared_ptr<const ConvConstants>> constants,
            std::vector<Place> reads, Place to)
      : Step(node, std::move(reads), std::move(to)), text_(conv_text(g)), constants_(std::move(constants)) {
    const cpu::View residual = reads_.size() == 2 ? reads_[1].strides() : cpu::View{};
    for (const Zone& z : zones) {
      parts_.push_back({z,
                        cpu::ConvJob(zone_geometry(g, z), reads_[0].strides(), writes_.strides(), residual),
                        z.rows.begin * g.stride_h - image.pad_top + z.rows.first_tap * g.dilation_h,
                        z.columns.begin * g.stride_w - image.pad_left + z.columns.first_tap * g.dilation_w});
    }
  }

  double flops() const override {
    double sum = 0;
    for (const Part& part : parts_) sum += part.job.geometry().flops();
    return sum;
  }
  std::string text() const override {
    return text_ + ", in " + std::to_string(parts_.size()) + " zones, to " + size_text(writes_.size);
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const cpu::View from = reads_[0].view(memory), to = writes_.view(memory);
    const cpu::View added = reads_.size() == 2 ? reads_[1].view(memory) : cpu::View{};
    for (size_t i = 0; i < parts_.size(); ++i) {
      const Part& part = parts_[i];
      const int64_t y = part.zone.rows.begin, x = part.zone.columns.begin;
      part.job.run_at({constants_[i]->weight, kNoScale, constants_[i]->shift},
                      from.data + part.row * from.row + part.column * from.pixel,
                      to.data + y * to.row + x * to.pixel,
                      added.data ? added.data + y * added.row + x * added.pixel : nullptr, thread, team);
    }
  }

 private:
  // Where the first tap of the zone's first pixel lies in the input.
  struct Part {
    Zone zone;
    cpu::ConvJob job;
    int64_t row, column;
  };
  static inline const cpu::AlignedFloats kNoScale{0};
  std::string text_;
  std::vector<std::shared_ptr<const ConvConstants>> constants_;
  std::vector<Part> parts_;
};

}  // namespace

std::vector<Zone> zones_of(const cpu::ConvGeometry& g, const PaddedImage& image) {
  const auto rows = reaches(g.out_height, image.height, image.pad_top, g.stride_h, g.dilation_h, g.kernel_h);
  const auto columns =
      reaches(g.out_width, image.width, image.pad_left, g.stride_w, g.dilation_w, g.kernel_w);
  std::vector<Zone> zones;
  for (const Reach& r : rows)
    for (const Reach& c : columns) {
      if (r.taps == 0 || c.taps == 0) return {};
      zones.push_back({r, c});
    }
  return zones;
}

cpu::ConvGeometry zone_geometry(const cpu::ConvGeometry& geometry, const Zone& zone) {
  cpu::ConvGeometry g = geometry;
  g.algorithm = {};
  g.kernel_h = zone.rows.taps;
  g.kernel_w = zone.columns.taps;
  g.out_height = zone.rows.end - zone.rows.begin;
  g.out_width = zone.columns.end - zone.columns.begin;
  return g;
}

bool gains_by_zones(const cpu::ConvGeometry& g, const std::vector<Zone>& zones) {
  if (zones.size() < 2 &&
      (zones.empty() || zones[0].rows.taps * zones[0].columns.taps == g.kernel_h * g.kernel_w))
    return false;
  double cycles = 0;
  for (const Zone& z : zones) {
    const cpu::ConvGeometry part = zone_geometry(g, z);
    cycles += cpu::conv_cycles(part, part.algorithm) + kZoneCycles;
  }
  return cycles < kLeastGain * cpu::conv_cycles(g, g.algorithm);
}

void Lowering::find_zones(int64_t node) {
  using A = Conv2dAttr;
  const auto& a = graph_.nodes[node].attr;
  const cpu::ConvGeometry g = conv_geometry(node);
  if (graph_.half() || g.groups != 1 || (g.dilation_h == 1 && g.dilation_w == 1)) return;
  const Value& in = values_[graph_.nodes[node].inputs[0]];
  std::vector<Zone> zones = zones_of(g, {in.height, in.width, a[A::kPadTop], a[A::kPadLeft]});
  if (!gains_by_zones(g, zones)) return;
  zones_[node] = std::move(zones);
  algorithm_[node] = {};
}

void Lowering::emit_zones(int64_t node) {
  using A = Conv2dAttr;
  const Node& n = graph_.nodes[node];
  const cpu::ConvGeometry g = conv_geometry(node);
  const Value& in = values_[n.inputs[0]];
  std::vector<std::shared_ptr<const ConvConstants>> constants;
  for (const Zone& z : zones_[node])
    constants.push_back(
        constants_.window_constants(node, zone_geometry(g, z), z.rows.first_tap, z.columns.first_tap));
  std::vector<Place> reads{place(n.inputs[0])};
  if (n.inputs.size() == 2) reads.push_back(place(n.inputs[1]));
  add(std::make_unique<ZonedConv>(node, g,
                                  PaddedImage{in.height, in.width, n.attr[A::kPadTop], n.attr[A::kPadLeft]},
                                  zones_[node], std::move(constants), std::move(reads), place(node)));
}

}  // namespace cnnfast::plan
