#include "plan/rearrange_steps.h"

#include <algorithm>
#include <cstring>

#include "plan/rows.h"

namespace cnnfast::plan {
namespace {

using cpu::View;

void copy_channels(const float* from, float* to, int64_t channels) {
  std::memcpy(to, from, sizeof(float) * static_cast<size_t>(channels));
}

class Crop : public RowStep {
 public:
  Crop(int64_t node, const std::vector<int64_t>& a, Place from, Place to)
      : RowStep(node, {std::move(from)}, std::move(to)),
        top_(a[0]),
        left_(a[1]),
        stride_h_(a[4]),
        stride_w_(a[5]) {}
  std::string text() const override { return "crop to " + size_text(writes_.size); }
  std::optional<RowWindow> window_of(size_t) const override { return RowWindow{stride_h_, -top_, 1}; }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const View in = reads_[0].view(memory), out = writes_.view(memory);
    const cpu::ImageSize size = writes_.size;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / size.height, y = row % size.height;
      const float* from = row_of(in, n, top_ + y * stride_h_) + left_ * in.pixel;
      float* to = row_to(out, n, y);
      for (int64_t x = 0; x < size.width; ++x, from += stride_w_ * in.pixel, to += out.pixel)
        copy_channels(from, to, size.channels);
    }
  }

 private:
  int64_t top_, left_, stride_h_, stride_w_;
};

// For each position of the padded side, the one that it repeats.
std::vector<int64_t> mirrored(MirrorMode mode, int64_t before, int64_t size, int64_t padded) {
  std::vector<int64_t> from;
  for (int64_t i = -before; i < padded - before; ++i) {
    if (mode == MirrorMode::kReplicate)
      from.push_back(std::clamp<int64_t>(i, 0, size - 1));
    else if (mode == MirrorMode::kCircular)
      from.push_back((i + size) % size);
    else
      from.push_back(i < 0 ? -i : i < size ? i : 2 * (size - 1) - i);
  }
  return from;
}

class MirrorPad : public RowStep {
 public:
  MirrorPad(int64_t node, const std::vector<int64_t>& a, Place from, Place to)
      : RowStep(node, {std::move(from)}, std::move(to)),
        rows_(mirrored(static_cast<MirrorMode>(a[4]), a[0], reads_[0].size.height, writes_.size.height)),
        columns_(mirrored(static_cast<MirrorMode>(a[4]), a[1], reads_[0].size.width, writes_.size.width)) {}
  std::string text() const override { return "pad with its own pixels to " + size_text(writes_.size); }
  std::optional<RowWindow> window_of(size_t) const override { return std::nullopt; }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const View in = reads_[0].view(memory), out = writes_.view(memory);
    const cpu::ImageSize size = writes_.size;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / size.height, y = row % size.height;
      const float* from = row_of(in, n, rows_[y]);
      float* to = row_to(out, n, y);
      for (int64_t x = 0; x < size.width; ++x, to += out.pixel)
        copy_channels(from + columns_[x] * in.pixel, to, size.channels);
    }
  }

 private:
  std::vector<int64_t> rows_, columns_;
};

class DepthToSpace : public RowStep {
 public:
  DepthToSpace(int64_t node, const std::vector<int64_t>& a, Place from, Place to)
      : RowStep(node, {std::move(from)}, std::move(to)),
        block_h_(a[0]),
        block_w_(a[1]),
        blocks_first_(a[2] == 1),
        top_(a[3]),
        left_(a[4]) {}
  std::string text() const override {
    return "channels to blocks of " + std::to_string(block_h_) + "x" + std::to_string(block_w_) + ", to " +
           size_text(writes_.size);
  }
  std::optional<RowWindow> window_of(size_t) const override { return std::nullopt; }
  void compute_rows(const Memory& memory, int64_t begin, int64_t end) const override {
    const View in = reads_[0].view(memory), out = writes_.view(memory);
    const cpu::ImageSize size = writes_.size;
    const int64_t block = block_h_ * block_w_;
    for (int64_t row = begin; row < end; ++row) {
      const int64_t n = row / size.height, y = row % size.height + top_;
      const float* from = row_of(in, n, y / block_h_);
      float* to = row_to(out, n, y - top_);
      for (int64_t x = left_; x < left_ + size.width; ++x, to += out.pixel) {
        const float* pixel = from + x / block_w_ * in.pixel;
        const int64_t place = y % block_h_ * block_w_ + x % block_w_;
        if (blocks_first_)
          copy_channels(pixel + place * size.channels, to, size.channels);
        else
          for (int64_t c = 0; c < size.channels; ++c) to[c] = pixel[c * block + place];
      }
    }
  }

 private:
  int64_t block_h_, block_w_;
  bool blocks_first_;
  int64_t top_, left_;
};

}  // namespace

std::unique_ptr<Step> crop_step(int64_t node, const std::vector<int64_t>& attributes, Place from, Place to) {
  return std::make_unique<Crop>(node, attributes, std::move(from), std::move(to));
}

std::unique_ptr<Step> mirror_pad_step(int64_t node, const std::vector<int64_t>& attributes, Place from,
                                      Place to) {
  return std::make_unique<MirrorPad>(node, attributes, std::move(from), std::move(to));
}

std::unique_ptr<Step> depth_to_space_step(int64_t node, const std::vector<int64_t>& attributes, Place from,
                                          Place to) {
  return std::make_unique<DepthToSpace>(node, attributes, std::move(from), std::move(to));
}

}  // namespace cnnfast::plan
