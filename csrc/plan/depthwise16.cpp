// Depthwise convolution of bfloat16 values by products of pairs, from images with their padding around them;
// and convolution in groups of a few channels.
#include <sstream>

#include "cpu/depthwise16_pack.h"
#include "cpu/parallel.h"
#include "plan/steps16.h"

namespace cnnfast::plan {
namespace {

// Rows of every thread from which on it computes those that it wrote; with fewer, threads share channels.
constexpr int64_t kManyRows = 5;

class DepthwiseConv16 : public Writes16<RowStep> {
 public:
  DepthwiseConv16(int64_t node, const cpu::ConvGeometry& g, int64_t pad_top, int64_t pad_left,
                  std::shared_ptr<const ConvConstants> constants, std::vector<Place> reads, Place to)
      : Writes16(node, std::move(reads), std::move(to)),
        geometry_(g),
        pad_top_(pad_top),
        first_tap_(-pad_top * reads_[0].row() - pad_left * reads_[0].buffer_channels),
        constants_(std::move(constants)) {}

  double flops() const override { return geometry_.flops(); }
  std::string text() const override {
    std::ostringstream out;
    const cpu::ConvGeometry& g = geometry_;
    out << "conv " << g.kernel_h << "x" << g.kernel_w << ", " << g.in_channels << " channels, ";
    g.depthwise() ? out << "depthwise" : out << g.groups << " groups";
    if (g.stride_h > 1) out << " / " << g.stride_h << "x" << g.stride_w;
    out << ", pairs of bfloat16 to " << size_text(writes_.size);
    return out.str();
  }
  Constants first_constants(int, int) const override {
    return {constants_->weight.data(), constants_->weight.size()};
  }
  int64_t constant_bytes() const override {
    return constants_->weight.size() * static_cast<int64_t>(sizeof(float));
  }
  std::optional<RowWindow> window_of(size_t operand) const override {
    if (operand > 0) return RowWindow{1, 0, 1};
    return RowWindow{geometry_.stride_h, pad_top_, geometry_.kernel_h};
  }
  int64_t rows_in_turn() const override { return cpu::kDepthwiseRows; }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    cpu::bf16_kernels().depthwise(call_of(memory, 0, geometry_.out_channels), begin, end);
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const int64_t rows = geometry_.images * geometry_.out_height, channels = geometry_.out_channels;
    if (rows < kManyRows * team && channels >= cpu::kDepthwiseBlock * team) {
      const auto [first, last] = cpu::share(channels, cpu::kDepthwiseBlock, thread, team);
      return cpu::bf16_kernels().depthwise(call_of(memory, first, last), 0, rows);
    }
    RowStep::compute(memory, thread, team);
  }

 private:
  cpu::Depthwise16Call call_of(const Memory& memory, int64_t first, int64_t last) const {
    const auto channels = [&](cpu::View16 view, int64_t offset) {
      view.data += offset + first;
      return view;
    };
    cpu::Depthwise16Call call{};
    call.input = channels(reads_[0].view16(memory), first_tap_);
    call.output = channels(writes_.view16(memory), 0);
    if (reads_.size() == 2) call.residual = channels(reads_[1].view16(memory), 0);
    call.height = geometry_.out_height;
    call.width = geometry_.out_width;
    call.kernel = geometry_.kernel_w;
    call.stride = geometry_.stride_w;
    call.group = geometry_.group_in();
    call.channels = last - first;
    call.weight = cpu::values16(constants_->weight) +
                  first / cpu::kDepthwiseBlock * cpu::depthwise_block_values(call.kernel, call.group);
    call.shift = constants_->shift.data() + first;
    call.activation = geometry_.activation;
    return call;
  }

  cpu::ConvGeometry geometry_;
  int64_t pad_top_, first_tap_;
  std::shared_ptr<const ConvConstants> constants_;
};

}  // namespace

std::unique_ptr<Step> depthwise16_step(int64_t node, const cpu::ConvGeometry& geometry, int64_t pad_top,
                                       int64_t pad_left, std::shared_ptr<const ConvConstants> constants,
                                       Place from, Place to, const Place* residual) {
  return std::make_unique<DepthwiseConv16>(node, geometry, pad_top, pad_left, std::move(constants),
                                           with_optional(std::move(from), residual), std::move(to));
}

}  // namespace cnnfast::plan
