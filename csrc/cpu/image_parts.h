// Images cut into parts of rows, for norms by the statistics of every image's own groups of channels.
#pragma once
#include <cmath>
#include <vector>

#include "cpu/channel_sums.h"
#include "cpu/channel_values.h"
#include "cpu/normalise.h"
#include "cpu/parallel.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {

// Rows of images, cut into parts that are summed in float32, and the groups of their channels.
struct ImageParts {
  int64_t images, rows, channels, groups, parts;

  ImageParts(const at::Tensor& input, int64_t groups)
      : images(input.size(0)),
        rows(input.size(2) * input.size(3)),
        channels(input.size(1)),
        groups(groups),
        parts((rows + kRowsPerPart - 1) / kRowsPerPart) {}

  int64_t group() const { return channels / groups; }
  double values_of_group() const { return static_cast<double>(rows * group()); }
  int64_t rows_of(int64_t part) const { return std::min(kRowsPerPart, rows - part * kRowsPerPart); }
  int64_t first_row(int64_t image, int64_t part) const { return image * rows + part * kRowsPerPart; }
  size_t values(int64_t each) const { return static_cast<size_t>(images * each); }

  // sum(image, part) for all, then finish(image) for those whose parts are through, then write(image, first
  // row, end row). A thread takes whole images, which then stay in its cache, where these can be shared out
  // evenly.
  template <class Sum, class Finish, class Write>
  void run(Sum&& sum, Finish&& finish, Write&& write) const {
    parallel_team(threads_for(images * rows * channels), [&](int thread, int team, Barrier& barrier) {
      if (images % team == 0 || images >= kManyImages * team) {
        const auto [begin, end] = share(images, 1, thread, team);
        for (int64_t image = begin; image < end; ++image) {
          for (int64_t part = 0; part < parts; ++part) sum(image, part);
          finish(image);
          write(image, image * rows, (image + 1) * rows);
        }
        return;
      }
      const auto [first_part, end_part] = share(images * parts, 1, thread, team);
      for (int64_t unit = first_part; unit < end_part; ++unit) sum(unit / parts, unit % parts);
      barrier.wait();
      const auto [first_image, end_image] = share(images, 1, thread, team);
      for (int64_t image = first_image; image < end_image; ++image) finish(image);
      barrier.wait();
      const auto [begin, end] = share(images * rows, 1, thread, team);
      for (int64_t row = begin; row < end;) {
        const int64_t image = row / rows, behind = std::min(end, (image + 1) * rows);
        write(image, row, behind);
        row = behind;
      }
    });
  }

  static constexpr int64_t kManyImages = 4;
};

// Numbers per channel of every image, which turn into x * scale + shift.
class ImageFactors {
 public:
  ImageFactors(const ImageParts& as, const OptionalTensor& weight, const OptionalTensor& bias, double eps)
      : as_(as),
        weight_(widened(weight), 1.0),
        bias_(widened(bias), 0.0),
        eps_(eps),
        scale_(as.values(as.channels)),
        shift_(scale_.size()) {}

  void set(int64_t image, int64_t group, double mean, double var) {
    const double inverse = 1.0 / std::sqrt(var + eps_);
    for (int64_t c = group * as_.group(); c < (group + 1) * as_.group(); ++c) {
      const double scale = weight_[c] * inverse;
      scale_[image * as_.channels + c] = static_cast<float>(scale);
      shift_[image * as_.channels + c] = static_cast<float>(bias_[c] - mean * scale);
    }
  }
  double weight(int64_t c) const { return weight_[c]; }
  const float* scale(int64_t image) const { return scale_.data() + image * as_.channels; }
  const float* shift(int64_t image) const { return shift_.data() + image * as_.channels; }

 private:
  const ImageParts& as_;
  const ChannelValues weight_, bias_;
  double eps_;
  std::vector<float> scale_, shift_;
};

// Sums of parts, `width` floats each.
class PartSums {
 public:
  PartSums(const ImageParts& as, int64_t width)
      : as_(as), width_(width), values_(as.values(as.parts * width), 0.0f) {}
  float* at(int64_t image, int64_t part) { return values_.data() + (image * as_.parts + part) * width_; }

 private:
  const ImageParts& as_;
  int64_t width_;
  std::vector<float> values_;
};

// Whether the kernels take these images; the others are numbers per channel.
inline bool norm_has_kernels(const at::Tensor& input, std::initializer_list<OptionalTensor> others) {
  return takes_widened(input) || (all_float(input, others) && input.numel() > 0);
}

}  // namespace cnnfast::cpu
