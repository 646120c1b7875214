#include "plan/zones.h"

#include <algorithm>
#include <memory>
#include <sstream>

#include "cpu/conv16_job.h"
#include "plan/lowering.h"
#include "plan/steps16.h"

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

using ZoneConstants = std::vector<std::shared_ptr<const ConvConstants>>;

// Where a zone begins: its first tap in the input, its first pixel in the output.
struct Corner {
  int64_t in_row, in_column, row, column;
  Corner(const cpu::ConvGeometry& g, const PaddedImage& image, const Zone& z)
      : in_row(z.rows.begin * g.stride_h - image.pad_top + z.rows.first_tap * g.dilation_h),
        in_column(z.columns.begin * g.stride_w - image.pad_left + z.columns.first_tap * g.dilation_w),
        row(z.rows.begin),
        column(z.columns.begin) {}
  template <class V>
  auto* in(const V& v) const {
    return v.data + in_row * v.row + in_column * v.pixel;
  }
  template <class V>
  auto* out(const V& v) const {
    return v.data + row * v.row + column * v.pixel;
  }
};

template <class Job>
struct Part {
  Corner corner;
  Job job;
};

template <class Parts>
double flops_of(const Parts& parts) {
  double sum = 0;
  for (const auto& part : parts) sum += part.job.geometry().flops();
  return sum;
}

template <class Parts>
std::string text_of(const std::string& conv, const Parts& parts, const Place& to) {
  return conv + ", in " + std::to_string(parts.size()) + " zones, to " + size_text(to.size);
}

class ZonedConv : public Step {
 public:
  ZonedConv(int64_t node, const cpu::ConvGeometry& g, const PaddedImage& image,
            const std::vector<Zone>& zones, ZoneConstants constants, std::vector<Place> reads, Place to)
      : Step(node, std::move(reads), std::move(to)), text_(conv_text(g)), constants_(std::move(constants)) {
    const cpu::View residual = reads_.size() == 2 ? reads_[1].strides() : cpu::View{};
    for (const Zone& z : zones)
      parts_.push_back({Corner(g, image, z),
                        cpu::ConvJob(zone_geometry(g, z), reads_[0].strides(), writes_.strides(), residual)});
  }
  double flops() const override { return flops_of(parts_); }
  std::string text() const override { return text_of(text_, parts_, writes_); }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const cpu::View from = reads_[0].view(memory), to = writes_.view(memory);
    const cpu::View added = reads_.size() == 2 ? reads_[1].view(memory) : cpu::View{};
    for (size_t i = 0; i < parts_.size(); ++i) {
      const Corner& at = parts_[i].corner;
      parts_[i].job.run_at({constants_[i]->weight, kNoScale, constants_[i]->shift}, at.in(from), at.out(to),
                           added.data ? at.out(added) : nullptr, thread, team);
    }
  }

 private:
  static inline const cpu::AlignedFloats kNoScale{0};
  std::string text_;
  ZoneConstants constants_;
  std::vector<Part<cpu::ConvJob>> parts_;
};

// The same of bfloat16 values, by products of pairs.
class ZonedPairs : public Writes16<Step> {
 public:
  ZonedPairs(int64_t node, const cpu::ConvGeometry& g, const PaddedImage& image,
             const std::vector<Zone>& zones, ZoneConstants constants, std::vector<Place> reads, Place to)
      : Writes16(node, std::move(reads), std::move(to)),
        text_(conv_text(g)),
        constants_(std::move(constants)) {
    const cpu::View16 residual = reads_.size() == 2 ? reads_[1].strides16() : cpu::View16{};
    for (const Zone& z : zones)
      parts_.push_back({Corner(g, image, z), cpu::Conv16Job(zone_geometry(g, z), reads_[0].strides16(),
                                                            writes_.strides16(), residual)});
  }
  double flops() const override { return flops_of(parts_); }
  std::string text() const override { return text_of(text_ + ", pairs of bfloat16", parts_, writes_); }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const Place& place = reads_[0];
    const auto* buffer = reinterpret_cast<const uint16_t*>(memory.buffers[place.buffer]);
    const cpu::View16 from = place.view16(memory), to = writes_.view16(memory);
    const cpu::View16 added = reads_.size() == 2 ? reads_[1].view16(memory) : cpu::View16{};
    const cpu::TileUse tiles(true);
    for (size_t i = 0; i < parts_.size(); ++i) {
      const Corner& at = parts_[i].corner;
      parts_[i].job.run(constants_[i]->weight, constants_[i]->shift,
                        {at.in(from), buffer, buffer + place.size.images * place.image(), at.out(to),
                         added.data ? at.out(added) : nullptr},
                        thread, team);
    }
  }

 private:
  std::string text_;
  ZoneConstants constants_;
  std::vector<Part<cpu::Conv16Job>> parts_;
};

template <class Zoned>
std::unique_ptr<Step> make_zoned(int64_t node, const cpu::ConvGeometry& g, const PaddedImage& image,
                                 const std::vector<Zone>& zones, ZoneConstants constants,
                                 std::vector<Place> reads, Place to) {
  return std::make_unique<Zoned>(node, g, image, zones, std::move(constants), std::move(reads),
                                 std::move(to));
}

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

bool gains_by_zones(const cpu::ConvGeometry& g, const std::vector<Zone>& zones, bool pairs) {
  if (zones.size() < 2 &&
      (zones.empty() || zones[0].rows.taps * zones[0].columns.taps == g.kernel_h * g.kernel_w))
    return false;
  const auto cycles_of = [&](const cpu::ConvGeometry& part) {
    return pairs ? cpu::pair_cycles(part) : cpu::conv_cycles(part, part.algorithm);
  };
  double cycles = 0;
  for (const Zone& z : zones) cycles += cycles_of(zone_geometry(g, z)) + kZoneCycles;
  return cycles < kLeastGain * cycles_of(g);
}

void Lowering::find_zones(int64_t node) {
  using A = Conv2dAttr;
  const auto& a = graph_.nodes[node].attr;
  const cpu::ConvGeometry g = conv_geometry(node);
  if (g.groups != 1 || (g.dilation_h == 1 && g.dilation_w == 1)) return;
  if (graph_.half() && !takes_pairs_here(node)) return;  // widened strips have their padding around them
  const Value& in = values_[graph_.nodes[node].inputs[0]];
  std::vector<Zone> zones = zones_of(g, {in.height, in.width, a[A::kPadTop], a[A::kPadLeft]});
  if (!gains_by_zones(g, zones, graph_.half())) return;
  zones_[node] = std::move(zones);
  algorithm_[node] = {};
}

void Lowering::emit_zones(int64_t node) {
  using A = Conv2dAttr;
  const Node& n = graph_.nodes[node];
  const cpu::ConvGeometry g = conv_geometry(node);
  const Value& in = values_[n.inputs[0]];
  ZoneConstants constants;
  const WeightForm form = graph_.half() ? WeightForm::kPairs : WeightForm::kFloat;
  for (const Zone& z : zones_[node])
    constants.push_back(
        constants_.window_constants(node, zone_geometry(g, z), z.rows.first_tap, z.columns.first_tap, form));
  std::vector<Place> reads{place(n.inputs[0])};
  if (n.inputs.size() == 2) reads.push_back(place(n.inputs[1]));
  const PaddedImage image{in.height, in.width, n.attr[A::kPadTop], n.attr[A::kPadLeft]};
  const auto make = graph_.half() ? make_zoned<ZonedPairs> : make_zoned<ZonedConv>;
  add_step(make(node, g, image, zones_[node], std::move(constants), std::move(reads), place(node)));
}

}  // namespace cnnfast::plan
