// The kernels of pool.cuh with their grids. A Launcher is called as launch(kernel, grid, arguments).
#pragma once
#include "cuda/pool.cuh"

namespace cnnfast::cuda {

inline dim3 pixel_grid(const PackLayout& l) {
  return dim3(static_cast<unsigned>((l.pixels + l.pixels_per_block - 1) / l.pixels_per_block),
              static_cast<unsigned>(l.tiles), 1);
}

template <typename T, bool kVector, typename Launcher>
void run_pool(Launcher& launch, PoolKind kind, const PoolCall<T>& c) {
  const PackLayout l = make_pack_layout(c.out_pixels(), c.channels, kPack<T, kVector>);
  const PoolArgs<T> args{{c.input.data, c.input.pixel},
                         {c.output.data, c.output.pixel},
                         c.windows,
                         l,
                         c.count_include_pad,
                         c.divisor_override,
                         c.activation};
  launch(kind == PoolKind::kMax ? pool_forward<T, kVector, PoolKind::kMax>
                                : pool_forward<T, kVector, PoolKind::kAvg>,
         pixel_grid(l), args);
}

template <typename T, typename Launcher>
void run_pool(Launcher& launch, PoolKind kind, const PoolCall<T>& c) {
  if (takes_packs(c.input.data, c.input.pixel, c.channels) &&
      takes_packs(c.output.data, c.output.pixel, c.channels))
    run_pool<T, true>(launch, kind, c);
  else
    run_pool<T, false>(launch, kind, c);
}

template <typename T, bool kVector, typename Launcher>
void run_pool_backward(Launcher& launch, PoolKind kind, const PoolBackwardCall<T>& c) {
  const Windows& w = c.windows;
  const PackLayout in = make_pack_layout(c.images * w.in_height * w.in_width, c.channels, kPack<T, kVector>);
  const PoolBackwardArgs<T> args{{c.grad.data, c.grad.pixel},
                                 {c.grad_input.data, c.grad_input.pixel},
                                 c.winners,
                                 w,
                                 in,
                                 c.count_include_pad,
                                 c.divisor_override};
  if (kind == PoolKind::kAvg) return launch(pool_backward<T, kVector, PoolKind::kAvg>, pixel_grid(in), args);
  const PackLayout out = make_pack_layout(c.images * w.height * w.width, c.channels, kPack<T, kVector>);
  launch(max_pool_winners<T, kVector>, pixel_grid(out),
         WinnersArgs<T>{{c.input.data, c.input.pixel}, c.winners, w, out});
  launch(pool_backward<T, kVector, PoolKind::kMax>, pixel_grid(in), args);
}

template <typename T, typename Launcher>
void run_pool_backward(Launcher& launch, PoolKind kind, const PoolBackwardCall<T>& c) {
  if (takes_packs(c.grad.data, c.grad.pixel, c.channels) &&
      takes_packs(c.input.data, c.input.pixel, c.channels) &&
      takes_packs(c.grad_input.data, c.grad_input.pixel, c.channels))
    run_pool_backward<T, true>(launch, kind, c);
  else
    run_pool_backward<T, false>(launch, kind, c);
}

template <typename T, bool kVector, typename Launcher>
void run_global_pool(Launcher& launch, Place4d<const T> input, T* output, int64_t images, int64_t pixels,
                     int64_t channels) {
  const PackLayout l = make_global_layout(images, pixels, channels, kPack<T, kVector>);
  launch(global_avg_pool_forward<T, kVector>,
         dim3(static_cast<unsigned>(images), static_cast<unsigned>(l.tiles), 1),
         GlobalPoolArgs<T>{{input.data, input.pixel}, output, pixels, l});
}

template <typename T, typename Launcher>
void run_global_pool(Launcher& launch, Place4d<const T> input, T* output, int64_t images, int64_t pixels,
                     int64_t channels) {
  if (takes_packs(input.data, input.pixel, channels) && takes_packs<T>(output, channels, channels))
    run_global_pool<T, true>(launch, input, output, images, pixels, channels);
  else
    run_global_pool<T, false>(launch, input, output, images, pixels, channels);
}

}  // namespace cnnfast::cuda
