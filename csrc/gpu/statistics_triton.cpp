#include "gpu/statistics_triton.h"

#include <ATen/ops/empty.h>

#include "gpu/conv_shape.h"

namespace cnnfast::gpu {
namespace {

Arguments arguments_of(const void* parts, const void* joined, int64_t count, int64_t channels,
                       int64_t part_pixels, int64_t pixels, bool last) {
  Arguments arguments;
  arguments.tensor("parts_ptr", Type::kFloat32, parts)
      .tensor("joined_ptr", Type::kFloat32, joined)
      .number("parts", count)
      .number("channels", channels)
      .number("part_pixels", part_pixels)
      .number("pixels", pixels)
      .number("LAST", last);
  return arguments;
}

}  // namespace

bool find_statistics_kernels(const at::Tensor& like, StatisticsKernels* found, std::string* reason) {
  if (!has_kernels(reason)) return false;
  for (const bool last : {false, true}) {
    const auto kernels = find_kernels(
        {"combine",
         [&](const Variant&) { return arguments_of(kSomeAddress, kSomeAddress, 1, 1, 1, 1, last); },
         [](const Variant&) { return int64_t{1}; }, [](const Variant&) { return 0.0; }},
        ordinal_of(like), 1, reason);
    if (kernels.empty()) return false;
    (last ? found->last : found->inner) = kernels[0];
  }
  return true;
}

std::tuple<at::Tensor, at::Tensor> join_parts(const StatisticsKernels& kernels, const Parts& parts) {
  at::Tensor sums = parts.sums;
  int64_t part_pixels = parts.part_pixels;
  const int64_t channels = sums.size(2);
  for (;;) {
    const int64_t count = sums.size(0);
    const int64_t rows = constant_of(*kernels.last.variant, "ROWS");
    const int64_t columns = constant_of(*kernels.last.variant, "COLUMNS");
    const int64_t chunks = divide_up(count, rows);
    const at::Tensor joined = at::empty({chunks, 2, channels}, sums.options());
    const bool last = chunks == 1;
    run_kernel(last ? kernels.last : kernels.inner,
               arguments_of(address_of(sums), joined.mutable_data_ptr(), count, channels, part_pixels,
                            parts.pixels, last),
               chunks * divide_up(channels, columns), sums);
    if (last) return {joined[0][0], joined[0][1]};
    sums = joined;
    part_pixels *= rows;
  }
}

}  // namespace cnnfast::gpu
