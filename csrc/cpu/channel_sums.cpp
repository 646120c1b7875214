#include "cpu/channel_sums.h"

#include "cpu/kernel_table.h"
#include "cpu/parallel.h"

namespace cnnfast::cpu {

std::vector<double> channel_sums(const float* x, int64_t stride, int64_t rows, int64_t channels,
                                 const float* mean) {
  const int64_t parts = (rows + kRowsPerPart - 1) / kRowsPerPart;
  std::vector<float> partial(static_cast<size_t>(parts * channels), 0.0f);
  parallel_team(rows * channels < (1 << 14) ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(parts, 1, thread, team);
    for (int64_t part = begin; part < end; ++part)
      kernels().column_sum(x + part * kRowsPerPart * stride, stride,
                           std::min(kRowsPerPart, rows - part * kRowsPerPart), channels, mean,
                           partial.data() + part * channels);
  });
  return sum_of_parts(partial, channels);
}

std::vector<double> sum_of_parts(const std::vector<float>& partial, int64_t channels) {
  std::vector<double> sums(static_cast<size_t>(channels), 0.0);
  for (size_t i = 0; i < partial.size(); ++i) sums[i % channels] += partial[i];
  return sums;
}

}  // namespace cnnfast::cpu
