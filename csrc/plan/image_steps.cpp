#include "plan/image_steps.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "cpu/parallel.h"
#include "plan/rows.h"

namespace cnnfast::plan {
namespace {

using cpu::View;

std::string sized(const char* what, const Place& place) { return what + (" " + size_text(place.size)); }

class Binary : public RowStep {
 public:
  Binary(int64_t node, bool multiply, Repeated repeated, const Activation& activation,
         std::vector<Place> reads, Place to)
      : RowStep(node, std::move(reads), std::move(to)),
        multiply_(multiply),
        repeated_(repeated),
        activation_(activation) {}
  std::string text() const override {
    const char* what = multiply_ ? (reads_.size() == 3 ? "multiply and add" : "multiply") : "add";
    const char* of_whom[] = {"", ", one value per channel", ", one value per pixel"};
    return sized(what, writes_) + of_whom[static_cast<int>(repeated_)];
  }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const View in = reads_[0].view(memory), other = reads_[1].view(memory), out = writes_.view(memory);
    const View added = reads_.size() == 3 ? reads_[2].view(memory) : View{};
    const cpu::ImageSize size = writes_.size;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / size.height, y = row % size.height;
      cpu::AffineCall call{};
      call.input = row_of(in, n, y);
      call.input_stride = in.pixel;
      call.output = row_to(out, n, y);
      call.output_stride = out.pixel;
      call.channels = size.channels;
      call.activation = activation_;
      if (added.data) add_to(call, row_of(added, n, y), added.pixel);
      if (repeated_ == Repeated::kOverPixels)
        (multiply_ ? call.scale : call.shift) = row_of(other, n, 0);
      else if (repeated_ == Repeated::kOverChannels)
        (multiply_ ? call.row_factor : call.row_shift) = row_of(other, n, y), call.row_step = other.pixel;
      else if (multiply_)
        call.factor = row_of(other, n, y), call.factor_stride = other.pixel;
      else
        add_to(call, row_of(other, n, y), other.pixel);
      cpu::kernels().affine(call, size.width);
    }
  }

 private:
  static void add_to(cpu::AffineCall& call, const float* data, int64_t stride) {
    call.residual = data;
    call.residual_stride = stride;
  }

  bool multiply_;
  Repeated repeated_;
  Activation activation_;
};

// Channels that one thread takes at a time: few images still occupy all threads.
constexpr int64_t kMeanVectors = 4;

class Mean : public Step {
 public:
  Mean(int64_t node, const cpu::PoolCall& call, Place from, Place to)
      : Step(node, {std::move(from)}, std::move(to)), call_(call) {}
  std::string text() const override {
    return (call_.prologue.scale ? "affine, " : "") + sized("mean over images, to", writes_);
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    cpu::PoolCall call = call_;
    call.input = reads_[0].view(memory);
    call.output = writes_.view(memory);
    const int64_t channels = writes_.size.channels, lanes = kMeanVectors * cpu::kernels().vector_width;
    const int64_t parts = (channels + lanes - 1) / lanes;
    const auto [begin, end] = cpu::share(writes_.size.images * parts, 1, thread, team);
    for (int64_t unit = begin; unit < end; ++unit) {
      const int64_t first = unit % parts * lanes;
      cpu::kernels().image_mean(call, unit / parts, first, std::min(first + lanes, channels));
    }
  }

 private:
  cpu::PoolCall call_;
};

class AdaptivePool : public RowStep {
 public:
  AdaptivePool(int64_t node, bool max, Place from, Place to)
      : RowStep(node, {std::move(from)}, std::move(to)), max_(max) {}
  std::string text() const override {
    return sized(max_ ? "adaptive max pool to" : "adaptive average pool to", writes_);
  }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    cpu::PoolCall call{};
    call.input = reads_[0].view(memory);
    call.output = writes_.view(memory);
    call.in_height = reads_[0].size.height;
    call.in_width = reads_[0].size.width;
    call.height = writes_.size.height;
    call.width = writes_.size.width;
    call.channels = writes_.size.channels;
    call.dilation_h = call.dilation_w = 1;
    (max_ ? cpu::kernels().adaptive_max_pool : cpu::kernels().adaptive_avg_pool)(call, begin, end);
  }

 private:
  bool max_;
};

class Shuffle : public RowStep {
 public:
  Shuffle(int64_t node, std::vector<Place> parts, Place to) : RowStep(node, std::move(parts), std::move(to)) {
    for (const Place& part : reads_) step_.push_back(part.buffer_channels);
  }
  std::string text() const override {
    return sized("shuffle", writes_) + ", " + std::to_string(reads_.size()) + " parts";
  }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const cpu::ImageSize size = writes_.size;
    std::vector<View> views;
    for (const Place& part : reads_) views.push_back(part.view(memory));
    const View out = writes_.view(memory);
    std::vector<const float*> part_rows(views.size());
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / size.height, y = row % size.height;
      for (size_t i = 0; i < views.size(); ++i) part_rows[i] = row_of(views[i], n, y);
      cpu::kernels().interleave_row({static_cast<int64_t>(views.size()), reads_[0].size.channels, size.width,
                                     step_.data(), row_to(out, n, y), out.pixel},
                                    part_rows.data());
    }
  }

 private:
  std::vector<int64_t> step_;
};

void fill_pixels(float* row, int64_t pixels, int64_t step, int64_t channels, float value) {
  for (int64_t x = 0; x < pixels; ++x) std::fill_n(row + x * step, channels, value);
}

void copy_pixels(const float* from, int64_t from_step, float* to, int64_t to_step, int64_t pixels,
                 int64_t channels) {
  if (from_step == channels && to_step == channels) {
    std::memcpy(to, from, sizeof(float) * static_cast<size_t>(pixels * channels));
    return;
  }
  for (int64_t x = 0; x < pixels; ++x)
    std::memcpy(to + x * to_step, from + x * from_step, sizeof(float) * static_cast<size_t>(channels));
}

class Pad : public RowStep {
 public:
  Pad(int64_t node, int64_t top, int64_t left, float value, Place from, Place to)
      : RowStep(node, {std::move(from)}, std::move(to)), top_(top), left_(left), value_(value) {}
  std::string text() const override { return sized("pad to", writes_); }
  std::optional<RowWindow> window_of(size_t) const override { return RowWindow{1, top_, 1}; }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const View in = reads_[0].view(memory), out = writes_.view(memory);
    const cpu::ImageSize from = reads_[0].size, size = writes_.size;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / size.height, y = row % size.height - top_;
      float* to = row_to(out, n, y + top_);
      if (y < 0 || y >= from.height) {
        fill_pixels(to, size.width, out.pixel, size.channels, value_);
        continue;
      }
      fill_pixels(to, left_, out.pixel, size.channels, value_);
      copy_pixels(row_of(in, n, y), in.pixel, to + left_ * out.pixel, out.pixel, from.width, size.channels);
      fill_pixels(to + (left_ + from.width) * out.pixel, size.width - left_ - from.width, out.pixel,
                  size.channels, value_);
    }
  }

 private:
  int64_t top_, left_;
  float value_;
};

// Where the positions of one side come from: two neighbours, and the weight of the second.
struct Source {
  int64_t first, second;
  float weight;
};

// In float, as PyTorch computes them.
std::vector<Source> sources_of(InterpolateMode mode, bool align_corners, double given_scale, int64_t in,
                               int64_t out) {
  float scale = given_scale > 0 ? static_cast<float>(1.0 / given_scale)
                                : static_cast<float>(in) / static_cast<float>(out);
  if (align_corners) scale = out > 1 ? static_cast<float>(in - 1) / static_cast<float>(out - 1) : 0.0f;
  std::vector<Source> sources;
  for (int64_t i = 0; i < out; ++i) {
    const auto at = static_cast<float>(i);
    if (mode != InterpolateMode::kBilinear) {
      const float position = mode == InterpolateMode::kNearest ? at * scale : (at + 0.5f) * scale;
      const int64_t pixel = std::min(static_cast<int64_t>(std::floor(position)), in - 1);
      sources.push_back({pixel, pixel, 0.0f});
      continue;
    }
    const float position = align_corners ? at * scale : std::max(0.0f, (at + 0.5f) * scale - 0.5f);
    const int64_t first = std::min(static_cast<int64_t>(position), in - 1);
    sources.push_back(
        {first, std::min(first + 1, in - 1), std::clamp(position - static_cast<float>(first), 0.0f, 1.0f)});
  }
  return sources;
}

class Interpolate : public RowStep {
 public:
  Interpolate(int64_t node, const std::vector<int64_t>& a, Place from, Place to)
      : RowStep(node, {std::move(from)}, std::move(to)),
        bilinear_(static_cast<InterpolateMode>(a[InterpolateAttr::kMode]) == InterpolateMode::kBilinear) {
    using A = InterpolateAttr;
    const auto mode = static_cast<InterpolateMode>(a[A::kMode]);
    const cpu::ImageSize in = reads_[0].size, out = writes_.size;
    rows_ = sources_of(mode, a[A::kAlignCorners], fraction(a[A::kScaleH]), in.height, out.height);
    for (const Source& s :
         sources_of(mode, a[A::kAlignCorners], fraction(a[A::kScaleW]), in.width, out.width)) {
      first_.push_back(s.first * reads_[0].buffer_channels);
      second_.push_back(s.second * reads_[0].buffer_channels);
      right_.push_back(s.weight);
    }
  }
  std::string text() const override {
    return sized(bilinear_ ? "bilinear interpolation to" : "nearest interpolation to", writes_);
  }
  std::optional<RowWindow> window_of(size_t) const override { return std::nullopt; }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const View in = reads_[0].view(memory), out = writes_.view(memory);
    const cpu::ImageSize size = writes_.size;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / size.height, y = row % size.height;
      const float *upper = row_of(in, n, rows_[y].first), *lower = row_of(in, n, rows_[y].second);
      float* to = row_to(out, n, y);
      if (bilinear_) {
        cpu::kernels().blend_row({upper, lower, rows_[y].weight, first_.data(), second_.data(), right_.data(),
                                  to, out.pixel, size.width, size.channels});
        continue;
      }
      for (int64_t x = 0; x < size.width; ++x)
        std::memcpy(to + x * out.pixel, upper + first_[x],
                    sizeof(float) * static_cast<size_t>(size.channels));
    }
  }

 private:
  bool bilinear_;
  std::vector<Source> rows_;
  std::vector<int64_t> first_, second_;
  std::vector<float> right_;
};

class Norm : public RowStep {
 public:
  Norm(int64_t node, int64_t groups, const float* weight, const float* bias, float eps,
       const Activation& activation, Place from, Place to)
      : RowStep(node, {std::move(from)}, std::move(to)) {
    call_.channels = writes_.size.channels;
    call_.height = writes_.size.height;
    call_.width = writes_.size.width;
    call_.groups = groups;
    call_.weight = weight;
    call_.bias = bias;
    call_.eps = eps;
    call_.activation = activation;
  }
  std::string text() const override {
    if (call_.groups == 0) return sized("layer norm of", writes_);
    return sized("group norm of", writes_) + ", " + std::to_string(call_.groups) + " groups";
  }

  // A group needs all rows of its image: begin and end are then those of images.
  std::optional<RowWindow> window_of(size_t operand) const override {
    return call_.groups == 0 ? RowStep::window_of(operand) : std::nullopt;
  }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    if (call_.groups == 0) return cpu::kernels().layer_norm(on(memory), begin, end);
    const int64_t height = writes_.size.height;
    cpu::kernels().group_norm(on(memory), begin / height * call_.groups, end / height * call_.groups);
  }

 protected:
  void compute(const Memory& memory, int thread, int team) const override {
    if (call_.groups == 0) return RowStep::compute(memory, thread, team);
    // Channels of one cache line are for one thread.
    const int64_t whole = call_.channels <= 16 ? call_.groups : 1;
    const auto [begin, end] = cpu::share(writes_.size.images * call_.groups, whole, thread, team);
    cpu::kernels().group_norm(on(memory), begin, end);
  }

 private:
  cpu::NormCall on(const Memory& memory) const {
    cpu::NormCall call = call_;
    call.input = reads_[0].view(memory);
    call.output = writes_.view(memory);
    return call;
  }

  cpu::NormCall call_{};
};

class PReLU : public RowStep {
 public:
  PReLU(int64_t node, const float* slope, Place from, Place to)
      : RowStep(node, {std::move(from)}, std::move(to)), slope_(slope) {}
  std::string text() const override { return sized("prelu", writes_); }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const View in = reads_[0].view(memory), out = writes_.view(memory);
    const cpu::ImageSize size = writes_.size;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / size.height, y = row % size.height;
      cpu::kernels().prelu_pixels(row_of(in, n, y), in.pixel, slope_, row_to(out, n, y), out.pixel,
                                  size.width, size.channels);
    }
  }

 private:
  const float* slope_;
};

}  // namespace

std::unique_ptr<Step> binary_step(int64_t node, bool multiply, Repeated repeated,
                                  const Activation& activation, std::vector<Place> reads, Place to) {
  return std::make_unique<Binary>(node, multiply, repeated, activation, std::move(reads), std::move(to));
}

std::unique_ptr<Step> mean_step(int64_t node, const cpu::PoolCall& call, Place from, Place to) {
  return std::make_unique<Mean>(node, call, std::move(from), std::move(to));
}

std::unique_ptr<Step> adaptive_pool_step(int64_t node, bool max, Place from, Place to) {
  return std::make_unique<AdaptivePool>(node, max, std::move(from), std::move(to));
}

std::unique_ptr<Step> shuffle_step(int64_t node, std::vector<Place> parts, Place to) {
  return std::make_unique<Shuffle>(node, std::move(parts), std::move(to));
}

std::unique_ptr<Step> pad_step(int64_t node, int64_t top, int64_t left, float value, Place from, Place to) {
  return std::make_unique<Pad>(node, top, left, value, std::move(from), std::move(to));
}

std::unique_ptr<Step> interpolate_step(int64_t node, const std::vector<int64_t>& attributes, Place from,
                                       Place to) {
  return std::make_unique<Interpolate>(node, attributes, std::move(from), std::move(to));
}

std::unique_ptr<Step> norm_step(int64_t node, int64_t groups, const float* weight, const float* bias,
                                float eps, const Activation& activation, Place from, Place to) {
  return std::make_unique<Norm>(node, groups, weight, bias, eps, activation, std::move(from), std::move(to));
}

std::unique_ptr<Step> prelu_step(int64_t node, const float* slope, Place from, Place to) {
  return std::make_unique<PReLU>(node, slope, std::move(from), std::move(to));
}

}  // namespace cnnfast::plan
