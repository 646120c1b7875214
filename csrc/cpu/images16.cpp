#include "cpu/images16.h"

#include <ATen/Functions.h>

#include "cpu/memory_pool.h"
#include "cpu/parallel.h"
#include "cpu/tensor_view.h"

namespace cnnfast::cpu {

uint16_t* bits_of(const at::Tensor& t) { return reinterpret_cast<uint16_t*>(t.data_ptr<at::BFloat16>()); }

View16 view16_of(const at::Tensor& t) {
  View16 v;
  v.data = bits_of(t);
  v.pixel = t.size(3) == 1 ? t.size(1) : t.stride(3);
  v.row = t.size(2) == 1 ? v.pixel * t.size(3) : t.stride(2);
  v.image = t.size(0) == 1 ? v.row * t.size(2) : t.stride(0);
  return v;
}

Images16 bring_in16(const at::Tensor& t, const Border& b) {
  const bool bordered = b.top || b.left || b.bottom || b.right;
  if (!bordered && channels_adjacent(t)) {
    const View16 v = view16_of(t);
    int64_t last = 0;
    for (int64_t i = 0; i < t.dim(); ++i) last += (t.size(i) - 1) * t.stride(i);
    return {v, v.data, v.data + last + 1, t};
  }
  const ImageSize size = image_size(t);
  const int64_t height = size.height + b.top + b.bottom, width = size.width + b.left + b.right;
  const at::Tensor storage =
      gradient_empty({size.images, height, width, size.channels}, t.options(), std::nullopt);
  uint16_t* data = bits_of(storage);
  const View16 all{data, height * width * size.channels, width * size.channels, size.channels};
  View16 inside = all;
  inside.data += b.top * all.row + b.left * all.pixel;
  parallel_team(storage.numel() < (1 << 14) ? 1 : team_size(), [&](int thread, int team, Barrier&) {
    const auto [row_begin, row_end] = share(size.images * size.height, 1, thread, team);
    copy_in(bits_of(t), tensor_strides(t), size, inside, row_begin, row_end);
    const auto [image_begin, image_end] = share(size.images, 1, thread, team);
    zero_border(inside, size, b, image_begin, image_end);
  });
  return {all, data, data + storage.numel(), storage};
}

}  // namespace cnnfast::cpu
