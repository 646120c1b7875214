// Max, average and global average pooling of NHWC images, forward and backward. A thread has one output pixel
// (backward: one input pixel) and as many neighbouring channels as 16 bytes hold, or one channel where
// addresses do not allow that. Outputs may be slices of a concatenation. Backward gathers: every input pixel
// asks the windows that hold it, so there are no atomics and the same bits come from run to run.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/pool_args.h"

namespace cnnfast::cuda {

template <typename T, bool kVector>
constexpr int kPack = kVector ? Vector<T>::kSize : 1;

template <typename T, bool kVector>
__device__ inline void load_pack(Global<const T> address, float (&values)[kPack<T, kVector>]) {
  if constexpr (kVector)
    load_vectors<kPack<T, kVector>, T>(address, values);
  else
    values[0] = load_float<T>(address);
}

template <typename T, bool kVector>
__device__ inline void store_pack(Global<T> address, const float (&values)[kPack<T, kVector>]) {
  if constexpr (kVector)
    store_vectors<kPack<T, kVector>, T>(address, values);
  else
    store_float<T>(address, values[0]);
}

// The part of a window inside the image along one side, as positions of the kernel [begin, end).
struct Inside {
  int32_t start;  // of position 0, may be negative
  int32_t begin, end;
  int32_t with_padding;  // positions that average pooling counts when it counts padding
};

__device__ inline Inside inside_of(int32_t place, int32_t stride, int32_t pad, int32_t kernel,
                                   int32_t dilation, int32_t size) {
  Inside s;
  s.start = place * stride - pad;
  s.begin = s.start >= 0 ? 0 : (-s.start + dilation - 1) / dilation;
  const int32_t fit = s.start < size ? (size - s.start + dilation - 1) / dilation : 0;
  s.end = fit < kernel ? fit : kernel;
  // Padding counts up to what was declared, never what ceil_mode adds beyond it (as torch).
  const int32_t last = s.start + kernel;
  s.with_padding = (last < size + pad ? last : size + pad) - s.start;
  return s;
}

__device__ inline Inside rows_of(const Windows& w, int32_t y) {
  return inside_of(y, w.stride_h, w.pad_h, w.kernel_h, w.dilation_h, w.in_height);
}
__device__ inline Inside columns_of(const Windows& w, int32_t x) {
  return inside_of(x, w.stride_w, w.pad_w, w.kernel_w, w.dilation_w, w.in_width);
}

// A thread's pixel and first channel; not active where there is none.
struct PackPlace {
  bool active;
  int32_t channel, y, x;
  int64_t image, pixel;
};

__device__ inline PackPlace pack_place(const PackLayout& l, int32_t height, int32_t width) {
  const int32_t thread = static_cast<int32_t>(threadIdx.x);
  const int32_t pack = static_cast<int32_t>(blockIdx.y) * l.tile + thread % l.tile, row = thread / l.tile;
  PackPlace p;
  p.channel = pack * l.lanes;
  p.pixel = static_cast<int64_t>(blockIdx.x) * l.pixels_per_block + row;
  p.active = pack < l.packs && row < l.pixels_per_block && p.pixel < l.pixels;
  // Fewer than 2^31 pixels (the caller sees to it): divisions of 32 bits.
  const uint32_t pixel = static_cast<uint32_t>(p.pixel), rows = pixel / static_cast<uint32_t>(width);
  p.x = static_cast<int32_t>(pixel % static_cast<uint32_t>(width));
  p.y = static_cast<int32_t>(rows % static_cast<uint32_t>(height));
  p.image = rows / static_cast<uint32_t>(height);
  return p;
}

template <typename T>
struct PoolArgs {
  Image<const T> input;
  Image<T> output;
  Windows windows;
  PackLayout layout;  // of the output's pixels
  bool count_include_pad;
  int32_t divisor_override;  // 0: none
  Activation activation;
};

__device__ inline float divisor_of(const Inside& rows, const Inside& columns, bool count_include_pad,
                                   int32_t divisor_override) {
  if (divisor_override) return static_cast<float>(divisor_override);
  if (count_include_pad)
    return static_cast<float>(rows.with_padding) * static_cast<float>(columns.with_padding);
  return static_cast<float>(rows.end - rows.begin) * static_cast<float>(columns.end - columns.begin);
}

// use(position of the kernel, address) for every pixel of the window that is inside the image.
template <typename T, typename Use>
__device__ inline void for_window(const Windows& w, const Inside& rows, const Inside& columns,
                                  const Image<const T>& image, const PackPlace& p, Use use) {
  for (int32_t ky = rows.begin; ky < rows.end; ++ky) {
    const int64_t row = p.image * w.in_height + rows.start + ky * w.dilation_h;
    for (int32_t kx = columns.begin; kx < columns.end; ++kx)
      use(ky * w.kernel_w + kx,
          image.data + ((row * w.in_width + columns.start + kx * w.dilation_w) * image.pixel + p.channel));
  }
}

// The largest value of every lane's window; a NaN beats all before it, an equal value none.
// won(lane, position, beats) for every value.
template <typename T, bool kVector, typename Won>
__device__ inline void window_max(const Windows& w, const Inside& rows, const Inside& columns,
                                  const Image<const T>& image, const PackPlace& p,
                                  float (&best)[kPack<T, kVector>], Won won) {
  constexpr int kCount = kPack<T, kVector>;
  for (int lane = 0; lane < kCount; ++lane) best[lane] = -INFINITY;
  for_window<T>(w, rows, columns, image, p, [&](int32_t position, Global<const T> address) {
    float x[kCount];
    load_pack<T, kVector>(address, x);
    for (int lane = 0; lane < kCount; ++lane) {
      const bool beats = x[lane] > best[lane] || x[lane] != x[lane];
      best[lane] = beats ? x[lane] : best[lane];
      won(lane, position, beats);
    }
  });
}

template <typename T, bool kVector>
__device__ inline void window_sum(const Windows& w, const Inside& rows, const Inside& columns,
                                  const Image<const T>& image, const PackPlace& p,
                                  float (&sum)[kPack<T, kVector>]) {
  constexpr int kCount = kPack<T, kVector>;
  for (int lane = 0; lane < kCount; ++lane) sum[lane] = 0.0f;
  for_window<T>(w, rows, columns, image, p, [&](int32_t, Global<const T> address) {
    float x[kCount];
    load_pack<T, kVector>(address, x);
    for (int lane = 0; lane < kCount; ++lane) sum[lane] += x[lane];
  });
}

template <typename T, bool kVector, PoolKind kKind>
__global__ void __launch_bounds__(kBlockThreads, kKind == PoolKind::kMax ? kPoolBlocks : kPoolBlocks / 2)
    pool_forward(PoolArgs<T> args) {
  constexpr int kCount = kPack<T, kVector>;
  const Windows& w = args.windows;
  const PackPlace p = pack_place(args.layout, w.height, w.width);
  if (!p.active) return;
  const Inside rows = rows_of(w, p.y), columns = columns_of(w, p.x);
  float y[kCount];
  if constexpr (kKind == PoolKind::kMax) {
    window_max<T, kVector>(w, rows, columns, args.input, p, y, [](int, int32_t, bool) {});
  } else {
    window_sum<T, kVector>(w, rows, columns, args.input, p, y);
    // A factor: divisions of every lane take registers that must then be spilled.
    const float factor = 1.0f / divisor_of(rows, columns, args.count_include_pad, args.divisor_override);
    for (int lane = 0; lane < kCount; ++lane) y[lane] *= factor;
  }
  for (int lane = 0; lane < kCount; ++lane) y[lane] = activate(y[lane], args.activation);
  store_pack<T, kVector>(args.output.data + (p.pixel * args.output.pixel + p.channel), y);
}

// ---- backward of max pooling: first every window's winner, one byte each, then every input pixel's sum

constexpr int32_t kNoWinner = 255;

template <int kCount>
struct Winners {
  uint8_t lanes[kCount];
};

template <typename T>
struct WinnersArgs {
  Image<const T> input;
  Global<uint8_t> winners;  // [output pixels, channels]
  Windows windows;
  PackLayout layout;  // of the output's pixels
};

template <typename T, bool kVector>
__global__ void __launch_bounds__(kBlockThreads, kPoolBlocks) max_pool_winners(WinnersArgs<T> args) {
  constexpr int kCount = kPack<T, kVector>;
  const Windows& w = args.windows;
  const PackPlace p = pack_place(args.layout, w.height, w.width);
  if (!p.active) return;
  const Inside rows = rows_of(w, p.y), columns = columns_of(w, p.x);
  const bool empty = rows.begin >= rows.end || columns.begin >= columns.end;
  const int32_t first = empty ? kNoWinner : rows.begin * w.kernel_w + columns.begin;
  Winners<kCount> winner;
  for (int lane = 0; lane < kCount; ++lane) winner.lanes[lane] = static_cast<uint8_t>(first);
  float best[kCount];
  window_max<T, kVector>(w, rows, columns, args.input, p, best, [&](int lane, int32_t position, bool beats) {
    winner.lanes[lane] = beats ? static_cast<uint8_t>(position) : winner.lanes[lane];
  });
  store_as<Winners<kCount>, uint8_t>(args.winners + (p.pixel * args.layout.channels + p.channel), winner);
}

template <typename T>
struct PoolBackwardArgs {
  Image<const T> grad;
  Image<T> grad_input;
  Global<const uint8_t> winners;  // max pooling
  Windows windows;
  PackLayout layout;  // of the input's pixels
  bool count_include_pad;
  int32_t divisor_override;
};

// The window whose kernel has `position` at `place` of the input, or -1.
__device__ inline int32_t window_at(int32_t place, int32_t position, int32_t stride, int32_t pad,
                                    int32_t dilation, int32_t windows) {
  const int32_t start = place + pad - position * dilation;
  if (start < 0 || start % stride != 0) return -1;
  const int32_t window = start / stride;
  return window < windows ? window : -1;
}

// use(position, y, x, pixel) for every window that holds the input pixel.
template <typename Use>
__device__ inline void for_windows_around(const Windows& w, const PackPlace& p, Use use) {
  for (int32_t ky = 0; ky < w.kernel_h; ++ky) {
    const int32_t y = window_at(p.y, ky, w.stride_h, w.pad_h, w.dilation_h, w.height);
    if (y < 0) continue;
    for (int32_t kx = 0; kx < w.kernel_w; ++kx) {
      const int32_t x = window_at(p.x, kx, w.stride_w, w.pad_w, w.dilation_w, w.width);
      if (x >= 0) use(ky * w.kernel_w + kx, y, x, (p.image * w.height + y) * w.width + x);
    }
  }
}

template <typename T, bool kVector, PoolKind kKind>
__global__ void __launch_bounds__(kBlockThreads, kPoolBlocks) pool_backward(PoolBackwardArgs<T> args) {
  constexpr int kCount = kPack<T, kVector>;
  const Windows& w = args.windows;
  const PackPlace p = pack_place(args.layout, w.in_height, w.in_width);
  if (!p.active) return;
  float sum[kCount] = {};
  for_windows_around(w, p, [&](int32_t position, int32_t y, int32_t x, int64_t pixel) {
    float grad[kCount];
    // After what it is weighed with: fewer registers are taken at once.
    const auto load_grad = [&] {
      load_pack<T, kVector>(args.grad.data + (pixel * args.grad.pixel + p.channel), grad);
    };
    if constexpr (kKind == PoolKind::kMax) {
      const auto winner =
          load_as<Winners<kCount>, uint8_t>(args.winners + (pixel * args.layout.channels + p.channel));
      load_grad();
      for (int lane = 0; lane < kCount; ++lane)
        sum[lane] += winner.lanes[lane] == position ? grad[lane] : 0.0f;
    } else {
      const float factor =
          1.0f / divisor_of(rows_of(w, y), columns_of(w, x), args.count_include_pad, args.divisor_override);
      load_grad();
      for (int lane = 0; lane < kCount; ++lane) sum[lane] = fmaf(grad[lane], factor, sum[lane]);
    }
  });
  store_pack<T, kVector>(args.grad_input.data + (p.pixel * args.grad_input.pixel + p.channel), sum);
}

// ---- global average pooling: a block has one image and a tile of its channels

template <typename T>
struct GlobalPoolArgs {
  Image<const T> input;
  Global<T> output;   // [images, channels]
  int64_t pixels;     // of one image
  PackLayout layout;  // of one image's pixels
};

struct GlobalPoolMemory {
  float sum[kBlockThreads][kLanes];
};

template <typename T, bool kVector>
__global__ void __launch_bounds__(kBlockThreads, kPoolBlocks)
    global_avg_pool_forward(GlobalPoolArgs<T> args) {
  constexpr int kCount = kPack<T, kVector>;
  const PackLayout& l = args.layout;
  const int32_t thread = static_cast<int32_t>(threadIdx.x), row = thread / l.tile;
  const int32_t pack = static_cast<int32_t>(blockIdx.y) * l.tile + thread % l.tile;
  const bool active = row < l.pixels_per_block && pack < l.packs;
  const int64_t image = blockIdx.x;
  float sum[kCount] = {};
  if (active)
    for (int64_t pixel = row; pixel < args.pixels; pixel += l.pixels_per_block) {
      float x[kCount];
      load_pack<T, kVector>(
          args.input.data + ((image * args.pixels + pixel) * args.input.pixel + pack * l.lanes), x);
      for (int lane = 0; lane < kCount; ++lane) sum[lane] += x[lane];
    }
  GlobalPoolMemory& memory = block_shared<GlobalPoolMemory>();
  for (int32_t rows = l.pixels_per_block; rows > 1;) {
    const int32_t half = (rows + 1) / 2;
    if (active && row >= half && row < rows)
      for (int lane = 0; lane < kCount; ++lane) memory.sum[thread][lane] = sum[lane];
    __syncthreads();
    if (active && row + half < rows)
      for (int lane = 0; lane < kCount; ++lane) sum[lane] += memory.sum[thread + half * l.tile][lane];
    rows = half;
  }
  if (!active || row != 0) return;
  for (int lane = 0; lane < kCount; ++lane) sum[lane] /= static_cast<float>(args.pixels);
  store_pack<T, kVector>(args.output + (image * l.channels + pack * l.lanes), sum);
}

}  // namespace cnnfast::cuda
