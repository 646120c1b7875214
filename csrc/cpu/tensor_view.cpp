#include "cpu/tensor_view.h"

#include <ATen/Functions.h>

#include "cpu/bf16_table.h"
#include "cpu/memory_pool.h"
#include "cpu/parallel.h"
#include "cpu/planes.h"

namespace cnnfast::cpu {

bool is_plain_float(const at::Tensor& t) {
  return t.scalar_type() == at::kFloat && t.layout() == at::kStrided && !t.is_conj() && !t.is_neg();
}

std::vector<int64_t> concrete(const std::vector<c10::SymInt>& sizes) {
  std::vector<int64_t> result;
  for (const auto& size : sizes) result.push_back(size.expect_int());
  return result;
}

ImageSize image_size(const at::Tensor& t) { return {t.size(0), t.size(2), t.size(3), t.size(1)}; }

TensorStrides tensor_strides(const at::Tensor& t) {
  return {t.stride(0), t.stride(1), t.stride(2), t.stride(3)};
}

bool channels_adjacent(const at::Tensor& t) { return t.size(1) == 1 || t.stride(1) == 1; }

at::Tensor images_of(const at::Tensor& t) { return channels_adjacent(t) ? t : channels_last_copy(t); }

View view_of(const at::Tensor& t) {
  View v;
  v.data = t.data_ptr<float>();
  v.pixel = t.size(3) == 1 ? t.size(1) : t.stride(3);
  v.row = t.size(2) == 1 ? v.pixel * t.size(3) : t.stride(2);
  v.image = t.size(0) == 1 ? v.row * t.size(2) : t.stride(0);
  return v;
}

void widen_rows(const at::Tensor& t, ImageSize size, View to, int64_t row_begin, int64_t row_end) {
  const auto* from = reinterpret_cast<const uint16_t*>(t.const_data_ptr<at::BFloat16>());
  for (int64_t row = row_begin; row < row_end; ++row) {
    const int64_t image = row / size.height, y = row % size.height;
    bf16_kernels().widen({from + image * t.stride(0) + y * t.stride(2), t.stride(3)},
                         {to.data + image * to.image + y * to.row, to.pixel}, size.width, size.channels);
  }
}

namespace {

View copy_with_border(const at::Tensor& t, Border b, at::Tensor& storage, decltype(output_empty)& empty) {
  const bool narrow = t.scalar_type() == at::kBFloat16;
  if (narrow && !channels_adjacent(t)) return copy_with_border(channels_last_copy(t), b, storage, empty);
  const bool bordered = narrow || b.top || b.left || b.bottom || b.right;
  if (!bordered && channels_adjacent(t)) return view_of(t);
  const ImageSize size = image_size(t);
  const int64_t height = size.height + b.top + b.bottom, width = size.width + b.left + b.right;
  storage = empty({size.images, height, width, size.channels}, t.options().dtype(at::kFloat), std::nullopt);
  View v{storage.data_ptr<float>(), height * width * size.channels, width * size.channels, size.channels};
  v.data += b.top * v.row + b.left * v.pixel;
  parallel_team(storage.numel() < (1 << 14) ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [row_begin, row_end] = share(size.images * size.height, 1, thread, team);
    if (narrow)
      widen_rows(t, size, v, row_begin, row_end);
    else
      copy_in(t.const_data_ptr<float>(), tensor_strides(t), size, v, row_begin, row_end);
    const auto [image_begin, image_end] = share(size.images, 1, thread, team);
    zero_border(v, size, b, image_begin, image_end);
  });
  return v;
}

}  // namespace

View with_border(const at::Tensor& t, Border border, at::Tensor& storage) {
  return copy_with_border(t, border, storage, output_empty);
}

View with_border_kept(const at::Tensor& t, Border border, at::Tensor& storage) {
  return copy_with_border(t, border, storage, gradient_empty);
}

}  // namespace cnnfast::cpu
