#include "plan/gate_steps.h"

#include <algorithm>
#include <cmath>

#include "cpu/parallel.h"
#include "plan/rows.h"

namespace cnnfast::plan {
namespace {

using cpu::View;

std::string sized(const char* what, const Place& place) { return what + (" " + size_text(place.size)); }

class ChannelMax : public RowStep {
 public:
  ChannelMax(int64_t node, Place from, Place to) : RowStep(node, {std::move(from)}, std::move(to)) {}
  std::string text() const override { return sized("largest channel, to", writes_); }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const View in = reads_[0].view(memory), out = writes_.view(memory);
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / writes_.size.height, y = row % writes_.size.height;
      cpu::kernels().channel_max(row_of(in, n, y), in.pixel, writes_.size.width, reads_[0].size.channels,
                                 row_to(out, n, y), out.pixel);
    }
  }
};

// A step that makes one pixel of a whole image. Threads share images, and channels where images are few.
class ImagePool : public RowStep {
 public:
  using RowStep::RowStep;
  std::optional<RowWindow> window_of(size_t) const override { return std::nullopt; }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    for (int64_t image = begin; image < end; ++image) pool(memory, image, 0, writes_.size.channels);
  }

 protected:
  // Channels [first, last).
  virtual void pool(const Memory& memory, int64_t image, int64_t first, int64_t last) const = 0;
  void compute(const Memory& memory, int thread, int team) const override {
    const int64_t channels = writes_.size.channels, lanes = kVectors * cpu::kernels().vector_width;
    const int64_t parts = (channels + lanes - 1) / lanes;
    const auto [begin, end] = cpu::share(writes_.size.images * parts, 1, thread, team);
    for (int64_t unit = begin; unit < end;) {
      const int64_t image = unit / parts, part = unit % parts;
      const int64_t stop = std::min(end, (image + 1) * parts);
      pool(memory, image, part * lanes, std::min((part + stop - unit) * lanes, channels));
      unit = stop;
    }
  }

 private:
  static constexpr int64_t kVectors = 4;
};

// Rows are added up one by one, so that errors grow with the sides of an image and not with its area.
class ImageNorm : public ImagePool {
 public:
  ImageNorm(int64_t node, Place from, Place to) : ImagePool(node, {std::move(from)}, std::move(to)) {}
  std::string text() const override { return sized("norm over images, to", writes_); }

 protected:
  void pool(const Memory& memory, int64_t image, int64_t first, int64_t last) const override {
    const View in = reads_[0].view(memory);
    const int64_t count = last - first;
    float* zeros = cpu::thread_scratch(cpu::ScratchSlot::kSums, 2 * count);
    float* row = zeros + count;
    float* out = row_to(writes_.view(memory), image, 0) + first;
    std::fill_n(zeros, count, 0.0f);
    std::fill_n(out, count, 0.0f);
    for (int64_t y = 0; y < reads_[0].size.height; ++y) {
      std::fill_n(row, count, 0.0f);
      cpu::kernels().column_sum(row_of(in, image, y) + first, in.pixel, reads_[0].size.width, count, zeros,
                                row);
      for (int64_t c = 0; c < count; ++c) out[c] += row[c];
    }
    for (int64_t c = 0; c < count; ++c) out[c] = std::sqrt(out[c]);
  }
};

class AttentionPool : public ImagePool {
 public:
  AttentionPool(int64_t node, Place from, Place logits, Place to)
      : ImagePool(node, {std::move(from), std::move(logits)}, std::move(to)) {}
  std::string text() const override { return sized("mean weighted by a softmax over pixels, to", writes_); }

 protected:
  void pool(const Memory& memory, int64_t image, int64_t first, int64_t last) const override {
    const View in = reads_[0].view(memory);
    const int64_t width = reads_[0].size.width;
    float* weights = cpu::thread_scratch(cpu::ScratchSlot::kSums, reads_[0].size.height * width);
    find_weights(memory, image, weights);
    // Every row of the call is added to the same channels.
    float* out = row_to(writes_.view(memory), image, 0) + first;
    std::fill_n(out, last - first, 0.0f);
    cpu::AffineCall call{};
    call.residual = call.output = out;
    call.input_stride = in.pixel;
    call.channels = last - first;
    call.row_step = 1;
    for (int64_t y = 0; y < reads_[0].size.height; ++y) {
      call.input = row_of(in, image, y) + first;
      call.row_factor = weights + y * width;
      cpu::kernels().affine(call, width);
    }
  }

 private:
  void find_weights(const Memory& memory, int64_t image, float* weights) const {
    const View logits = reads_[1].view(memory);
    const cpu::ImageSize size = reads_[1].size;
    float* at = weights;
    for (int64_t y = 0; y < size.height; ++y)
      for (int64_t x = 0; x < size.width; ++x) *at++ = row_of(logits, image, y)[x * logits.pixel];
    const float largest = *std::max_element(weights, at);
    double sum = 0;
    for (float* w = weights; w < at; ++w) sum += * w = std::exp(*w - largest);
    const auto share = static_cast<float>(1 / sum);
    for (float* w = weights; w < at; ++w) *w *= share;
  }
};

class ChannelConv : public RowStep {
 public:
  ChannelConv(int64_t node, const float* weight, int64_t taps, const float* bias, Place from, Place to)
      : RowStep(node, {std::move(from)}, std::move(to)), weight_(weight), taps_(taps), bias_(bias) {}
  std::string text() const override {
    return sized("filter over channels of", writes_) + ", " + std::to_string(taps_) + " taps";
  }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const View in = reads_[0].view(memory), out = writes_.view(memory);
    const int64_t channels = writes_.size.channels, before = taps_ / 2;
    for (int64_t image = begin; image < end; ++image) {
      const float* from = row_of(in, image, 0);
      float* to = row_to(out, image, 0);
      for (int64_t c = 0; c < channels; ++c) {
        const int64_t first = std::max<int64_t>(0, before - c);
        const int64_t last = std::min(taps_, channels + before - c);
        float sum = bias_ ? *bias_ : 0.0f;
        for (int64_t t = first; t < last; ++t) sum += weight_[t] * from[c + t - before];
        to[c] = sum;
      }
    }
  }

 private:
  const float* weight_;
  int64_t taps_;
  const float* bias_;
};

// From each pixel's channels to as many.
class PixelStep : public RowStep {
 public:
  using RowStep::RowStep;
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const View in = reads_[0].view(memory), out = writes_.view(memory);
    const cpu::ImageSize size = writes_.size;
    for (int64_t row = begin; row < end; ++row) {
      const float* from = row_of(in, row / size.height, row % size.height);
      float* to = row_to(out, row / size.height, row % size.height);
      for (int64_t x = 0; x < size.width; ++x, from += in.pixel, to += out.pixel)
        compute_pixel(from, to, size.channels);
    }
  }

 protected:
  virtual void compute_pixel(const float* from, float* to, int64_t channels) const = 0;
};

class Power : public PixelStep {
 public:
  Power(int64_t node, double exponent, Place from, Place to)
      : PixelStep(node, {std::move(from)}, std::move(to)), exponent_(exponent) {}
  std::string text() const override { return sized("power", writes_); }

 private:
  void compute_pixel(const float* from, float* to, int64_t count) const override {
    if (exponent_ == -1)
      for (int64_t c = 0; c < count; ++c) to[c] = 1.0f / from[c];
    else if (exponent_ == 0.5)
      for (int64_t c = 0; c < count; ++c) to[c] = std::sqrt(from[c]);
    else if (exponent_ == -0.5)
      for (int64_t c = 0; c < count; ++c) to[c] = 1.0f / std::sqrt(from[c]);
    else if (exponent_ == 3)
      for (int64_t c = 0; c < count; ++c) to[c] = from[c] * from[c] * from[c];
    else
      for (int64_t c = 0; c < count; ++c) to[c] = std::pow(from[c], static_cast<float>(exponent_));
  }

  double exponent_;
};

class Softmax : public PixelStep {
 public:
  Softmax(int64_t node, bool logarithm, Place from, Place to)
      : PixelStep(node, {std::move(from)}, std::move(to)), logarithm_(logarithm) {}
  std::string text() const override {
    return sized(logarithm_ ? "logarithm of the softmax of" : "softmax of", writes_);
  }

 private:
  void compute_pixel(const float* from, float* to, int64_t count) const override {
    const float largest = *std::max_element(from, from + count);
    double sum = 0;
    for (int64_t c = 0; c < count; ++c) sum += to[c] = std::exp(from[c] - largest);
    if (logarithm_) {
      const auto below = static_cast<float>(std::log(sum));
      for (int64_t c = 0; c < count; ++c) to[c] = from[c] - largest - below;
      return;
    }
    const auto factor = static_cast<float>(1 / sum);
    for (int64_t c = 0; c < count; ++c) to[c] *= factor;
  }

  bool logarithm_;
};

}  // namespace

std::unique_ptr<Step> softmax_step(int64_t node, bool logarithm, Place from, Place to) {
  return std::make_unique<Softmax>(node, logarithm, std::move(from), std::move(to));
}

std::unique_ptr<Step> channel_max_step(int64_t node, Place from, Place to) {
  return std::make_unique<ChannelMax>(node, std::move(from), std::move(to));
}

std::unique_ptr<Step> image_norm_step(int64_t node, Place from, Place to) {
  return std::make_unique<ImageNorm>(node, std::move(from), std::move(to));
}

std::unique_ptr<Step> channel_conv_step(int64_t node, const float* weight, int64_t taps, const float* bias,
                                        Place from, Place to) {
  return std::make_unique<ChannelConv>(node, weight, taps, bias, std::move(from), std::move(to));
}

std::unique_ptr<Step> power_step(int64_t node, double exponent, Place from, Place to) {
  return std::make_unique<Power>(node, exponent, std::move(from), std::move(to));
}

std::unique_ptr<Step> attention_pool_step(int64_t node, Place from, Place logits, Place to) {
  return std::make_unique<AttentionPool>(node, std::move(from), std::move(logits), std::move(to));
}

}  // namespace cnnfast::plan
