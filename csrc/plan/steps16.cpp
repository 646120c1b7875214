#include "plan/steps16.h"

#include <algorithm>
#include <sstream>

#include "cpu/bf16_table.h"
#include "cpu/box_mean.h"
#include "cpu/conv16_job.h"
#include "cpu/parallel.h"

namespace cnnfast::plan {
namespace {

using cpu::View;
using cpu::View16;

// Widened rows of a strip, operands and result: they stay in the second-level cache.
constexpr int64_t kStripFloats = 24 * 1024;
// Few images: enough strips to occupy some threads.
constexpr int64_t kUnits = 8;
// Channels that one thread averages at a time.
constexpr int64_t kMeanVectors = 4;

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

class CopyIn16 : public Writes16<RowStep> {
 public:
  CopyIn16(int64_t node, size_t input, Place to) : Writes16(node, {}, std::move(to)), input_(input) {}
  std::string text() const override { return "copy in " + size_text(writes_.size); }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const External& source = memory.inputs[input_];
    if (source.data16)
      cpu::copy_in(source.data16, source.strides, writes_.size, writes_.view16(memory), begin, end);
    else
      cpu::copy_in(source.data, source.strides, writes_.size, writes_.view16(memory), begin, end);
  }

 private:
  size_t input_;
};

class Copy16 : public Writes16<RowStep> {
 public:
  Copy16(int64_t node, Place from, Place to) : Writes16(node, {std::move(from)}, std::move(to)) {}
  std::string text() const override { return "copy " + size_text(writes_.size); }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const View16 to = writes_.view16(memory);
    cpu::copy_out(reads_[0].view16(memory), writes_.size, to.data, {to.image, 1, to.row, to.pixel}, begin,
                  end);
  }
};

// Output tensors have no border.
class CopyOut16 : public Step {
 public:
  CopyOut16(int64_t node, Place from, Place to, bool flatten, bool to_float)
      : Step(node, {std::move(from)}, std::move(to)), flatten_(flatten), to_float_(to_float) {}
  std::string text() const override {
    return (flatten_ ? "flatten " : "copy ") + size_text(reads_[0].size) + (to_float_ ? " to float32" : "");
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const cpu::ImageSize size = reads_[0].size;
    const int64_t plane = size.height * size.width, row = size.width * size.channels;
    const cpu::TensorStrides strides = flatten_
                                           ? cpu::TensorStrides{plane * size.channels, plane, size.width, 1}
                                           : cpu::TensorStrides{size.height * row, 1, row, size.channels};
    const auto [begin, end] = cpu::share(size.images * size.height, 1, thread, team);
    const View16 from = reads_[0].view16(memory);
    float* to = memory.buffers[writes_.buffer];
    if (to_float_)
      cpu::copy_out(from, size, to, strides, begin, end);
    else
      cpu::copy_out(from, size, reinterpret_cast<uint16_t*>(to), strides, begin, end);
  }

 private:
  bool flatten_, to_float_;
};

class PairConv : public Writes16<RowStep> {
 public:
  PairConv(int64_t node, const cpu::ConvGeometry& g, int64_t pad_top, int64_t pad_left,
           std::shared_ptr<const ConvConstants> constants, Place from, Place to, PairConvExtras extras)
      : Writes16(node, {std::move(from)}, std::move(to)),
        constants_(std::move(constants)),
        pad_top_(pad_top),
        zeros_(extras.factors ? g.in_channels : 0),
        normalises_(extras.prologue.scale),
        residual_(read(std::move(extras.residual))),
        factors_(read(std::move(extras.factors))),
        interleaves_(extras.interleaves),
        job_(g, reads_[0].strides16(), writes_.strides16(),
             residual_ ? reads_[residual_].strides16() : View16{}, prologue_of(extras.prologue),
             constants_->short_pairs ? cpu::PairForm::kShort : cpu::PairForm::kWhole, interleaves_),
        first_tap_(-pad_top * reads_[0].row() - pad_left * reads_[0].buffer_channels) {}

  double flops() const override { return job_.geometry().flops(); }
  std::string text() const override {
    std::ostringstream out;
    const cpu::ConvGeometry& g = job_.geometry();
    out << (factors_      ? "multiply, one value per channel, "
            : normalises_ ? "affine, "
                          : "")
        << "conv " << g.kernel_h << "x" << g.kernel_w << ", " << g.in_channels << " channels, "
        << (constants_->short_pairs ? "short " : "") << "pairs of bfloat16"
        << (interleaves_ ? ", channels in turn with another image's," : "") << " to "
        << size_text(writes_.size);
    return out.str();
  }
  Constants first_constants(int, int) const override {
    return {constants_->weight.data(), constants_->weight.size()};
  }
  std::optional<RowWindow> window_of(size_t operand) const override {
    const cpu::ConvGeometry& g = job_.geometry();
    if (factors_ && operand == factors_) return std::nullopt;
    if (operand > 0) return RowWindow{1, 0, 1};
    return RowWindow{g.stride_h, pad_top_, (g.kernel_h - 1) * g.dilation_h + 1};
  }
  int64_t constant_bytes() const override {
    return constants_->weight.size() * static_cast<int64_t>(sizeof(float));
  }
  bool shares_constants() const override { return job_.split_by_channels(2); }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const Place& from = reads_[0];
    const int64_t height = writes_.size.height, width = writes_.size.width;
    // Rows of the input in front of which and behind which nothing may be read.
    const auto [stride, before, extent] = *window_of(0);
    const int64_t first = begin % height * stride - before;
    const int64_t last = (end - 1) % height * stride - before + extent;
    const uint16_t* pixels =
        from.view16(memory).data - from.channel - from.border.left * from.buffer_channels;
    job_.run_pixels(constants_->weight, constants_->shift,
                    operands(memory, pixels + begin / height * from.image() + first * from.row(),
                             pixels + (end - 1) / height * from.image() + last * from.row(), begin / height,
                             (end - 1) / height + 1),
                    begin * width, end * width);
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const Place& from = reads_[0];
    const auto* buffer = reinterpret_cast<const uint16_t*>(memory.buffers[from.buffer]);
    job_.run(constants_->weight, constants_->shift,
             operands(memory, buffer, buffer + from.size.images * from.image(), 0, from.size.images), thread,
             team);
  }

 private:
  // Of images [first, last).
  cpu::Conv16Memory operands(const Memory& memory, const uint16_t* readable, const uint16_t* beyond,
                             int64_t first, int64_t last) const {
    return {reads_[0].view16(memory).data + first_tap_,
            readable,
            beyond,
            writes_.view16(memory).data,
            residual_ ? reads_[residual_].view16(memory).data : nullptr,
            factors_ ? widened_factors(memory, first, last) : nullptr};
  }
  size_t read(std::optional<Place> place) {
    if (!place) return 0;
    reads_.push_back(std::move(*place));
    return reads_.size() - 1;
  }
  cpu::Prologue prologue_of(cpu::Prologue prologue) const {
    if (factors_) prologue.scale = nullptr, prologue.shift = zeros_.data();
    return prologue;
  }
  // Where those of image 0 would lie.
  const float* widened_factors(const Memory& memory, int64_t first, int64_t last) const {
    const int64_t channels = reads_[0].size.channels, images = last - first;
    const View16 from = reads_[factors_].view16(memory);
    float* factors = cpu::thread_scratch(cpu::ScratchSlot::kWidened, images * channels);
    cpu::bf16_kernels().widen({from.data + first * from.image, from.image}, {factors, channels}, images,
                              channels);
    return factors - first * channels;
  }

  std::shared_ptr<const ConvConstants> constants_;
  int64_t pad_top_;
  std::vector<float> zeros_;  // instead of a shift where there are factors
  bool normalises_;
  size_t residual_, factors_;  // their positions in what is read; 0: none
  bool interleaves_;
  cpu::Conv16Job job_;
  int64_t first_tap_;
};

// Average pooling may stand behind a norm whose activation is none, ReLU or clamping.
class Pool16 : public Writes16<RowStep> {
 public:
  Pool16(int64_t node, bool max, const cpu::PoolCall& window, Place from, Place to)
      : Writes16(node, {std::move(from)}, std::move(to)), max_(max), window_(window) {}
  std::string text() const override { return pool_text(max_, window_) + " to " + size_text(writes_.size); }
  std::optional<RowWindow> window_of(size_t) const override {
    return RowWindow{window_.stride_h, window_.pad_h, (window_.kernel_h - 1) * window_.dilation_h + 1};
  }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    if (begin >= end) return;
    const View16 from = reads_[0].view16(memory), to = writes_.view16(memory);
    if (max_)
      max_pool16(window_, from, to, begin, end);
    else
      cpu::avg_pool_rows({window_, from, to}, begin, end);
  }

 private:
  bool max_;
  cpu::PoolCall window_;
};

class Mean16 : public Writes16<RowStep> {
 public:
  Mean16(int64_t node, const cpu::PoolCall& call, Place from, Place to)
      : Writes16(node, {std::move(from)}, std::move(to)), call_(call) {}
  std::string text() const override {
    return (call_.prologue.scale ? "affine, " : "") + ("mean over images, to " + size_text(writes_.size));
  }
  std::optional<RowWindow> window_of(size_t) const override { return {}; }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    compute_units(memory, begin * parts(), end * parts());
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const auto [begin, end] = cpu::share(writes_.size.images * parts(), 1, thread, team);
    compute_units(memory, begin, end);
  }

 private:
  static int64_t lanes() { return kMeanVectors * cpu::kernels().vector_width; }
  int64_t parts() const { return divide_up(call_.channels, lanes()); }  // of an image

  void compute_units(const Memory& memory, int64_t begin, int64_t end) const {
    const View16 in = reads_[0].view16(memory), out = writes_.view16(memory);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t n = unit / parts(), first = unit % parts() * lanes();
      const int64_t channels = std::min(lanes(), call_.channels - first);
      const View16 image{in.data + n * in.image + first, 0, in.row, in.pixel};
      const float* means =
          call_.prologue.scale ? normalised(image, first, channels) : as_it_is(image, channels);
      cpu::bf16_kernels().narrow({means, channels}, {out.data + n * out.image + first, out.pixel}, 1,
                                 channels);
    }
  }

  // Means of some channels of an image.
  const float* as_it_is(const View16& image, int64_t channels) const {
    float* means = cpu::thread_scratch(cpu::ScratchSlot::kWidened, lanes());
    std::fill_n(means, channels, 0.0f);
    const bool dense = image.row == call_.in_width * image.pixel;  // rows of one long one
    const int64_t rows = dense ? 1 : call_.in_height,
                  width = dense ? call_.in_height * call_.in_width : call_.in_width;
    for (int64_t y = 0; y < rows; ++y)
      cpu::bf16_kernels().norm->column_sum(image.data + y * image.row, image.pixel, width, channels, nullptr,
                                           means);
    const float pixels = static_cast<float>(call_.in_height * call_.in_width);
    for (int64_t c = 0; c < channels; ++c) means[c] /= pixels;
    return means;
  }
  // The same of a widened copy, behind the norm on the way in.
  const float* normalised(const View16& image, int64_t first, int64_t channels) const {
    const int64_t height = call_.in_height, width = call_.in_width, row = width * channels;
    float* pixels = cpu::thread_scratch(cpu::ScratchSlot::kWidened, (height * width + 1) * lanes());
    float* means = pixels + height * width * lanes();
    for (int64_t y = 0; y < height; ++y)
      cpu::bf16_kernels().widen({image.data + y * image.row, image.pixel}, {pixels + y * row, channels},
                                width, channels);
    cpu::PoolCall call = call_;
    call.channels = channels;
    call.prologue.scale += first;
    call.prologue.shift += first;
    call.input = {pixels, 0, row, channels};
    call.output = {means, 0, 0, channels};
    cpu::kernels().image_mean(call, 0, 0, channels);
    return means;
  }

  cpu::PoolCall call_;
};

// The step runs on memory that has the rows of a strip where the arena has all of them; between a value's
// rows lies what lies there in the arena, untouched.
class Widened : public Writes16<RowStep> {
 public:
  explicit Widened(std::unique_ptr<RowStep> step)
      : Writes16<RowStep>(step->node(), step->reads(), step->writes()), step_(std::move(step)) {
    int64_t row = writes_.row();
    for (size_t i = 0; i < reads_.size(); ++i) row += step_->window_of(i) ? reads_[i].row() : 0;
    const int64_t height = writes_.size.height;
    strip_ = std::clamp<int64_t>(kStripFloats / row, 1, height);
    strip_ = std::min(strip_, std::max<int64_t>(1, writes_.size.images * height / kUnits));
    for (size_t i = 0; i < reads_.size(); ++i)
      if (!step_->window_of(i) && reads_[i].size.height > 1) strip_ = height;
    strips_ = divide_up(height, strip_);
  }
  double flops() const override { return step_->flops(); }
  std::string text() const override { return step_->text(); }
  std::optional<RowWindow> window_of(size_t operand) const override { return step_->window_of(operand); }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    Memory widened;
    widened.buffers.resize(memory.buffers.size(), nullptr);
    const int64_t height = writes_.size.height;
    for (int64_t row = begin, next; row < end; row = next) {
      const int64_t y = row % height;
      next = std::min({row + strip_, end, row - y + height});
      run_strip(memory, widened, row / height, y, y + next - row);
    }
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    const auto [begin, end] = cpu::share(writes_.size.images * strips_, 1, thread, team);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t height = writes_.size.height, first = unit / strips_ * height;
      compute_rows(memory, first + unit % strips_ * strip_,
                   first + std::min(height, (unit % strips_ + 1) * strip_));
    }
  }

 private:
  struct Rows {
    int64_t begin, end;
  };
  Rows rows_of(size_t operand, int64_t begin, int64_t end) const {
    const int64_t height = reads_[operand].size.height;
    const auto w = step_->window_of(operand);
    if (!w) return {0, height};
    return {std::clamp<int64_t>(begin * w->stride - w->before, 0, height),
            std::clamp<int64_t>((end - 1) * w->stride - w->before + w->extent, 0, height)};
  }

  void run_strip(const Memory& memory, Memory& widened, int64_t image, int64_t begin, int64_t end) const {
    std::vector<std::pair<const Place*, Rows>> areas;  // one per buffer: what is read and written there
    const auto include = [&](const Place& place, const Rows& rows) {
      for (auto& [other, all] : areas)
        if (other->buffer == place.buffer) {
          all = {std::min(all.begin, rows.begin), std::max(all.end, rows.end)};
          return;
        }
      areas.emplace_back(&place, rows);
    };
    include(writes_, {begin, end});
    for (size_t i = 0; i < reads_.size(); ++i) include(reads_[i], rows_of(i, begin, end));
    int64_t floats = 0;
    for (const auto& [place, rows] : areas) floats += (rows.end - rows.begin) * place->row();
    float* at = cpu::thread_scratch(cpu::ScratchSlot::kWidened, floats);
    for (const auto& [place, rows] : areas) {
      widened.buffers[place->buffer] =
          at - image * place->image() - (place->border.top + rows.begin) * place->row();
      at += (rows.end - rows.begin) * place->row();
    }
    for (size_t i = 0; i < reads_.size(); ++i)
      for_rows(reads_[i], memory, widened, image, rows_of(i, begin, end), [&](auto narrow, auto wide) {
        cpu::bf16_kernels().widen({narrow.data, narrow.step}, wide, reads_[i].size.width,
                                  reads_[i].size.channels);
      });
    step_->compute_rows(widened, image * writes_.size.height + begin, image * writes_.size.height + end);
    for_rows(writes_, memory, widened, image, {begin, end}, [&](auto narrow, auto wide) {
      cpu::bf16_kernels().narrow({wide.data, wide.step}, narrow, writes_.size.width, writes_.size.channels);
    });
  }

  // body(row in the arena, the same row widened)
  template <class Body>
  static void for_rows(const Place& place, const Memory& memory, const Memory& widened, int64_t image,
                       const Rows& rows, Body&& body) {
    const View16 narrow = place.view16(memory);
    const View wide = place.view(widened);
    for (int64_t y = rows.begin; y < rows.end; ++y)
      body(cpu::PixelRun<uint16_t>{narrow.data + image * narrow.image + y * narrow.row, narrow.pixel},
           cpu::PixelRun<float>{wide.data + image * wide.image + y * wide.row, wide.pixel});
  }

  std::unique_ptr<RowStep> step_;
  int64_t strip_, strips_;
};

}  // namespace

void fill_border16(const Place& place, const Memory& memory, int64_t begin, int64_t end) {
  if (!place.fills_border) return;
  cpu::zero_border_of_rows(place.view16(memory), place.size, place.border, begin, end);
}

std::unique_ptr<Step> copy_in16_step(int64_t node, size_t input, Place to) {
  return std::make_unique<CopyIn16>(node, input, std::move(to));
}

std::unique_ptr<Step> copy16_step(int64_t node, Place from, Place to) {
  return std::make_unique<Copy16>(node, std::move(from), std::move(to));
}

std::unique_ptr<Step> copy_out16_step(int64_t node, Place from, Place to, bool flatten, bool to_float) {
  return std::make_unique<CopyOut16>(node, std::move(from), std::move(to), flatten, to_float);
}

std::unique_ptr<Step> pair_conv_step(int64_t node, const cpu::ConvGeometry& geometry, int64_t pad_top,
                                     int64_t pad_left, std::shared_ptr<const ConvConstants> constants,
                                     Place from, Place to, PairConvExtras extras) {
  return std::make_unique<PairConv>(node, geometry, pad_top, pad_left, std::move(constants), std::move(from),
                                    std::move(to), std::move(extras));
}

void max_pool16(const cpu::PoolCall& window, const cpu::View16& from, const cpu::View16& to, int64_t begin,
                int64_t end) {
  cpu::MaxPool16Call call{window, from, to, nullptr};
  const int64_t bytes = cpu::bf16_kernels().max_pool_scratch(call);
  call.scratch = cpu::thread_scratch(cpu::ScratchSlot::kPooled, divide_up(bytes, sizeof(float)));
  cpu::bf16_kernels().max_pool(call, begin, end);
}

std::unique_ptr<Step> max_pool16_step(int64_t node, const cpu::PoolCall& window, Place from, Place to) {
  return std::make_unique<Pool16>(node, true, window, std::move(from), std::move(to));
}

std::unique_ptr<Step> avg_pool16_step(int64_t node, const cpu::PoolCall& window, Place from, Place to) {
  return std::make_unique<Pool16>(node, false, window, std::move(from), std::move(to));
}

std::unique_ptr<Step> mean16_step(int64_t node, const cpu::PoolCall& call, Place from, Place to) {
  return std::make_unique<Mean16>(node, call, std::move(from), std::move(to));
}

std::unique_ptr<Step> widened_step(std::unique_ptr<RowStep> step) {
  return std::make_unique<Widened>(std::move(step));
}

}  // namespace cnnfast::plan
