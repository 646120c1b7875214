// A convolution and the depthwise one that alone reads it, as inverted residual blocks begin: strip by strip
// of rows and panel by panel of channels, so that the expanded image, the largest value of such networks,
// never leaves the near caches.
#include <algorithm>
#include <cstring>
#include <optional>
#include <sstream>

#include "cpu/parallel.h"
#include "plan/lowering.h"

namespace cnnfast::plan {
namespace {

// Of the second-level cache, for the rows between the two convolutions.
constexpr int64_t kRegionFloats = 48 * 1024;
// What the fewest rows may take.
constexpr int64_t kMostFloats = 1 << 17;
// Few images: enough pieces of work for some threads to share evenly.
constexpr int64_t kUnits = 16;
// Weights of a block that stay in it beside the rows.
constexpr int64_t kBlockWeightBytes = 1 << 19;
// Larger inputs do not stay in the second-level cache.
constexpr int64_t kFarFloats = 1 << 17;

// The rows between the two: what the depthwise convolution needs of them, and how they lie in memory.
struct Region {
  int64_t top, left, extent, stride;  // along the height, but `left`
  int64_t lanes, width, row;          // floats of a pixel; pixels and floats of a row

  Region(const cpu::ConvGeometry& expand, const cpu::ConvGeometry& g, int64_t pad_top, int64_t pad_left)
      : top(pad_top),
        left(pad_left),
        extent((g.kernel_h - 1) * g.dilation_h + 1),
        stride(g.stride_h),
        lanes(cpu::Panels::of(expand).lanes()),
        width(std::max(pad_left + expand.out_width,
                       (g.out_width - 1) * g.stride_w + (g.kernel_w - 1) * g.dilation_w + 1)),
        row(width * lanes) {}

  int64_t rows_for(int64_t outputs) const { return (outputs - 1) * stride + extent; }
  int64_t outputs_in(int64_t rows) const { return rows < extent ? 0 : (rows - extent) / stride + 1; }
};

int64_t outputs_per_strip(const Region& region, const cpu::ConvGeometry& g, int64_t panels) {
  int64_t outputs = std::clamp<int64_t>(region.outputs_in(kRegionFloats / region.row), 1, g.out_height);
  const auto strips = [&] { return (g.out_height + outputs - 1) / outputs; };
  while (outputs > 2 && g.images * panels * strips() < kUnits) outputs = (outputs + 1) / 2;
  return (g.out_height + strips() - 1) / strips();
}

// Rows of the padded image between the two that lie in a region.
struct Filled {
  int64_t begin = 0, end = 0;
};

cpu::ConvGeometry of_rows(cpu::ConvGeometry g, int64_t rows) {
  g.images = 1;
  g.out_height = rows;
  return g;
}

// The two convolutions, as one that gives rows of one panel's channels.
class ExpandedRows {
 public:
  // output: strides of what is written; outputs: rows written at once, at most.
  ExpandedRows(ExpansionPart expand, ExpansionPart depthwise, const Place& from, const cpu::View& output,
               int64_t outputs)
      : expand_(std::move(expand)),
        depthwise_(std::move(depthwise)),
        region_(expand_.geometry, depthwise_.geometry, depthwise_.pad_top, depthwise_.pad_left),
        capacity_(region_.rows_for(outputs)),
        input_(from.strides()),
        first_tap_(-expand_.pad_top * from.row() - expand_.pad_left * from.buffer_channels),
        far_(from.image() * from.size.images > kFarFloats),
        expand_job_(of_rows(expand_.geometry, capacity_), input_, {nullptr, 0, region_.row, region_.lanes},
                    cpu::View{}),
        depthwise_job_(of_rows(depthwise_.geometry, outputs), {nullptr, 0, region_.row, region_.lanes},
                       output, cpu::View{}) {}

  int64_t floats() const { return capacity_ * region_.row; }  // of a region
  double flops() const { return expand_.geometry.flops() + depthwise_.geometry.flops(); }
  std::string text() const {
    return conv_text(expand_.geometry) + ", then " + conv_text(depthwise_.geometry);
  }
  Constants constants_from(int64_t panel) const {
    const int64_t first = panel * region_.lanes * expand_.geometry.depth();
    return {expand_.constants->weight.data() + first, expand_.constants->weight.size() - first};
  }
  int64_t first_channel(int64_t panel) const { return panel * region_.lanes; }
  int64_t channels(int64_t panel) const {
    return std::min(region_.lanes, depthwise_.geometry.out_channels - first_channel(panel));
  }

  // Columns of padding; rows are filled between them.
  void clear_sides(float* rows) const {
    const int64_t before = region_.left * region_.lanes;
    const int64_t behind = before + expand_.geometry.out_width * region_.lanes;
    for (int64_t y = 0; y < capacity_; ++y, rows += region_.row) {
      std::fill(rows, rows + before, 0.0f);
      std::fill(rows + behind, rows + region_.row, 0.0f);
    }
  }

  // Output rows [first, last) of a panel's channels. image: the input's first pixel; output: the first
  // channel of the first pixel; filled: what `rows`, the region, holds of this image and panel, before and
  // after.
  void run(const float* image, int64_t panel, int64_t first, int64_t last, float* rows, Filled& filled,
           float* output) const {
    const Filled wanted{first * region_.stride, first * region_.stride + region_.rows_for(last - first)};
    const int64_t kept = std::max<int64_t>(0, filled.end - wanted.begin);
    if (kept)
      std::memmove(rows, rows + (wanted.begin - filled.begin) * region_.row,
                   sizeof(float) * static_cast<size_t>(kept * region_.row));
    fill(image, panel, {wanted.begin + kept, wanted.end}, rows + kept * region_.row);
    filled = wanted;
    const int64_t channel = first_channel(panel);
    depthwise_job_.run_depthwise_part(packed(depthwise_), rows, output, nullptr, channel,
                                      channel + channels(panel), 0, last - first);
  }

 private:
  // Zeros above and below the image, the first convolution's values between them.
  void fill(const float* image, int64_t panel, Filled range, float* rows) const {
    const int64_t height = expand_.geometry.out_height;
    const int64_t begin = std::clamp<int64_t>(range.begin - region_.top, 0, height);
    const int64_t end = std::clamp<int64_t>(range.end - region_.top, begin, height);
    float* const stop = rows + (range.end - range.begin) * region_.row;
    if (begin == end) return std::fill(rows, stop, 0.0f);
    float* const inside = rows + (begin + region_.top - range.begin) * region_.row;
    std::fill(rows, inside, 0.0f);
    std::fill(inside + (end - begin) * region_.row, stop, 0.0f);
    expand_job_.run_part(
        packed(expand_), image + first_tap_ + begin * expand_.geometry.stride_h * input_.row,
        inside + region_.left * region_.lanes - first_channel(panel), nullptr,
        {0, (end - begin) * expand_.geometry.out_width, panel, panel + 1, far_ && panel == 0});
  }

  static cpu::PackedConv packed(const ExpansionPart& part) {
    static const cpu::AlignedFloats none(0);
    return {part.constants->weight.data(), none, part.constants->shift};
  }

  ExpansionPart expand_, depthwise_;
  Region region_;
  int64_t capacity_;
  cpu::View input_;
  int64_t first_tap_;
  bool far_;
  cpu::ConvJob expand_job_, depthwise_job_;
};

class Expansion : public Step {
 public:
  Expansion(int64_t node, const ExpansionPart& expand, const ExpansionPart& depthwise, Place from, Place to,
            const Place* sums)
      : Step(node, {std::move(from)}, std::move(to)),
        panels_(cpu::Panels::of(expand.geometry).count),
        strips_(expansion_strips(expand, depthwise)),
        outputs_((writes_.size.height + strips_ - 1) / strips_),
        by_panel_(expand.geometry.packed_bytes() / static_cast<int64_t>(sizeof(float)) > reads_[0].image()),
        rows_(expand, depthwise, reads_[0], writes_.strides(), outputs_) {
    if (sums) also_writes_.push_back(*sums);
  }

  double flops() const override { return rows_.flops(); }
  std::string text() const override {
    std::ostringstream out;
    out << rows_.text() << " to " << size_text(writes_.size) << ", " << strips_ << " strips";
    if (!also_writes_.empty()) out << " and their sums";
    return out.str();
  }
  Constants first_constants(int thread, int team) const override {
    return rows_.constants_from(unit_of(cpu::share(units(), 1, thread, team).first).panel);
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const auto [begin, end] = cpu::share(units(), 1, thread, team);
    if (begin >= end) return;
    float* rows = cpu::thread_scratch(cpu::ScratchSlot::kStrip, rows_.floats());
    rows_.clear_sides(rows);
    Filled filled;
    for (int64_t i = begin; i < end; ++i) {
      const Unit unit = unit_of(i);
      if (unit.strip == 0) filled = {};
      run_unit(memory, unit, rows, filled);
    }
  }

 private:
  struct Unit {
    int64_t image, panel, strip;
  };

  int64_t units() const { return writes_.size.images * panels_ * strips_; }
  // Strips follow each other; of images and panels, those change first that bring less into the caches.
  Unit unit_of(int64_t i) const {
    const int64_t images = writes_.size.images, strip = i % strips_;
    i /= strips_;
    return by_panel_ ? Unit{i % images, i / images, strip} : Unit{i / panels_, i % panels_, strip};
  }

  void run_unit(const Memory& memory, const Unit& unit, float* rows, Filled& filled) const {
    const int64_t first = unit.strip * outputs_, last = std::min(first + outputs_, writes_.size.height);
    const cpu::View from = reads_[0].view(memory), to = writes_.view(memory);
    float* output = to.data + unit.image * to.image + first * to.row + rows_.first_channel(unit.panel);
    rows_.run(from.data + unit.image * from.image, unit.panel, first, last, rows, filled, output);
    if (!also_writes_.empty()) sum_rows(memory, unit, output, last - first);
  }

  void sum_rows(const Memory& memory, const Unit& unit, const float* rows, int64_t count) const {
    const cpu::View sums = also_writes_[0].view(memory);
    const int64_t channels = rows_.channels(unit.panel);
    float* to = sums.data + unit.image * sums.image + unit.strip * sums.row + rows_.first_channel(unit.panel);
    std::fill_n(to, channels, 0.0f);
    for (int64_t y = 0; y < count; ++y, rows += writes_.row())
      cpu::kernels().column_sum(rows, writes_.buffer_channels, writes_.size.width, channels, nullptr, to);
  }

  int64_t panels_, strips_, outputs_;
  bool by_panel_;
  ExpandedRows rows_;
};

// Of the second-level cache, for the rows between all three convolutions of an inverted residual block.
constexpr int64_t kBlockFloats = 128 * 1024;

// Rows of the last convolution's strips: as many as fit, and few enough for some threads; 0: none fit.
int64_t rows_of_block(const Region& region, const ExpansionPart& expand, const ExpansionPart& depthwise) {
  const cpu::ConvGeometry& g = depthwise.geometry;
  const int64_t panels = cpu::Panels::of(expand.geometry).count;
  const auto floats = [&](int64_t outputs) {
    return panels * region.rows_for(outputs) * region.row + outputs * g.out_width * g.out_channels;
  };
  int64_t outputs = 0;
  while (outputs < g.out_height && floats(outputs + 1) <= kBlockFloats) ++outputs;
  if (outputs == 0) return 0;
  const auto strips = [&] { return (g.out_height + outputs - 1) / outputs; };
  while (outputs > 2 && g.images * strips() < kUnits) --outputs;
  return (g.out_height + strips() - 1) / strips();
}

// A whole inverted residual block: what the depthwise convolution gives stays in near memory, too.
class InvertedResidual : public Step {
 public:
  InvertedResidual(int64_t node, const ExpansionPart& expand, const ExpansionPart& depthwise,
                   const ExpansionPart& project, std::vector<Place> reads, Place to)
      : Step(node, std::move(reads), std::move(to)),
        constants_(project.constants),
        outputs_(
            rows_of_block(Region(expand.geometry, depthwise.geometry, depthwise.pad_top, depthwise.pad_left),
                          expand, depthwise)),
        strips_((writes_.size.height + outputs_ - 1) / outputs_),
        panels_(cpu::Panels::of(expand.geometry).count),
        pixel_(depthwise.geometry.out_channels),
        row_(pixel_ * writes_.size.width),
        rows_(expand, depthwise, reads_[0], {nullptr, 0, row_, pixel_}, outputs_),
        project_(of_rows(project.geometry, outputs_), {nullptr, 0, row_, pixel_}, writes_.strides(),
                 reads_.size() == 2 ? reads_[1].strides() : cpu::View{}),
        flops_(rows_.flops() + project.geometry.flops()) {}

  double flops() const override { return flops_; }
  std::string text() const override {
    std::ostringstream out;
    out << rows_.text() << ", then " << conv_text(project_.geometry()) << " to " << size_text(writes_.size)
        << ", " << strips_ << " strips";
    return out.str();
  }
  Constants first_constants(int, int) const override { return rows_.constants_from(0); }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const auto [begin, end] = cpu::share(writes_.size.images * strips_, 1, thread, team);
    if (begin >= end) return;
    const int64_t region = rows_.floats();
    float* scratch = cpu::thread_scratch(cpu::ScratchSlot::kStrip, panels_ * region + outputs_ * row_);
    for (int64_t panel = 0; panel < panels_; ++panel) rows_.clear_sides(scratch + panel * region);
    std::vector<Filled> filled(static_cast<size_t>(panels_));
    for (int64_t unit = begin; unit < end; ++unit) {
      if (unit % strips_ == 0) std::fill(filled.begin(), filled.end(), Filled{});
      run_strip(memory, unit / strips_, unit % strips_, scratch, filled);
    }
  }

 private:
  void run_strip(const Memory& memory, int64_t image, int64_t strip, float* scratch,
                 std::vector<Filled>& filled) const {
    static const cpu::AlignedFloats none(0);
    const int64_t first = strip * outputs_, last = std::min(first + outputs_, writes_.size.height);
    const cpu::View from = reads_[0].view(memory), to = writes_.view(memory);
    float* narrowed = scratch + panels_ * rows_.floats();
    for (int64_t panel = 0; panel < panels_; ++panel)
      rows_.run(from.data + image * from.image, panel, first, last, scratch + panel * rows_.floats(),
                filled[static_cast<size_t>(panel)], narrowed + rows_.first_channel(panel));
    const float* residual = nullptr;
    if (reads_.size() == 2) {
      const cpu::View added = reads_[1].view(memory);
      residual = added.data + image * added.image + first * added.row;
    }
    const int64_t panels = cpu::Panels::of(project_.geometry()).count;
    project_.run_part({constants_->weight.data(), none, constants_->shift}, narrowed,
                      to.data + image * to.image + first * to.row, residual,
                      {0, (last - first) * writes_.size.width, 0, panels, false});
  }

  std::shared_ptr<const ConvConstants> constants_;
  int64_t outputs_, strips_, panels_, pixel_, row_;
  ExpandedRows rows_;
  cpu::ConvJob project_;
  double flops_;
};

}  // namespace

std::unique_ptr<Step> expansion_step(int64_t node, const ExpansionPart& expand,
                                     const ExpansionPart& depthwise, Place from, Place to,
                                     const Place* sums) {
  return std::make_unique<Expansion>(node, expand, depthwise, std::move(from), std::move(to), sums);
}

std::unique_ptr<Step> inverted_residual_step(int64_t node, const ExpansionPart& expand,
                                             const ExpansionPart& depthwise, const ExpansionPart& project,
                                             std::vector<Place> reads, Place to) {
  return std::make_unique<InvertedResidual>(node, expand, depthwise, project, std::move(reads),
                                            std::move(to));
}

int64_t expansion_strips(const ExpansionPart& expand, const ExpansionPart& depthwise) {
  const cpu::ConvGeometry& g = depthwise.geometry;
  const Region region(expand.geometry, g, depthwise.pad_top, depthwise.pad_left);
  const int64_t outputs = outputs_per_strip(region, g, cpu::Panels::of(expand.geometry).count);
  return (g.out_height + outputs - 1) / outputs;
}

bool Lowering::may_be_expanded(int64_t node) const {
  const Node& n = graph_.nodes[node];
  if (n.op != Op::kConv2d || n.inputs.size() != 1) return false;
  const int64_t input = n.inputs[0];
  const cpu::ConvGeometry g = conv_geometry(node);
  return g.algorithm.direct() && g.groups == 1 && g.images > 0 && pooled_by_[node] < 0 && !joined_[node] &&
         siblings_[node].empty() && !prologue_[input] && !projected_[input] && !scaled_[input];
}

void Lowering::find_expansions() {
  const std::vector<int64_t> reader = only_readers();
  for (int64_t node = 0; node < static_cast<int64_t>(graph_.nodes.size()); ++node) {
    const int64_t next = reader[node];
    if (next < 0 || graph_.nodes[next].op != Op::kConv2d || graph_.nodes[next].inputs.size() != 1 ||
        !may_be_expanded(node))
      continue;
    const cpu::ConvGeometry g = conv_geometry(next);
    if (!g.narrow_groups() || pooled_by_[next] >= 0) continue;
    const auto& a = graph_.nodes[next].attr;
    const Region region(conv_geometry(node), g, a[Conv2dAttr::kPadTop], a[Conv2dAttr::kPadLeft]);
    if (region.rows_for(1) * region.row <= kMostFloats) expanded_by_[node] = next;
  }
}

// Blocks that are computed as one: what lies between would leave the second-level cache, their weights do
// not.
void Lowering::find_inverted_residuals() {
  const std::vector<int64_t> reader = only_readers();
  for (int64_t node = 0; node < static_cast<int64_t>(graph_.nodes.size()); ++node) {
    const int64_t depthwise = expanded_by_[node], last = depthwise < 0 ? -1 : reader[depthwise];
    if (last < 0 || graph_.nodes[last].inputs[0] != depthwise || !is_plain_1x1(last) ||
        pooled_by_[last] >= 0 || expanded_by_[last] >= 0)
      continue;
    const cpu::ConvGeometry g = conv_geometry(depthwise), project = conv_geometry(last);
    const int64_t weights = conv_geometry(node).packed_bytes() + project.packed_bytes();
    if (!g.narrow_groups() || weights > kBlockWeightBytes ||
        g.images * g.out_height * g.out_width * g.out_channels < kFarFloats)
      continue;
    const ExpansionPart first = expansion_part(node), second = expansion_part(depthwise);
    const int64_t rows =
        rows_of_block(Region(first.geometry, g, second.pad_top, second.pad_left), first, second);
    if (rows == 0 || g.images * ((g.out_height + rows - 1) / rows) < kUnits) continue;
    expanded_by_[depthwise] = last;
  }
}

// Means over the images that such a step gives: the step adds up its strips while they are in near memory.
void Lowering::find_expansion_means() {
  for (int64_t node = 0; node < static_cast<int64_t>(graph_.nodes.size()); ++node) {
    const Node& n = graph_.nodes[node];
    if (n.op != Op::kGlobalAvgPool || prologue_[n.inputs[0]]) continue;
    const Node& conv = graph_.nodes[n.inputs[0]];
    if (conv.op != Op::kConv2d || expanded_by_[conv.inputs[0]] != n.inputs[0] ||
        !conv_geometry(n.inputs[0]).narrow_groups())
      continue;
    int& sums = sums_of_[n.inputs[0]];
    if (sums < 0) {
      sums = new_buffer(node, false);
      Buffer& b = buffers_[sums];
      b.size.height = expansion_strips(expansion_part(conv.inputs[0]), expansion_part(n.inputs[0]));
    }
  }
}

Place Lowering::place_of_sums(int64_t node) const {
  const Buffer& b = buffers_[sums_of_[node]];
  Place p;
  p.buffer = sums_of_[node];
  p.size = b.size;
  p.buffer_channels = b.channels;
  return p;
}

ExpansionPart Lowering::expansion_part(int64_t node) {
  const auto& a = graph_.nodes[node].attr;
  const cpu::ConvGeometry g = conv_geometry(node);
  return {g, a[Conv2dAttr::kPadTop], a[Conv2dAttr::kPadLeft], constants_.conv_constants(node, g)};
}

void Lowering::emit_expansion(int64_t node) {
  const Node& n = graph_.nodes[node];
  const int64_t first = n.inputs[0], before = graph_.nodes[first].inputs[0];
  if (graph_.nodes[first].op == Op::kConv2d && expanded_by_[before] == first) {
    std::vector<Place> reads{place(read_by(before))};
    if (n.inputs.size() == 2) reads.push_back(place(n.inputs[1]));
    return add(inverted_residual_step(node, expansion_part(before), expansion_part(first),
                                      expansion_part(node), std::move(reads), place(node)));
  }
  std::optional<Place> sums;
  if (sums_of_[node] >= 0) sums = place_of_sums(node);
  add(expansion_step(node, expansion_part(first), expansion_part(node), place(read_by(first)), place(node),
                     sums ? &*sums : nullptr));
}

}  // namespace cnnfast::plan
