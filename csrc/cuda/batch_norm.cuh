// Batch normalisation with activation and added residual, forward and backward, per channel of NHWC images.
//
//   statistics  x -> mean and biased variance: Welford's updates in a thread, Chan's merges between threads
//               and blocks, in a fixed order, of x less the channel's first value: no cancellation however
//               large the mean is, and the same bits from run to run
//   forward     x, residual -> act((x - mean) / sqrt(var + eps) * weight + bias + residual), and for ReLU one
//               bit per value: whether its gradient passes. Two reads and one write per value, and 1/8 byte
//   backward    reduce: gradient, x, bits -> gradient behind the activation (the residual's), sums per
//   channel
//               apply: that, x -> gradient of x. Four reads and two writes per value, and 1/8 byte
//
// Arithmetic is float32; sums over blocks are float64. No atomics: partial results go to memory, one row of
// them per block, and a second kernel merges them.
#pragma once
#include "cuda/activation.cuh"
#include "cuda/batch_norm_args.h"
#include "cuda/lanes.cuh"

namespace cnnfast::cuda {

constexpr int kMergeChannels = 32;  // channels that a block of the merging kernels has
constexpr int kMergeSlices = kBlockThreads / kMergeChannels;

// ---- statistics

template <typename T>
struct StatisticsArgs {
  Image<const T> input;
  Layout layout;
  Global<float> mean, m2;  // [row_blocks, columns]: of each block's rows; m2 is the sum of squared deviations
  Global<float> shift;     // [channels]: the first values; the means are those of what is above them
};

// Mean and m2 of `count` values each; of one more in the first `extra` columns.
struct Moments {
  float mean[kLanes], m2[kLanes];
  int64_t count;
  int32_t extra;

  // `share`: one over the number of values, this one included.
  __device__ void add(int lane, float x, float share) {
    const float delta = x - mean[lane];
    mean[lane] = fmaf(delta, share, mean[lane]);
    m2[lane] = fmaf(delta, x - mean[lane], m2[lane]);
  }
};

// The first pixel's values; one thread per channel of the grid keeps them.
template <typename T>
__device__ inline void load_shift(const StatisticsArgs<T>& args, const Place& p, float (&shift)[kLanes]) {
  for_lanes(args.layout, p, [&](int lane, int32_t pixel, int32_t channel) {
    shift[lane] = args.layout.pixels ? load_float<T>(args.input.data + channel) : 0.0f;
    if (pixel == 0 && blockIdx.x == 0 && p.row_in_block == 0) args.shift[channel] = shift[lane];
  });
}

struct StatisticsMemory {
  Moments threads[kBlockThreads];
};

__device__ inline void merge(Moments& into, const Moments& from) {
  for (int lane = 0; lane < kLanes; ++lane) {
    const float ours = static_cast<float>(into.count + (lane < into.extra ? 1 : 0));
    const float theirs = static_cast<float>(from.count + (lane < from.extra ? 1 : 0));
    if (theirs == 0.0f) continue;
    const float all = ours + theirs, delta = from.mean[lane] - into.mean[lane];
    into.mean[lane] += delta * (theirs / all);
    into.m2[lane] += from.m2[lane] + delta * delta * (ours * (theirs / all));
  }
  into.count += from.count;
  into.extra += from.extra;  // one thread alone has the partial row
}

template <typename T, bool kVector>
__global__ void __launch_bounds__(kBlockThreads, kVector ? kStatisticsBlocks : 2)
    batch_norm_statistics(StatisticsArgs<T> args) {
  const Layout& l = args.layout;
  const Place p = place_of(l);
  Moments own{};
  float shift[kLanes];
  if (p.active) load_shift(args, p, shift);
  for_rows(
      l, p,
      [&](int64_t row) {
        float x[kLanes];
        load_lanes<kVector, T>(args.input, l, p, row, kLanes, x);
        const float share = 1.0f / static_cast<float>(++own.count);
        for (int lane = 0; lane < kLanes; ++lane) own.add(lane, x[lane] - shift[lane], share);
      },
      [&](int64_t row, int valid) {
        float x[kLanes];
        load_lanes<false, T>(args.input, l, p, row, valid, x);
        const float share = 1.0f / static_cast<float>(own.count + 1);
        for (int lane = 0; lane < kLanes; ++lane)
          if (lane < valid) own.add(lane, x[lane] - shift[lane], share);
        own.extra = valid;
      });

  // Rows of the block, halved until one is left: the upper half hands over to the lower one.
  StatisticsMemory& memory = block_shared<StatisticsMemory>();
  for (int32_t rows = l.rows_per_block; rows > 1;) {
    const int32_t half = (rows + 1) / 2;
    if (p.active && p.row_in_block >= half && p.row_in_block < rows) memory.threads[threadIdx.x] = own;
    __syncthreads();
    if (p.active && p.row_in_block + half < rows) merge(own, memory.threads[threadIdx.x + half * l.tile]);
    rows = half;
  }
  if (!p.active || p.row_in_block != 0) return;
  const int64_t place = static_cast<int64_t>(blockIdx.x) * l.columns + p.column;
  store_vectors<kLanes, float>(args.mean + place, own.mean);
  store_vectors<kLanes, float>(args.m2 + place, own.m2);
}

struct MergeStatisticsArgs {
  Global<const float> partial_mean, partial_m2, shift;
  Layout layout;
  Global<float> mean, var;  // [channels]
};

struct ChannelMoments {
  double mean, m2, count;
};

struct MergeStatisticsMemory {
  ChannelMoments threads[kMergeSlices][kMergeChannels];
};

__device__ inline void merge(ChannelMoments& into, const ChannelMoments& from) {
  if (from.count == 0.0) return;
  const double all = into.count + from.count, delta = from.mean - into.mean, share = from.count / all;
  into.mean += delta * share;
  into.m2 += from.m2 + delta * delta * into.count * share;
  into.count = all;
}

__global__ void __launch_bounds__(kBlockThreads) batch_norm_merge_statistics(MergeStatisticsArgs args) {
  const Layout& l = args.layout;
  const int32_t lane = threadIdx.x % kMergeChannels, slice = threadIdx.x / kMergeChannels;
  const int32_t channel = blockIdx.x * kMergeChannels + lane;
  ChannelMoments own{0.0, 0.0, 0.0};
  if (channel < l.channels)
    for (int32_t part = slice; part < l.row_blocks * l.fold; part += kMergeSlices) {
      const int32_t block = part / l.fold, column = channel + part % l.fold * l.channels;
      const int64_t place = static_cast<int64_t>(block) * l.columns + column;
      const float mean = args.partial_mean[place], m2 = args.partial_m2[place];
      merge(own, {mean, m2, static_cast<double>(l.count(block, column))});
    }
  MergeStatisticsMemory& memory = block_shared<MergeStatisticsMemory>();
  memory.threads[slice][lane] = own;
  __syncthreads();
  if (slice != 0 || channel >= l.channels) return;
  for (int32_t other = 1; other < kMergeSlices; ++other) merge(own, memory.threads[other][lane]);
  // No value at all: 0 / 0, as ATen has it.
  const float shift = args.shift[channel];
  args.mean[channel] = static_cast<float>(own.count == 0.0 ? own.count / own.count : own.mean + shift);
  args.var[channel] = static_cast<float>(own.m2 / own.count);
}

// ---- forward

// The mean is subtracted, not folded into the bias: x - mean is exact where the two are close, and
// mean * scale may be many times larger than the result.
struct ChannelConstants {
  float mean[kLanes], scale[kLanes], bias[kLanes];

  __device__ void load(Global<const float> means, Global<const float> vars, Global<const float> weights,
                       Global<const float> biases, float eps, const Layout& l, const Place& p) {
    load_channels(means, l, p, 0.0f, mean);
    load_channels(weights, l, p, 1.0f, scale);
    load_channels(biases, l, p, 0.0f, bias);
    if (!vars) return;
    float var[kLanes];
    load_channels(vars, l, p, 1.0f, var);
    for (int lane = 0; lane < kLanes; ++lane) scale[lane] /= sqrtf(var[lane] + eps);
  }
  __device__ float apply(float x, int lane) const { return fmaf(x - mean[lane], scale[lane], bias[lane]); }
};

template <typename T, bool kVector>
__device__ inline void forward_row(const ForwardArgs<T>& args, const ChannelConstants& constants,
                                   const Place& p, int64_t row, int valid) {
  const Layout& l = args.layout;
  float x[kLanes];
  load_lanes<kVector, T>(args.input, l, p, row, valid, x);
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = constants.apply(x[lane], lane);
  if (args.residual) {
    float added[kLanes];
    load_lanes<kVector, T>(args.residual, l, p, row, valid, added);
    for (int lane = 0; lane < kLanes; ++lane) x[lane] += added[lane];
  }
  for (int lane = 0; lane < kLanes; ++lane) x[lane] = activate(x[lane], args.activation);
  store_lanes<kVector, T>(args.output, l, p, row, valid, x);
  if (!args.mask) return;
  uint32_t bits = 0;
  for (int lane = 0; lane < kLanes; ++lane) {
    const bool blocked = rounded<T>(x[lane]) <= 0.0f;  // not of NaN: its gradient passes
    if (lane < valid && !blocked) bits |= 1u << lane;
  }
  args.mask[mask_byte(l, p, row)] = static_cast<uint8_t>(bits);
}

template <typename T, bool kVector>
__global__ void __launch_bounds__(kBlockThreads, kVector ? kForwardBlocks : 1)
    batch_norm_forward(ForwardArgs<T> args) {
  const Place p = place_of(args.layout);
  if (!p.active) return;
  ChannelConstants constants;
  constants.load(args.mean, args.var, args.weight, args.bias, args.eps, args.layout, p);
  for_rows(
      args.layout, p, [&](int64_t row) { forward_row<T, kVector>(args, constants, p, row, kLanes); },
      [&](int64_t row, int valid) { forward_row<T, false>(args, constants, p, row, valid); });
}

// ---- backward

struct ReduceMemory {
  float sum[kBlockThreads][kLanes], product[kBlockThreads][kLanes];
};

// The gradient behind the activation, as T stores it: both passes and the residual see the same numbers.
template <typename T, bool kVector, Source kSource, typename Args>
__device__ inline void grad_behind_activation(const Args& args, const Place& p, int64_t row, int valid,
                                              float (&grad)[kLanes]) {
  const Layout& l = args.layout;
  load_lanes<kVector, T>(args.grad, l, p, row, valid, grad);
  if constexpr (kSource == Source::kMask) {
    const uint32_t bits = args.mask[mask_byte(l, p, row)];
    for (int lane = 0; lane < kLanes; ++lane) grad[lane] = bits >> lane & 1 ? grad[lane] : 0.0f;
  }
  if constexpr (kSource == Source::kResult) {
    float result[kLanes];
    load_lanes<kVector, T>(args.result, l, p, row, valid, result);
    for (int lane = 0; lane < kLanes; ++lane)
      grad[lane] = rounded<T>(activation_gradient(grad[lane], result[lane], args.activation));
  }
}

template <typename T, bool kVector, Source kSource>
__device__ inline void reduce_row(const ReduceArgs<T>& args, const ChannelConstants& constants,
                                  const Place& p, int64_t row, int valid, float (&sum)[kLanes],
                                  float (&product)[kLanes]) {
  const Layout& l = args.layout;
  float grad[kLanes], x[kLanes];
  grad_behind_activation<T, kVector, kSource>(args, p, row, valid, grad);
  load_lanes<kVector, T>(args.input, l, p, row, valid, x);
  if constexpr (kSource == Source::kInput)
    for (int lane = 0; lane < kLanes; ++lane) {
      const float result = rounded<T>(activate(constants.apply(x[lane], lane), args.activation));
      grad[lane] = rounded<T>(activation_gradient(grad[lane], result, args.activation));
    }
  if (args.grad_behind) store_lanes<kVector, T>(args.grad_behind, l, p, row, valid, grad);
  for (int lane = 0; lane < kLanes; ++lane) {
    if (lane >= valid) continue;
    sum[lane] += grad[lane];
    product[lane] = fmaf(grad[lane], x[lane] - constants.mean[lane], product[lane]);
  }
  if constexpr (kSource == Source::kInput) {
    if (!args.accumulate) return;
    float before[kLanes];
    const Image<const T> old{args.accumulate.data, args.accumulate.pixel};
    load_lanes<kVector, T>(old, l, p, row, valid, before);
    for (int lane = 0; lane < kLanes; ++lane)
      before[lane] = fmaf(grad[lane], constants.scale[lane], before[lane]);
    store_lanes<kVector, T>(args.accumulate, l, p, row, valid, before);
  }
}

template <typename T, bool kVector, Source kSource>
__global__ void __launch_bounds__(kBlockThreads, kVector ? kBackwardBlocks : 1)
    batch_norm_reduce(ReduceArgs<T> args) {
  const Layout& l = args.layout;
  const Place p = place_of(l);
  float sum[kLanes] = {}, product[kLanes] = {};
  if (p.active) {
    ChannelConstants constants;
    if constexpr (kSource == Source::kInput)
      constants.load(args.mean, args.var, args.weight, args.bias, args.eps, l, p);
    else
      load_channels(args.mean, l, p, 0.0f, constants.mean);
    for_rows(
        l, p,
        [&](int64_t row) { reduce_row<T, kVector, kSource>(args, constants, p, row, kLanes, sum, product); },
        [&](int64_t row, int valid) {
          reduce_row<T, false, kSource>(args, constants, p, row, valid, sum, product);
        });
  }
  ReduceMemory& memory = block_shared<ReduceMemory>();
  for (int32_t rows = l.rows_per_block; rows > 1;) {
    const int32_t half = (rows + 1) / 2;
    if (p.active && p.row_in_block >= half && p.row_in_block < rows)
      for (int lane = 0; lane < kLanes; ++lane) {
        memory.sum[threadIdx.x][lane] = sum[lane];
        memory.product[threadIdx.x][lane] = product[lane];
      }
    __syncthreads();
    if (p.active && p.row_in_block + half < rows)
      for (int lane = 0; lane < kLanes; ++lane) {
        sum[lane] += memory.sum[threadIdx.x + half * l.tile][lane];
        product[lane] += memory.product[threadIdx.x + half * l.tile][lane];
      }
    rows = half;
  }
  if (!p.active || p.row_in_block != 0) return;
  const int64_t place = static_cast<int64_t>(blockIdx.x) * l.columns + p.column;
  store_vectors<kLanes, float>(args.sum + place, sum);
  store_vectors<kLanes, float>(args.product + place, product);
}

// From the partial sums to the gradients of the parameters, and to what the last pass multiplies with:
//   gradient of x = scale * grad + factor * (x - mean) + constant
struct MergeGradientsArgs {
  Global<const float> sum, product;  // partial
  Layout layout;
  Global<const float> var, weight;  // weight absent: 1
  float eps;
  bool batch_statistics;  // mean and var follow x
  // [channels], each may be absent
  Global<float> grad_weight, grad_bias, grad_mean, grad_var;
  Global<float> scale, factor, constant;
  bool add_terms;  // factor and constant grow by this call's, instead of becoming them
};

struct MergeGradientsMemory {
  double sum[kMergeSlices][kMergeChannels], product[kMergeSlices][kMergeChannels];
};

__device__ inline void add_or_set(Global<float> values, int32_t channel, float value, bool add) {
  const float before = add ? static_cast<float>(values[channel]) : 0.0f;
  values[channel] = before + value;
}

__global__ void __launch_bounds__(kBlockThreads) batch_norm_merge_gradients(MergeGradientsArgs args) {
  const Layout& l = args.layout;
  const int32_t lane = threadIdx.x % kMergeChannels, slice = threadIdx.x / kMergeChannels;
  const int32_t channel = blockIdx.x * kMergeChannels + lane;
  double sum = 0.0, product = 0.0;
  if (channel < l.channels)
    for (int32_t part = slice; part < l.row_blocks * l.fold; part += kMergeSlices) {
      const int64_t place = static_cast<int64_t>(part / l.fold) * l.columns + channel +
                            static_cast<int64_t>(part % l.fold) * l.channels;
      const float partial_sum = args.sum[place], partial_product = args.product[place];
      sum += partial_sum;
      product += partial_product;
    }
  MergeGradientsMemory& memory = block_shared<MergeGradientsMemory>();
  memory.sum[slice][lane] = sum;
  memory.product[slice][lane] = product;
  __syncthreads();
  if (slice != 0 || channel >= l.channels) return;
  for (int32_t other = 1; other < kMergeSlices; ++other) {
    sum += memory.sum[other][lane];
    product += memory.product[other][lane];
  }
  const float var = args.var[channel], weight = args.weight ? static_cast<float>(args.weight[channel]) : 1.0f;
  const double inverse_std = 1.0 / sqrt(static_cast<double>(var) + args.eps), scale = weight * inverse_std;
  if (args.grad_weight) args.grad_weight[channel] = static_cast<float>(product * inverse_std);
  if (args.grad_bias) args.grad_bias[channel] = static_cast<float>(sum);
  if (args.grad_mean) args.grad_mean[channel] = static_cast<float>(-scale * sum);
  if (args.grad_var)
    args.grad_var[channel] = static_cast<float>(-0.5 * scale * inverse_std * inverse_std * product);
  if (args.scale) args.scale[channel] = static_cast<float>(scale);
  if (!args.factor) return;
  const double share = args.batch_statistics && l.pixels ? scale / static_cast<double>(l.pixels) : 0.0;
  add_or_set(args.factor, channel, static_cast<float>(-share * inverse_std * inverse_std * product),
             args.add_terms);
  add_or_set(args.constant, channel, static_cast<float>(-share * sum), args.add_terms);
}

template <typename T>
struct ApplyArgs {
  Image<const T> grad, input, result;                 // input: absent without factor; result: Source::kResult
  Global<const uint8_t> mask;                         // Source::kMask
  Image<T> output;                                    // may be `grad` itself
  Global<const float> mean, scale, factor, constant;  // scale absent: 1; factor absent: 0, and constant too
  Activation activation;
  Layout layout;
};

template <typename T, bool kVector, Source kSource>
__device__ inline void apply_row(const ApplyArgs<T>& args, const float (&mean)[kLanes],
                                 const float (&scale)[kLanes], const float (&factor)[kLanes],
                                 const float (&constant)[kLanes], const Place& p, int64_t row, int valid) {
  const Layout& l = args.layout;
  float grad[kLanes];
  grad_behind_activation<T, kVector, kSource>(args, p, row, valid, grad);
  for (int lane = 0; lane < kLanes; ++lane) grad[lane] *= scale[lane];
  if (args.factor) {
    float x[kLanes];
    load_lanes<kVector, T>(args.input, l, p, row, valid, x);
    for (int lane = 0; lane < kLanes; ++lane)
      grad[lane] += fmaf(x[lane] - mean[lane], factor[lane], constant[lane]);
  }
  store_lanes<kVector, T>(args.output, l, p, row, valid, grad);
}

template <typename T, bool kVector, Source kSource>
__global__ void __launch_bounds__(kBlockThreads, kVector ? kBackwardBlocks : 1)
    batch_norm_apply(ApplyArgs<T> args) {
  const Layout& l = args.layout;
  const Place p = place_of(l);
  if (!p.active) return;
  float mean[kLanes], scale[kLanes], factor[kLanes], constant[kLanes];
  load_channels(args.scale, l, p, 1.0f, scale);
  load_channels(args.factor ? args.mean : Global<const float>(nullptr), l, p, 0.0f, mean);
  load_channels(args.factor, l, p, 0.0f, factor);
  load_channels(args.factor ? args.constant : Global<const float>(nullptr), l, p, 0.0f, constant);
  for_rows(
      l, p,
      [&](int64_t row) {
        apply_row<T, kVector, kSource>(args, mean, scale, factor, constant, p, row, kLanes);
      },
      [&](int64_t row, int valid) {
        apply_row<T, false, kSource>(args, mean, scale, factor, constant, p, row, valid);
      });
}

}  // namespace cnnfast::cuda
