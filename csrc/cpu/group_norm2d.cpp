// group_norm2d on the CPU: float32 and bfloat16 through the kernels of batch norm, with factors of every
// image its own; other types through ATen.
#include "ops/group_norm2d.h"

#include <ATen/Functions.h>
#include <torch/library.h>

#include "cpu/image_parts.h"
#include "cpu/memory_pool.h"

namespace cnnfast::cpu {
namespace {

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

GroupNorm2dOutputs group_norm2d_cpu(const at::Tensor& input, int64_t groups, const OptionalTensor& weight,
                                    const OptionalTensor& bias, double eps, std::string_view activation) {
  if (!norm_has_kernels(input, {weight, bias}))
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

}  // namespace

TORCH_LIBRARY_IMPL(cnnfast, CPU, m) { m.impl("group_norm2d", TORCH_FN(group_norm2d_cpu)); }

}  // namespace cnnfast::cpu
