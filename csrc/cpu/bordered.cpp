#include "cpu/bordered.h"

#include <ATen/Functions.h>

#include <algorithm>

#include "cpu/activation_rows.h"
#include "cpu/activation_rows16.h"
#include "cpu/channel_sums.h"
#include "cpu/memory_pool.h"
#include "cpu/parallel.h"
#include "cpu/pixel_rows.h"
#include "cpu/widened.h"

namespace cnnfast::cpu {
namespace {

constexpr int64_t kSerialElements = 1 << 14;

bool none(const Border& b) { return !b.top && !b.left && !b.bottom && !b.right; }

}  // namespace

Bordered bordered(at::IntArrayRef sizes, const at::TensorOptions& options, const Border& b) {
  const int64_t channels = sizes[1], height = sizes[2] + b.top + b.bottom,
                width = sizes[3] + b.left + b.right;
  Bordered t;
  t.storage = gradient_empty({sizes[0], height, width, channels}, options);
  const int64_t image = height * width * channels, row = width * channels;
  const int64_t first = b.top * row + b.left * channels;
  if (t.storage.scalar_type() == at::kBFloat16)
    t.view16 = {bits_of(t.storage) + first, image, row, channels};
  else
    t.view = {t.storage.data_ptr<float>() + first, image, row, channels};
  t.tensor = t.storage.as_strided(sizes, {image, 1, row, channels}, first);
  return t;
}

Images16 with_border16(const Bordered& t, const Border& border) {
  View16 all = t.view16;
  all.data -= border.top * all.row + border.left * all.pixel;
  const uint16_t* const memory = bits_of(t.storage);
  return {all, memory, memory + t.storage.numel(), t.storage};
}

Bordered activation_gradient(const at::Tensor& grad_output, const at::Tensor& output, Activation activation,
                             const Border& border, std::vector<double>* sums) {
  const bool masks = activation.kind != Activation::kNone;
  if (!masks) {
    const PixelRows grad = pixel_rows(widened_kept(grad_output));
    if (sums) *sums = channel_sums(grad.data, grad.stride, grad.rows, grad.channels, nullptr);
    Bordered t{grad.storage, grad.storage, {}};
    t.view = with_border_kept(grad.storage, border, t.storage);
    return t;
  }
  const ActivationRows rows(grad_output, output, activation);
  const ImageSize size = image_size(grad_output);
  Bordered to = bordered(grad_output.sizes(), grad_output.options().dtype(at::kFloat), border);
  const int64_t image_rows = size.images * size.height,
                part_rows = std::max<int64_t>(1, kRowsPerPart / size.width),
                parts = (image_rows + part_rows - 1) / part_rows;
  std::vector<float> partial(sums ? static_cast<size_t>(parts * size.channels) : 0, 0.0f);
  const auto rows_of_part = [&](int64_t part) {
    for (int64_t row = part * part_rows; row < std::min(image_rows, (part + 1) * part_rows); ++row)
      rows.run(row, to.view.data + row / size.height * to.view.image + row % size.height * to.view.row,
               sums ? partial.data() + part * size.channels : nullptr);
  };
  parallel_team(grad_output.numel() < kSerialElements ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(parts, 1, thread, team);
    for (int64_t part = begin; part < end; ++part) rows_of_part(part);
    if (none(border)) return;
    const auto [first, last] = share(size.images, 1, thread, team);
    zero_border(to.view, size, border, first, last);
  });
  if (sums) *sums = sum_of_parts(partial, size.channels);
  return to;
}

Bordered activation_gradient16(const at::Tensor& grad_output, const at::Tensor& output, Activation activation,
                               const Border& border, std::vector<double>* sums) {
  const ActivationRows16 rows(grad_output, output, activation);
  const ImageSize size = image_size(grad_output);
  Bordered to = bordered(grad_output.sizes(), grad_output.options(), border);
  const int64_t image_rows = size.images * size.height,
                part_rows = std::max<int64_t>(1, kRowsPerPart / size.width),
                parts = (image_rows + part_rows - 1) / part_rows;
  std::vector<float> partial(sums ? static_cast<size_t>(parts * size.channels) : 0, 0.0f);
  parallel_team(grad_output.numel() < kSerialElements ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [begin, end] = share(parts, 1, thread, team);
    for (int64_t part = begin; part < end; ++part)
      rows.run(part * part_rows, std::min(image_rows, (part + 1) * part_rows), 0, to.view16,
               sums ? partial.data() + part * size.channels : nullptr);
    const auto [first, last] = share(size.images, 1, thread, team);
    zero_border(to.view16, size, border, first, last);
  });
  if (sums) *sums = sum_of_parts(partial, size.channels);
  return to;
}

}  // namespace cnnfast::cpu
