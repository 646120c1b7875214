#include "cpu/normalise.h"

#include <ATen/Functions.h>

#include <algorithm>
#include <cmath>

#include "cpu/bf16_table.h"
#include "cpu/channel_sums.h"
#include "cpu/channel_values.h"
#include "cpu/memory_pool.h"
#include "cpu/parallel.h"
#include "cpu/planes.h"

namespace cnnfast::cpu {

bool all_float(const at::Tensor& input, std::initializer_list<OptionalTensor> others) {
  bool all = is_plain_float(input);
  for (const auto& t : others) all = all && (!present(t) || t->scalar_type() == at::kFloat);
  return all;
}

namespace {

void add_squares(const PixelRows& x, int64_t first, int64_t rows, const float* mean, float* sum) {
  if (x.narrow)
    bf16_kernels().norm->column_sum(x.narrow + first * x.stride, x.stride, rows, x.channels, mean, sum);
  else
    kernels().column_sum(x.data + first * x.stride, x.stride, rows, x.channels, mean, sum);
}

void add_distances(const PixelRows& x, int64_t first, int64_t rows, const float* from, float* sum) {
  if (x.narrow)
    bf16_kernels().norm->column_distances(x.narrow + first * x.stride, x.stride, rows, x.channels, from, sum);
  else
    kernels().column_distances(x.data + first * x.stride, x.stride, rows, x.channels, from, sum);
}

// Means over rows. Values are summed as distances from those of the first row, which loses less the less they
// vary, and nothing where they do not. `origin`: memory for a row.
void find_means(const PixelRows& x, int64_t first, int64_t rows, float* origin, float* mean) {
  if (x.narrow)
    bf16_kernels().widen({x.narrow + first * x.stride, x.stride}, {origin, x.channels}, 1, x.channels);
  else
    std::copy_n(x.data + first * x.stride, x.channels, origin);
  for (int64_t c = 0; c < x.channels; ++c)
    if (!std::isfinite(origin[c])) origin[c] = 0.0f;
  add_distances(x, first, rows, origin, mean);
  const float scale = 1.0f / static_cast<float>(rows);
  for (int64_t c = 0; c < x.channels; ++c) mean[c] = origin[c] + mean[c] * scale;
}

}  // namespace

void part_statistics(const PixelRows& x, int64_t first, int64_t rows, float* origin, float* mean,
                     float* squares) {
  find_means(x, first, rows, origin, mean);
  add_squares(x, first, rows, mean, squares);
}

// One pass over memory: every part's own mean, and the squares around it while the part is in cache; then
// the parts are put together (Chan, Golub and LeVeque 1983).
Statistics batch_statistics(const PixelRows& x) {
  const int64_t channels = x.channels, parts = (x.rows + kRowsPerPart - 1) / kRowsPerPart;
  std::vector<float> means(static_cast<size_t>(parts * channels), 0.0f), squares(means);
  const auto rows_of = [&](int64_t part) { return std::min(kRowsPerPart, x.rows - part * kRowsPerPart); };
  parallel_team(threads_for(x.rows * channels), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(parts, 1, thread, team);
    std::vector<float> origin(static_cast<size_t>(channels));
    for (int64_t part = begin; part < end; ++part) {
      part_statistics(x, part * kRowsPerPart, rows_of(part), origin.data(), means.data() + part * channels,
                      squares.data() + part * channels);
    }
  });
  const auto count = static_cast<double>(x.rows);
  std::vector<double> mean(static_cast<size_t>(channels), 0.0), var(mean);
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t c = 0; c < channels; ++c)
      mean[c] += means[part * channels + c] * static_cast<double>(rows_of(part));
  for (double& m : mean) m /= count;
  for (int64_t part = 0; part < parts; ++part)
    for (int64_t c = 0; c < channels; ++c) {
      const double distance = means[part * channels + c] - mean[c];
      var[c] += squares[part * channels + c] + static_cast<double>(rows_of(part)) * distance * distance;
    }
  for (double& v : var) v /= count;
  return {channel_tensor(mean, x.storage.options()), channel_tensor(var, x.storage.options())};
}

ScaleShift fold(const at::Tensor& mean, const at::Tensor& var, const OptionalTensor& weight,
                const OptionalTensor& bias, double eps) {
  const int64_t channels = mean.numel();
  ScaleShift s{AlignedFloats(channels), AlignedFloats(channels)};
  const ChannelValues m(mean, 0.0), v(var, 1.0), w(weight, 1.0), b(bias, 0.0);
  for (int64_t c = 0; c < channels; ++c) {
    const double scale = w[c] / std::sqrt(v[c] + eps);
    s.scale.data()[c] = static_cast<float>(scale);
    s.shift.data()[c] = static_cast<float>(b[c] - m[c] * scale);
  }
  return s;
}

void normalise_rows(const PixelRows& x, const InputPrologue& p, const PixelRows& r, const OutputRows& to,
                    int64_t begin, int64_t end) {
  const bool as_they_are = x.narrow && !r.data && Affine16Call<uint16_t>::serves(p.activation);
  if (as_they_are && !to.narrow && !r.narrow)
    return bf16_kernels().norm->affine_wide(
        {x.narrow + begin * x.stride, nullptr, to.data + begin * x.channels, p.scale, p.shift, x.stride, 0,
         x.channels, x.channels, p.activation},
        end - begin);
  if (as_they_are && to.narrow)
    return bf16_kernels().norm->affine(
        {x.narrow + begin * x.stride, r.narrow ? r.narrow + begin * r.stride : nullptr,
         to.narrow + begin * x.channels, p.scale, p.shift, x.stride, r.stride, x.channels, x.channels,
         p.activation},
        end - begin);
  for_blocks(x.narrow || r.narrow || to.narrow, x.channels, 3, begin, end,
             [&](int64_t first, int64_t count, float* scratch, int64_t block) {
               const FloatRows from = float_rows(x, first, count, scratch),
                               more = float_rows(r, first, count, scratch + block);
               float* rows = to.at(first, scratch + 2 * block);
               kernels().affine({from.data, more.data, rows, p.scale, p.shift, from.stride, more.stride,
                                 x.channels, x.channels, p.activation},
                                count);
               to.finish(first, count, rows);
             });
}

void normalise_into(const PixelRows& x, const InputPrologue& p, const OptionalTensor& residual,
                    const at::Tensor& output) {
  if (output.numel() == 0) return;
  const PixelRows r = present(residual) ? pixel_rows(*residual) : PixelRows{};
  const OutputRows to(output);
  parallel_team(threads_for(output.numel()), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(x.rows, 1, thread, team);
    normalise_rows(x, p, r, to, begin, end);
  });
}

at::Tensor normalise(const PixelRows& x, at::IntArrayRef sizes, const ScaleShift& s,
                     const OptionalTensor& residual, Activation activation, at::ScalarType type) {
  const at::Tensor output =
      output_empty(sizes, x.storage.options().dtype(type), at::MemoryFormat::ChannelsLast);
  normalise_into(x, {s.scale.data(), s.shift.data(), activation}, residual, output);
  return output;
}

View normalised_with_border(const at::Tensor& t, const InputPrologue& p, Border b, at::Tensor& storage) {
  const ImageSize size = image_size(t);
  const int64_t height = size.height + b.top + b.bottom, width = size.width + b.left + b.right;
  storage = output_empty({size.images, height, width, size.channels}, t.options().dtype(at::kFloat));
  View to{storage.data_ptr<float>(), height * width * size.channels, width * size.channels, size.channels};
  to.data += b.top * to.row + b.left * to.pixel;
  const at::Tensor images = channels_adjacent(t) ? t : channels_last_copy(t);
  const bool narrow = images.scalar_type() == at::kBFloat16;
  const View from = narrow ? View{} : view_of(images);
  const View16 from16 = narrow ? view16_of(images) : View16{};
  parallel_team(threads_for(storage.numel()), [&](int thread, int team, Barrier&) {
    const auto [row_begin, row_end] = share(size.images * size.height, 1, thread, team);
    for (int64_t row = row_begin; row < row_end; ++row) {
      const int64_t n = row / size.height, y = row % size.height;
      float* const target = to.data + n * to.image + y * to.row;
      if (narrow)
        p.apply(from16.data + n * from16.image + y * from16.row, from16.pixel, target, size.width,
                size.channels);
      else
        p.apply(from.data + n * from.image + y * from.row, from.pixel, target, size.width, size.channels);
    }
    const auto [image_begin, image_end] = share(size.images, 1, thread, team);
    zero_border(to, size, b, image_begin, image_end);
  });
  return to;
}

at::Tensor batch_norm_act_float(const at::Tensor& input, const at::Tensor& mean, const at::Tensor& var,
                                const OptionalTensor& weight, const OptionalTensor& bias,
                                const OptionalTensor& residual, double eps, std::string_view activation) {
  return normalise(pixel_rows(input), input.sizes(), fold(mean, var, weight, bias, eps), residual,
                   parse_activation("batch_norm_act", activation), input.scalar_type());
}

}  // namespace cnnfast::cpu
