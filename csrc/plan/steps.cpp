#include "plan/steps.h"

#include <algorithm>
#include <cstring>
#include <map>
#include <optional>
#include <sstream>

#include "cpu/box_mean.h"
#include "cpu/parallel.h"

namespace cnnfast::plan {
namespace {

using cpu::View;

class CopyIn : public Step {
 public:
  CopyIn(int64_t node, size_t input, Place to) : Step(node, {}, std::move(to)), input_(input) {}
  std::string text() const override { return "copy in " + size_text(writes_.size); }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const External& source = memory.inputs[input_];
    const auto [begin, end] = rows(thread, team);
    cpu::copy_in(source.data, source.strides, writes_.size, writes_.view(memory), begin, end);
  }

 private:
  size_t input_;
};

// Into another buffer, or into an output tensor; flattened images are written in C, H, W order.
class CopyOut : public Step {
 public:
  CopyOut(int64_t node, Place from, Place to, bool flatten)
      : Step(node, {std::move(from)}, std::move(to)), flatten_(flatten) {}
  std::string text() const override { return (flatten_ ? "flatten " : "copy ") + size_text(reads_[0].size); }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const cpu::ImageSize size = reads_[0].size;
    const View to = writes_.view(memory);
    const int64_t plane = size.height * size.width;
    const cpu::TensorStrides strides = flatten_
                                           ? cpu::TensorStrides{plane * size.channels, plane, size.width, 1}
                                           : cpu::TensorStrides{to.image, 1, to.row, to.pixel};
    const auto [begin, end] = cpu::share(size.images * size.height, 1, thread, team);
    cpu::copy_out(reads_[0].view(memory), size, to.data, strides, begin, end);
  }

 private:
  bool flatten_;
};

}  // namespace

std::string conv_text(const cpu::ConvGeometry& g) {
  std::ostringstream out;
  out << "conv " << g.kernel_h << "x" << g.kernel_w;
  if (g.stride_h != 1 || g.stride_w != 1) out << " / " << g.stride_h << "x" << g.stride_w;
  if (g.groups != 1) out << " groups " << g.groups;
  out << ", " << g.in_channels << " channels, ";
  if (g.algorithm.direct())
    out << "direct";
  else
    out << "winograd " << (g.line() ? "lines of " : "tiles of ") << g.algorithm.tile
        << (g.algorithm.fixed ? " in 16-bit fixed point" : "");
  out << ", panel of " << cpu::Panels::of(g).lanes();
  return out.str();
}

std::string pool_text(bool max, const cpu::PoolCall& pool) {
  std::ostringstream out;
  out << (pool.prologue.scale ? "affine, " : "") << (max ? "max" : "average") << " pool " << pool.kernel_h
      << "x" << pool.kernel_w << " / " << pool.stride_h << "x" << pool.stride_w;
  return out.str();
}

namespace {

class Conv : public Step {
 public:
  Conv(int64_t node, const cpu::ConvGeometry& g, int64_t pad_top, int64_t pad_left,
       std::shared_ptr<const ConvConstants> constants, std::vector<Place> reads, Place to,
       const cpu::Prologue& prologue)
      : Step(node, std::move(reads), std::move(to)),
        constants_(std::move(constants)),
        job_(g, reads_[0].strides(), writes_.strides(), reads_.size() == 2 ? reads_[1].strides() : View{},
             prologue),
        has_prologue_(prologue.scale != nullptr),
        first_tap_(-pad_top * reads_[0].row() - pad_left * reads_[0].buffer_channels) {}

  double flops() const override { return job_.geometry().flops(); }
  std::string text() const override {
    return (has_prologue_ ? "affine, " : "") + conv_text(job_.geometry()) + " to " + size_text(writes_.size);
  }
  Constants first_constants(int thread, int team) const override {
    const int64_t first = job_.first_weight(thread, team);
    return {constants_->weight.data() + first, constants_->weight.size() - first};
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const float* residual = reads_.size() == 2 ? reads_[1].view(memory).data : nullptr;
    job_.run_at({constants_->weight, kNoScale, constants_->shift}, reads_[0].view(memory).data + first_tap_,
                writes_.view(memory).data, residual, thread, team);
  }

 private:
  static inline const cpu::AlignedFloats kNoScale{0};
  std::shared_ptr<const ConvConstants> constants_;
  cpu::ConvJob job_;
  bool has_prologue_;
  int64_t first_tap_;
};

class Pool : public RowStep {
 public:
  Pool(int64_t node, bool max, cpu::PoolCall call, Place from, Place to)
      : RowStep(node, {std::move(from)}, std::move(to)), max_(max), call_(call) {}
  std::string text() const override { return pool_text(max_, call_) + " to " + size_text(writes_.size); }
  std::optional<RowWindow> window_of(size_t) const override {
    return RowWindow{call_.stride_h, call_.pad_h, (call_.kernel_h - 1) * call_.dilation_h + 1};
  }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    cpu::PoolCall call = call_;
    call.input = reads_[0].view(memory);
    call.output = writes_.view(memory);
    pool_rows(max_, call, begin, end);
  }

 private:
  bool max_;
  cpu::PoolCall call_;
};

// Inputs of more values do not stay in the second-level cache.
constexpr int64_t kFarFloats = 1 << 17;

cpu::LrnCall lrn_call(const LrnParams& p, const View& from, const View& to, int64_t channels, int64_t height,
                      int64_t width) {
  return {from,
          to,
          channels,
          height,
          width,
          p.size,
          static_cast<float>(p.alpha),
          static_cast<float>(p.beta),
          static_cast<float>(p.k)};
}

// Each thread takes strips of rows: the convolution's rows stay in its cache until they are pooled.
class ConvPool : public Step {
 public:
  ConvPool(int64_t node, const cpu::ConvGeometry& g, int64_t pad_top, int64_t pad_left,
           std::shared_ptr<const ConvConstants> constants, std::vector<Strip> strips, const LrnParams* norm,
           bool max, const cpu::PoolCall& pool, Place from, Place to)
      : Step(node, {std::move(from)}, std::move(to)),
        constants_(std::move(constants)),
        geometry_(g),
        strips_(std::move(strips)),
        norm_(norm ? std::optional<LrnParams>(*norm) : std::nullopt),
        max_(max),
        pool_(pool),
        first_tap_(-pad_top * reads_[0].row() - pad_left * reads_[0].buffer_channels) {
    for (size_t i = 0; i < strips_.size(); ++i) {
      const int64_t rows = strips_[i].rows();
      add_job(rows);
      add_job(rows - rows_kept(i));
      scratch_ = std::max(scratch_, rows * row_floats());
    }
  }

  double flops() const override { return geometry_.flops(); }
  std::string text() const override {
    std::ostringstream out;
    out << conv_text(geometry_) << " with " << (norm_ ? "local response norm and " : "")
        << pool_text(max_, pool_) << " to " << size_text(writes_.size) << ", " << strips_.size() << " strips";
    return out.str();
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const auto count = static_cast<int64_t>(strips_.size());
    const auto [begin, end] = cpu::share(writes_.size.images * count, 1, thread, team);
    if (begin >= end) return;
    float* rows = cpu::thread_scratch(cpu::ScratchSlot::kStrip, norm_ ? 2 * scratch_ : scratch_);
    for (int64_t unit = begin; unit < end; ++unit) {
      const auto strip = static_cast<size_t>(unit % count);
      run_strip(memory, unit / count, strip, unit == begin ? 0 : rows_kept(strip), rows);
    }
  }

 private:
  int64_t row_floats() const { return geometry_.out_width * geometry_.out_channels; }
  void add_job(int64_t rows) {
    if (jobs_.count(rows)) return;
    cpu::ConvGeometry part = geometry_;
    part.images = 1;
    part.out_height = rows;
    part.far_input = reads_[0].image() * geometry_.images > kFarFloats;
    const View strip{nullptr, rows * row_floats(), row_floats(), geometry_.out_channels};
    jobs_.emplace(rows, cpu::ConvJob(part, reads_[0].strides(), strip, View{}));
  }
  // The first rows that the strip before this one has computed, too. Not of Winograd's algorithm: rows would
  // lie elsewhere in its tiles than where the strip is a thread's first, and differ in their last bits.
  int64_t rows_kept(size_t strip) const {
    if (strip == 0 || !geometry_.algorithm.direct()) return 0;
    const int64_t kept = strips_[strip - 1].row_end - strips_[strip].row_begin;
    return kept > 0 && kept < strips_[strip].rows() ? kept : 0;
  }

  // kept: rows that `rows` holds of the strip before.
  void run_strip(const Memory& memory, int64_t image, size_t number, int64_t kept, float* rows) const {
    const Strip& strip = strips_[number];
    const int64_t row = row_floats();
    if (kept > 0)
      std::memmove(rows, rows + (strip.row_begin - strips_[number - 1].row_begin) * row,
                   static_cast<size_t>(kept * row) * sizeof(float));
    const View in = reads_[0].view(memory);
    const float* first =
        in.data + first_tap_ + image * in.image + (strip.row_begin + kept) * geometry_.stride_h * in.row;
    jobs_.at(strip.rows() - kept)
        .run_at({constants_->weight, kNoScale, constants_->shift}, first, rows + kept * row, nullptr, 0, 1);
    cpu::PoolCall call = pool_;
    if (norm_) {
      const View computed{rows, 0, row, geometry_.out_channels};
      rows += scratch_;  // a channel's neighbours are read as they were
      const View normed{rows, 0, row, geometry_.out_channels};
      cpu::kernels().lrn(
          lrn_call(*norm_, computed, normed, geometry_.out_channels, strip.rows(), geometry_.out_width), 0,
          strip.rows());
    }
    call.input = {rows - strip.row_begin * row, 0, row, geometry_.out_channels};
    call.output = writes_.view(memory);
    call.output.data += image * call.output.image;
    pool_rows(max_, call, strip.pool_begin, strip.pool_end);
  }

  static inline const cpu::AlignedFloats kNoScale{0};
  std::shared_ptr<const ConvConstants> constants_;
  cpu::ConvGeometry geometry_;
  std::vector<Strip> strips_;
  std::map<int64_t, cpu::ConvJob> jobs_;  // by number of rows
  std::optional<LrnParams> norm_;
  bool max_;
  cpu::PoolCall pool_;
  int64_t first_tap_;
  int64_t scratch_ = 0;
};

class Affine : public RowStep {
 public:
  Affine(int64_t node, const float* scale, const float* shift, Activation activation,
         std::vector<Place> reads, Place to)
      : RowStep(node, std::move(reads), std::move(to)),
        scale_(scale),
        shift_(shift),
        activation_(activation) {}
  std::string text() const override {
    return std::string(scale_               ? "affine "
                       : reads_.size() == 2 ? "add "
                                            : "activation ") +
           size_text(writes_.size);
  }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const View in = reads_[0].view(memory), out = writes_.view(memory);
    const View other = reads_.size() == 2 ? reads_[1].view(memory) : View{};
    const cpu::ImageSize size = writes_.size;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / size.height, y = row % size.height;
      auto at = [&](const View& v) { return v.data ? v.data + n * v.image + y * v.row : nullptr; };
      cpu::kernels().affine({at(in), at(other), at(out), scale_, shift_, in.pixel, other.pixel, out.pixel,
                             size.channels, activation_},
                            size.width);
    }
  }

 private:
  const float* scale_;
  const float* shift_;
  Activation activation_;
};

class LocalResponseNorm : public RowStep {
 public:
  LocalResponseNorm(int64_t node, const LrnParams& p, Place from, Place to)
      : RowStep(node, {std::move(from)}, std::move(to)), params_(p) {}
  std::string text() const override {
    return "local response norm of " + std::to_string(params_.size) + " channels, " + size_text(writes_.size);
  }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const cpu::ImageSize size = writes_.size;
    cpu::kernels().lrn(lrn_call(params_, reads_[0].view(memory), writes_.view(memory), size.channels,
                                size.height, size.width),
                       begin, end);
  }

 private:
  LrnParams params_;
};

std::vector<Place> with_optional(Place first, const Place* second) {
  std::vector<Place> places{std::move(first)};
  if (second) places.push_back(*second);
  return places;
}

}  // namespace

std::string size_text(const cpu::ImageSize& s) {
  std::ostringstream out;
  out << s.images << "x" << s.channels << "x" << s.height << "x" << s.width;
  return out.str();
}

View Place::view(const Memory& memory) const {
  View v = strides();
  v.data = memory.buffers[buffer] + border.top * row() + border.left * buffer_channels + channel;
  return v;
}

cpu::View16 Place::view16(const Memory& memory) const {
  cpu::View16 v = strides16();
  v.data = reinterpret_cast<uint16_t*>(memory.buffers[buffer]) + border.top * row() +
           border.left * buffer_channels + channel;
  return v;
}

std::pair<int64_t, int64_t> Step::rows(int thread, int team) const {
  return cpu::share(writes_.size.images * writes_.size.height, 1, thread, team);
}

std::vector<Place> Step::all_writes() const {
  std::vector<Place> places{writes_};
  places.insert(places.end(), also_writes_.begin(), also_writes_.end());
  return places;
}

namespace {

void fill_border(const Place& place, const Memory& memory, int64_t begin, int64_t end) {
  if (!place.fills_border) return;
  cpu::zero_border_of_rows(place.view(memory), place.size, place.border, begin, end);
}

}  // namespace

void Step::fill_borders(const Memory& memory, int64_t begin, int64_t end) const {
  fill_border(writes_, memory, begin, end);
  for (const Place& place : also_writes_) fill_border(place, memory, begin, end);
}

void Step::run(const Memory& memory, int thread, int team) const {
  const auto [begin, end] = rows(thread, team);
  fill_borders(memory, begin, end);
  compute(memory, thread, team);
}

void RowStep::compute(const Memory& memory, int thread, int team) const {
  const auto [begin, end] = rows(thread, team);
  compute_rows(memory, begin, end);
}

std::optional<RowWindow> RowStep::window_of(size_t operand) const {
  if (reads_[operand].size.height != writes_.size.height) return std::nullopt;
  return RowWindow{1, 0, 1};
}

std::unique_ptr<Step> copy_in_step(int64_t node, size_t input, Place to) {
  return std::make_unique<CopyIn>(node, input, std::move(to));
}

std::unique_ptr<Step> copy_out_step(int64_t node, Place from, Place to, bool flatten) {
  return std::make_unique<CopyOut>(node, std::move(from), std::move(to), flatten);
}

std::unique_ptr<Step> conv_step(int64_t node, const cpu::ConvGeometry& geometry, int64_t pad_top,
                                int64_t pad_left, std::shared_ptr<const ConvConstants> constants, Place from,
                                Place to, const Place* residual, const cpu::Prologue& prologue) {
  return std::make_unique<Conv>(node, geometry, pad_top, pad_left, std::move(constants),
                                with_optional(std::move(from), residual), std::move(to), prologue);
}

cpu::ConvGeometry conv_geometry_of(const Node& node, const Value& in, const Value& out) {
  using A = Conv2dAttr;
  const auto& a = node.attr;
  return {in.images,      in.channels,    a[A::kOut],     a[A::kGroups],    a[A::kKernelH],
          a[A::kKernelW], a[A::kStrideH], a[A::kStrideW], a[A::kDilationH], a[A::kDilationW],
          out.height,     out.width,      node.activation};
}

void pool_rows(bool max, const cpu::PoolCall& call, int64_t begin, int64_t end) {
  max ? cpu::kernels().max_pool(call, begin, end) : cpu::avg_pool_rows(call, begin, end);
}

cpu::PoolCall pool_call(const WindowPair& window, int64_t dilation_h, int64_t dilation_w,
                        bool count_include_pad, int64_t divisor_override, const cpu::ImageSize& from,
                        const cpu::ImageSize& to) {
  const Window &h = window.height, &w = window.width;
  cpu::PoolCall call{};
  call.channels = from.channels;
  call.in_height = from.height;
  call.in_width = from.width;
  call.height = to.height;
  call.width = to.width;
  call.kernel_h = (h.extent - 1) / dilation_h + 1;
  call.kernel_w = (w.extent - 1) / dilation_w + 1;
  call.stride_h = h.stride;
  call.stride_w = w.stride;
  call.pad_h = h.pad_begin;
  call.pad_w = w.pad_begin;
  call.dilation_h = dilation_h;
  call.dilation_w = dilation_w;
  call.count_include_pad = count_include_pad;
  call.divisor_override = divisor_override;
  call.padded_height = from.height + h.pad_begin + h.pad_end;
  call.padded_width = from.width + w.pad_begin + w.pad_end;
  return call;
}

std::unique_ptr<Step> pool_step(int64_t node, bool max, cpu::PoolCall call, Place from, Place to) {
  return std::make_unique<Pool>(node, max, call, std::move(from), std::move(to));
}

std::unique_ptr<Step> conv_pool_step(int64_t node, const cpu::ConvGeometry& geometry, int64_t pad_top,
                                     int64_t pad_left, std::shared_ptr<const ConvConstants> constants,
                                     std::vector<Strip> strips, const LrnParams* norm, bool max,
                                     const cpu::PoolCall& pool, Place from, Place to) {
  return std::make_unique<ConvPool>(node, geometry, pad_top, pad_left, std::move(constants),
                                    std::move(strips), norm, max, pool, std::move(from), std::move(to));
}

LrnParams lrn_params_of(const Node& node) {
  return {node.attr[0], fraction(node.attr[1]), fraction(node.attr[2]), fraction(node.attr[3])};
}

std::unique_ptr<Step> lrn_step(int64_t node, const LrnParams& params, Place from, Place to) {
  return std::make_unique<LocalResponseNorm>(node, params, std::move(from), std::move(to));
}

std::unique_ptr<Step> affine_step(int64_t node, const float* scale, const float* shift, Activation activation,
                                  Place from, Place to, const Place* other) {
  return std::make_unique<Affine>(node, scale, shift, activation, with_optional(std::move(from), other),
                                  std::move(to));
}

}  // namespace cnnfast::plan
