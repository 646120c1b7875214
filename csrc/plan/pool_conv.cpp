// A pooling on the way into a 1x1 convolution, as the last branch of an Inception block begins: strips of
// pooled rows stay in cache until they are multiplied.
#include <algorithm>
#include <sstream>

#include "cpu/parallel.h"
#include "plan/lowering.h"

namespace cnnfast::plan {
namespace {

// Of the second-level cache, for a strip of pooled rows.
constexpr int64_t kStripFloats = 32 * 1024;

class PoolConv : public Step {
 public:
  PoolConv(int64_t node, bool max, cpu::PoolCall pool, const cpu::ConvGeometry& g,
           std::shared_ptr<const ConvConstants> constants, Place from, Place to)
      : Step(node, {std::move(from)}, std::move(to)),
        max_(max),
        pool_(pool),
        constants_(std::move(constants)),
        row_(g.out_width * g.in_channels),
        rows_(std::clamp<int64_t>(kStripFloats / row_, 1, g.out_height)),
        strips_((g.out_height + rows_ - 1) / rows_),
        flops_(g.flops()),
        job_(of_strip(g, rows_), {nullptr, rows_ * row_, row_, g.in_channels}, writes_.strides(),
             cpu::View{}) {}

  double flops() const override { return flops_; }
  std::string text() const override {
    std::ostringstream out;
    out << pool_text(max_, pool_) << ", " << conv_text(job_.geometry()) << " to " << size_text(writes_.size)
        << ", " << strips_ << " strips";
    return out.str();
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const auto [begin, end] = cpu::share(writes_.size.images * strips_, 1, thread, team);
    if (begin >= end) return;
    float* pooled = cpu::thread_scratch(cpu::ScratchSlot::kStrip, rows_ * row_);
    for (int64_t unit = begin; unit < end; ++unit) run_strip(memory, unit / strips_, unit % strips_, pooled);
  }

 private:
  static cpu::ConvGeometry of_strip(cpu::ConvGeometry g, int64_t rows) {
    g.images = 1;
    g.out_height = rows;
    return g;
  }
  void run_strip(const Memory& memory, int64_t image, int64_t strip, float* pooled) const {
    static const cpu::AlignedFloats none(0);
    const int64_t first = strip * rows_, last = std::min(first + rows_, writes_.size.height);
    cpu::PoolCall call = pool_;
    call.input = reads_[0].view(memory);
    call.input.data += image * call.input.image;
    call.output = {pooled - first * row_, 0, row_, call.channels};
    pool_rows(max_, call, first, last);
    const cpu::View to = writes_.view(memory);
    job_.run_pixels({constants_->weight.data(), none, constants_->shift}, pooled,
                    to.data + image * to.image + first * to.row, 0, (last - first) * writes_.size.width,
                    false);
  }

  bool max_;
  cpu::PoolCall pool_;
  std::shared_ptr<const ConvConstants> constants_;
  int64_t row_, rows_, strips_;
  double flops_;
  cpu::ConvJob job_;
};

}  // namespace

std::unique_ptr<Step> pool_conv_step(int64_t node, bool max, cpu::PoolCall pool,
                                     const cpu::ConvGeometry& geometry,
                                     std::shared_ptr<const ConvConstants> constants, Place from, Place to) {
  return std::make_unique<PoolConv>(node, max, pool, geometry, std::move(constants), std::move(from),
                                    std::move(to));
}

// Poolings that are not done with the convolution in front of them, and whose only reader is a 1x1
// convolution.
void Lowering::find_pool_convs() {
  const std::vector<int64_t> reader = only_readers();
  for (int64_t node = 0; node < static_cast<int64_t>(graph_.nodes.size()); ++node) {
    const Node& n = graph_.nodes[node];
    const int64_t conv = reader[node];
    if ((n.op != Op::kMaxPool2d && n.op != Op::kAvgPool2d) || conv < 0 || pooled_by_[n.inputs[0]] == node)
      continue;
    if (graph_.half() && !is_max_pool_as_stored(node)) continue;
    projected_[node] = gains_by_blocks(conv) && pooled_by_[conv] < 0;
  }
}

void Lowering::emit_pool_conv(int64_t node) {
  if (graph_.half()) return emit_widened_pixels(node);
  const int64_t pool = graph_.nodes[node].inputs[0];
  cpu::PoolCall call = pool_of(pool);
  call.prologue = prologue_of(pool);
  const cpu::ConvGeometry g = conv_geometry(node);
  add(pool_conv_step(node, graph_.nodes[pool].op == Op::kMaxPool2d, call, g,
                     constants_.conv_constants(node, g), place(read_by(pool)), place(node)));
}

}  // namespace cnnfast::plan
