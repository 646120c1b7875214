// group_norm2d on the CPU: float32 and bfloat16 through the kernels of batch norm, with factors of every
// image its own; other types through ATen.
#include "ops/group_norm2d.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include <cmath>

#include "cpu/channel_sums.h"
#include "cpu/channel_values.h"
#include "cpu/memory_pool.h"
#include "cpu/norm_backward_rows.h"
#include "cpu/normalise.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

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

// A group's mean and biased variance from those of its channels and parts (Chan, Golub and LeVeque 1983).
std::pair<double, double> group_statistics(const ImageParts& as, PartSums& sums, int64_t image,
                                           int64_t group) {
  const int64_t first = group * as.group();
  double mean = 0.0, squares = 0.0;
  for (int64_t part = 0; part < as.parts; ++part)
    for (int64_t c = first; c < first + as.group(); ++c)
      mean += static_cast<double>(as.rows_of(part)) * sums.at(image, part)[c];
  mean /= as.values_of_group();
  for (int64_t part = 0; part < as.parts; ++part)
    for (int64_t c = first; c < first + as.group(); ++c) {
      const double distance = sums.at(image, part)[c] - mean;
      squares +=
          sums.at(image, part)[as.channels + c] + static_cast<double>(as.rows_of(part)) * distance * distance;
    }
  return {mean, squares / as.values_of_group()};
}

bool has_kernels(const at::Tensor& input, std::initializer_list<OptionalTensor> others) {
  return takes_widened(input) || (all_float(input, others) && input.numel() > 0);
}

GroupNorm2dOutputs group_norm2d_cpu(const at::Tensor& input, int64_t groups, const OptionalTensor& weight,
                                    const OptionalTensor& bias, double eps, std::string_view activation) {
  if (!has_kernels(input, {weight, bias}))
    return group_norm2d_composite(input, groups, weight, bias, eps, activation);
  check_group_norm2d(input, groups, weight, bias, activation);
  const Activation act = parse_activation("group_norm2d", activation);
  const ImageParts as(input, groups);
  const PixelRows x = pixel_rows(input);
  const at::Tensor output = output_empty(input.sizes(), input.options(), at::MemoryFormat::ChannelsLast);
  const auto statistics = input.options().dtype(at::kFloat);
  const at::Tensor mean = at::empty({as.images, groups}, statistics), var = at::empty_like(mean);
  float *means = mean.data_ptr<float>(), *vars = var.data_ptr<float>();
  PartSums sums(as, 2 * as.channels);
  ImageFactors factors(as, weight, bias, eps);
  const OutputRows to(output);
  as.run(
      [&](int64_t image, int64_t part) {
        float* const of_part = sums.at(image, part);
        part_statistics(x, as.first_row(image, part), as.rows_of(part),
                        thread_scratch(ScratchSlot::kSums, as.channels), of_part, of_part + as.channels);
      },
      [&](int64_t image) {
        for (int64_t g = 0; g < groups; ++g) {
          const auto [m, v] = group_statistics(as, sums, image, g);
          means[image * groups + g] = static_cast<float>(m);
          vars[image * groups + g] = static_cast<float>(v);
          factors.set(image, g, m, v);
        }
      },
      [&](int64_t image, int64_t begin, int64_t end) {
        normalise_rows(x, {factors.scale(image), factors.shift(image), act}, {}, to, begin, end);
      });
  return {output, mean, var};
}

// What the gradient of every value has beside its own factor (see NormBackwardCall), and the sums that those
// of the parameters are made of.
class Backward {
 public:
  Backward(const ImageParts& as, const at::Tensor& mean, const at::Tensor& var, const OptionalTensor& weight,
           const OptionalTensor& bias, double eps)
      : as_(as),
        factors_(as, weight, bias, eps),
        sums_(as, 2 * as.channels),
        mean_(as.values(as.channels)),
        tilt_(mean_.size()),
        offset_(mean_.size()),
        grads_(mean_.size()),
        products_(mean_.size()),
        inverse_(as.values(as.groups)) {
    const at::Tensor means = mean.contiguous(), vars = var.contiguous();
    for (int64_t n = 0; n < as.images; ++n)
      for (int64_t g = 0; g < as.groups; ++g) {
        const float m = means.const_data_ptr<float>()[n * as.groups + g];
        const double v = vars.const_data_ptr<float>()[n * as.groups + g];
        factors_.set(n, g, m, v);
        inverse_[n * as.groups + g] = 1.0 / std::sqrt(v + eps);
        std::fill_n(mean_.begin() + n * as.channels + g * as.group(), as.group(), m);
      }
  }

  void run(const BackwardRows& from, const Activation& activation, const OutputRows& grad_input) {
    const auto call_of = [&](int64_t image) {
      const int64_t first = image * as_.channels;
      NormBackwardCall call{};
      call.mean = mean_.data() + first;
      call.slope = factors_.scale(image);
      call.tilt = tilt_.data() + first;
      call.offset = offset_.data() + first;
      call.channels = as_.channels;
      call.activation = activation;
      call.scale = factors_.scale(image);
      call.again_shift = factors_.shift(image);
      return call;
    };
    as_.run(
        [&](int64_t image, int64_t part) {
          float* const sums = sums_.at(image, part);
          add_backward_sums(call_of(image), from, as_.first_row(image, part), as_.rows_of(part), sums,
                            sums + as_.channels);
        },
        [&](int64_t image) { finish(image); },
        [&](int64_t image, int64_t begin, int64_t end) {
          if (!grad_input.wanted()) return;
          OutputRows own = grad_input;
          if (own.data) own.data += begin * as_.channels;
          if (own.narrow) own.narrow += begin * as_.channels;
          backward_rows(call_of(image), from, begin, end, own, OutputRows());
        });
  }

  std::vector<double> weight_gradient() const {
    return over_images([&](int64_t n, int64_t c) {
      return products_[n * as_.channels + c] * inverse_[n * as_.groups + c / as_.group()];
    });
  }
  std::vector<double> bias_gradient() const {
    return over_images([&](int64_t n, int64_t c) { return grads_[n * as_.channels + c]; });
  }

 private:
  void finish(int64_t image) {
    const int64_t first = image * as_.channels;
    for (int64_t part = 0; part < as_.parts; ++part)
      for (int64_t c = 0; c < as_.channels; ++c) {
        grads_[first + c] += sums_.at(image, part)[c];
        products_[first + c] += sums_.at(image, part)[as_.channels + c];
      }
    for (int64_t g = 0; g < as_.groups; ++g) {
      double grad = 0.0, product = 0.0;
      const int64_t begin = g * as_.group(), end = begin + as_.group();
      for (int64_t c = begin; c < end; ++c) {
        grad += factors_.weight(c) * grads_[first + c];
        product += factors_.weight(c) * products_[first + c];
      }
      const double inverse = inverse_[image * as_.groups + g] / as_.values_of_group();
      const double cube = inverse * std::pow(inverse_[image * as_.groups + g], 2);
      std::fill(offset_.begin() + first + begin, offset_.begin() + first + end,
                static_cast<float>(-inverse * grad));
      std::fill(tilt_.begin() + first + begin, tilt_.begin() + first + end,
                static_cast<float>(-cube * product));
    }
  }

  template <class Value>
  std::vector<double> over_images(Value&& value) const {
    std::vector<double> sums(static_cast<size_t>(as_.channels), 0.0);
    for (int64_t n = 0; n < as_.images; ++n)
      for (int64_t c = 0; c < as_.channels; ++c) sums[c] += value(n, c);
    return sums;
  }

  const ImageParts& as_;
  ImageFactors factors_;
  PartSums sums_;
  std::vector<float> mean_, tilt_, offset_;  // of every channel of every image
  std::vector<double> grads_, products_;     // likewise
  std::vector<double> inverse_;              // 1 / sqrt(var + eps), of every group of every image
};

GroupNorm2dGradients group_norm2d_backward_cpu(const at::Tensor& grad_output, const at::Tensor& input,
                                               const at::Tensor& mean, const at::Tensor& var, int64_t groups,
                                               const OptionalTensor& weight, const OptionalTensor& bias,
                                               double eps, std::string_view activation,
                                               std::array<bool, 3> output_mask) {
  if (!has_kernels(input, {weight, bias}) || grad_output.scalar_type() != input.scalar_type() ||
      !has_kernels(grad_output, {}))
    return group_norm2d_backward_composite(grad_output, input, mean, var, groups, weight, bias, eps,
                                           activation, output_mask);
  check_group_norm2d_backward(grad_output, input, mean, var, groups, weight, bias);
  const ImageParts as(input, groups);
  const at::Tensor grad_input =
      output_mask[0] ? gradient_empty(input.sizes(), input.options(), at::MemoryFormat::ChannelsLast)
                     : no_gradient(input);
  Backward backward(as, mean, var, weight, bias, eps);
  BackwardRows from;
  from.grad = pixel_rows(grad_output);
  from.input = pixel_rows(input);
  backward.run(from, parse_activation("group_norm2d_backward", activation),
               output_mask[0] ? OutputRows(grad_input) : OutputRows());
  const auto per_channel = [&](bool wanted, const OptionalTensor& parameter, auto&& values) {
    if (!wanted) return no_gradient(input);
    const at::Tensor sum = channel_tensor(values(), input.options());
    return present(parameter) ? as_type(sum, parameter->scalar_type()) : sum;
  };
  return {grad_input, per_channel(output_mask[1], weight, [&] { return backward.weight_gradient(); }),
          per_channel(output_mask[2], bias, [&] { return backward.bias_gradient(); })};
}

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) {
  m.impl("group_norm2d", TORCH_FN(group_norm2d_cpu));
  m.impl("group_norm2d_backward", TORCH_FN(group_norm2d_backward_cpu));
}

}  // namespace cnnfast::cpu
