// Convolutions of bfloat16 values by Winograd's algorithm with products of whole numbers, straight from the
// values as they are stored. A max pooling behind the convolution takes a strip while it is in cache: the
// largest of rounded values is the largest value, rounded.
#include <sstream>

#include "cpu/fixed_conv_job.h"
#include "cpu/parallel.h"
#include "plan/steps16.h"

namespace cnnfast::plan {
namespace {

using cpu::View16;

class FixedConv : public Writes16<RowStep> {
 public:
  FixedConv(int64_t node, const cpu::ConvGeometry& g, int64_t pad_top, int64_t pad_left,
            std::shared_ptr<const ConvConstants> constants, std::vector<Place> reads, Place to,
            const cpu::Prologue& prologue, std::optional<PoolBehind> behind)
      : Writes16(node, std::move(reads), std::move(to)),
        constants_(std::move(constants)),
        behind_(std::move(behind)),
        has_prologue_(prologue.scale != nullptr),
        pad_top_(pad_top),
        job_(g, {pad_top, pad_left, reads_[0].size.height, reads_[0].size.width}, reads_[0].strides16(),
             behind_ ? strip_view(nullptr, g) : writes_.strides16(),
             reads_.size() == 2 ? reads_[1].strides16() : View16{}, prologue) {}

  double flops() const override { return job_.geometry().flops(); }
  std::string text() const override {
    std::ostringstream out;
    out << (has_prologue_ ? "affine, " : "") << conv_text(job_.geometry());
    if (behind_)
      out << ", with " << pool_text(true, behind_->pool) << ", " << behind_->strips.size() << " strips";
    out << " to " << size_text(writes_.size);
    return out.str();
  }
  Constants first_constants(int, int) const override {
    return {constants_->weight.data(), constants_->weight.size()};
  }
  // Where rows are cut decides how tiles lie: whole images alone. First layers have no weights to speak of
  // and large images, which are cut between tiles.
  std::optional<RowWindow> window_of(size_t operand) const override {
    if (!is_cut()) return std::nullopt;
    const cpu::ConvGeometry& g = job_.geometry();
    return operand == 0 ? RowWindow{g.stride_h, pad_top_, g.kernel_h} : RowWindow{1, 0, 1};
  }
  int64_t rows_together() const override { return is_cut() ? job_.geometry().tile_height() : 1; }
  int64_t constant_bytes() const override {
    return constants_->weight.size() * static_cast<int64_t>(sizeof(float));
  }
  bool shares_constants() const override { return !behind_ && job_.split_by_channels(2); }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const int64_t height = writes_.size.height, first = begin / height, images = (end - begin) / height;
    if (images == 0) return compute_rows_of(memory, first, begin % height, end - first * height);
    if (behind_) {
      const auto strips = static_cast<int64_t>(behind_->strips.size());
      return run_strips(memory, first * strips, (first + images) * strips);
    }
    cpu::FixedMemory at = memory_of(memory);
    at.output += first * writes_.image();
    if (at.residual) at.residual += first * reads_[1].image();
    job_.run_rows(constants_->weight.data(), constants_->shift, at,
                  {first, images, 0, job_.geometry().out_height});
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    if (!behind_)
      return job_.run(constants_->weight.data(), constants_->shift, memory_of(memory), thread, team);
    const auto [begin, end] =
        cpu::share(writes_.size.images * static_cast<int64_t>(behind_->strips.size()), 1, thread, team);
    run_strips(memory, begin, end);
  }

 private:
  bool is_cut() const { return job_.geometry().algorithm.first_layer() && !behind_; }
  void compute_rows_of(const Memory& memory, int64_t image, int64_t begin, int64_t end) const {
    cpu::FixedMemory at = memory_of(memory);
    at.output += image * writes_.image() + begin * writes_.row();
    if (at.residual) at.residual += image * reads_[1].image() + begin * reads_[1].row();
    job_.run_rows(constants_->weight.data(), constants_->shift, at, {image, 1, begin, end});
  }
  static View16 strip_view(uint16_t* data, const cpu::ConvGeometry& g) {
    return {data, 0, g.out_width * g.out_channels, g.out_channels};
  }
  cpu::FixedMemory memory_of(const Memory& memory) const {
    return {reads_[0].view16(memory).data, writes_.view16(memory).data,
            reads_.size() == 2 ? reads_[1].view16(memory).data : nullptr};
  }

  // Units are the strips of all images.
  void run_strips(const Memory& memory, int64_t begin, int64_t end) const {
    const auto strips = static_cast<int64_t>(behind_->strips.size());
    for (int64_t unit = begin; unit < end; ++unit)
      run_strip(memory, unit / strips, behind_->strips[unit % strips]);
  }
  void run_strip(const Memory& memory, int64_t image, const Strip& strip) const {
    const cpu::ConvGeometry& g = job_.geometry();
    const int64_t row = g.out_width * g.out_channels;
    auto* rows = reinterpret_cast<uint16_t*>(
        cpu::thread_scratch(cpu::ScratchSlot::kStrip, (strip.rows() * row + 1) / 2));
    job_.run_rows(constants_->weight.data(), constants_->shift,
                  {reads_[0].view16(memory).data, rows, nullptr}, {image, 1, strip.row_begin, strip.row_end});
    View16 pooled = writes_.view16(memory);
    pooled.data += image * pooled.image;
    max_pool16(behind_->pool, strip_view(rows - strip.row_begin * row, g), pooled, strip.pool_begin,
               strip.pool_end);
  }

  std::shared_ptr<const ConvConstants> constants_;
  std::optional<PoolBehind> behind_;
  bool has_prologue_;
  int64_t pad_top_;
  cpu::FixedConvJob job_;
};

}  // namespace

std::unique_ptr<Step> fixed_conv_step(int64_t node, const cpu::ConvGeometry& geometry, int64_t pad_top,
                                      int64_t pad_left, std::shared_ptr<const ConvConstants> constants,
                                      Place from, Place to, const Place* residual,
                                      const cpu::Prologue& prologue, std::optional<PoolBehind> behind) {
  return std::make_unique<FixedConv>(node, geometry, pad_top, pad_left, std::move(constants),
                                     with_optional(std::move(from), residual), std::move(to), prologue,
                                     std::move(behind));
}

}  // namespace cnnfast::plan
