// Local response normalisation over the channels of NHWC images, whose pixels follow one another:
//
//   base = k + alpha / size * (sum of x^2 over `size` channels around);  y = x * base^-beta
//   dx = dy * base^-beta - 2 alpha beta / size * x * (sum of dy x base^(-beta - 1) over the reversed window)
//
// A block has a stretch of values, without regard to where pixels end: it brings the stretch and what the
// windows reach beyond it into shared memory once, by 16 bytes where addresses allow it. One read and one
// write per value forward, two reads and one write backward, and the reach.
#pragma once
#include "cuda/access.cuh"
#include "cuda/lrn_args.h"

namespace cnnfast::cuda {

// A stretch with what lies around it. Threads have eight neighbours each; one place is left free after every
// 32, so that they meet different banks of shared memory.
template <int kReach>
struct Stretch {
  static constexpr int kAll = kStretch + 2 * kReach;
  float values[kAll + kAll / 32 + 1];

  __device__ float& operator[](int place) { return values[place + place / 32]; }
};

template <int kReach>
struct LrnMemory {
  Stretch<kReach> x;
};

template <int kReach>
struct LrnBackwardMemory {
  Stretch<kReach> x, grads, shares;
};

__device__ inline float power_of(float base, float exponent) {
  if (exponent == -0.75f) {
    const float root = sqrtf(base);
    return 1.0f / (root * sqrtf(root));
  }
  return powf(base, exponent);
}

// The stretch that begins at value `first`, zero outside [0, size), into shared memory; by all threads.
template <typename T, int kReach>
__device__ inline void bring_in(Global<const T> from, int64_t first, int64_t size, bool vectors,
                                Stretch<kReach>& to) {
  for (int place = static_cast<int>(threadIdx.x) * kLanes; place < Stretch<kReach>::kAll; place += kStretch) {
    const int64_t element = first + place;
    float values[kLanes];
    if (vectors && element >= 0 && element + kLanes <= size)
      load_vectors<kLanes, T>(from + element, values);
    else
      for (int lane = 0; lane < kLanes; ++lane) {
        const bool there = element + lane >= 0 && element + lane < size;
        values[lane] = there ? load_float<T>(from + (element + lane)) : 0.0f;
      }
    for (int lane = 0; lane < kLanes; ++lane) to[place + lane] = values[lane];
  }
}

// term(place) summed over the window of the value at `place`, within its pixel.
template <typename Term>
__device__ inline float window_sum(int place, int32_t channel, int32_t channels, int32_t before,
                                   int32_t behind, Term term) {
  const int32_t first = before < channel ? -before : -channel;
  const int32_t last = behind < channels - 1 - channel ? behind : channels - 1 - channel;
  float sum = 0.0f;
  for (int32_t offset = first; offset <= last; ++offset) sum = term(sum, place + offset);
  return sum;
}

template <typename T, int kReach>
__device__ inline float lrn_base(const LrnArgs<T>& args, Stretch<kReach>& x, int place, int32_t channel) {
  const float sum = window_sum(place, channel, args.channels, args.before, args.behind,
                               [&](float sum, int at) { return fmaf(x[at], x[at], sum); });
  return fmaf(sum, args.scale, args.k);
}

// Where the thread's eight values start within the whole and within the stretch's memory.
struct StretchPlace {
  int64_t element;
  int place;
  int32_t channel;
};

template <typename T>
__device__ inline StretchPlace stretch_place(const LrnArgs<T>& args, int64_t first, int reach) {
  StretchPlace s;
  s.element = first + static_cast<int>(threadIdx.x) * kLanes;
  s.place = static_cast<int>(threadIdx.x) * kLanes + reach;
  s.channel = static_cast<int32_t>(s.element % args.channels);
  return s;
}

template <typename T>
__device__ inline void store_stretch(const LrnArgs<T>& args, int64_t element, const float (&y)[kLanes]) {
  if (args.vectors && element + kLanes <= args.size)
    return store_vectors<kLanes, T>(args.output + element, y);
  for (int lane = 0; lane < kLanes; ++lane)
    if (element + lane < args.size) store_float<T>(args.output + (element + lane), y[lane]);
}

// kReach: at least what the window has before and behind, a multiple of eight.
template <typename T, int kReach>
__global__ void __launch_bounds__(kBlockThreads) lrn_forward(LrnArgs<T> args) {
  LrnMemory<kReach>& memory = block_shared<LrnMemory<kReach>>();
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kStretch;
  bring_in<T>(args.input, first - kReach, args.size, args.vectors, memory.x);
  __syncthreads();
  StretchPlace s = stretch_place(args, first, kReach);
  float y[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int place = s.place + lane;
    y[lane] = memory.x[place] * power_of(lrn_base(args, memory.x, place, s.channel), -args.beta);
    if (++s.channel == args.channels) s.channel = 0;
  }
  store_stretch(args, s.element, y);
}

// kReach: at least twice what the window has before and behind.
template <typename T, int kReach>
__global__ void __launch_bounds__(kBlockThreads) lrn_backward(LrnArgs<T> args) {
  LrnBackwardMemory<kReach>& memory = block_shared<LrnBackwardMemory<kReach>>();
  constexpr int kHalf = kReach / 2, kEnd = kReach + kStretch + kHalf;
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kStretch;
  bring_in<T>(args.input, first - kReach, args.size, args.vectors, memory.x);
  bring_in<T>(args.grad, first - kReach, args.size, args.vectors, memory.grads);
  __syncthreads();
  // dy x base^(-beta - 1), of the stretch and of what a window reaches beyond it
  for (int place = kHalf + static_cast<int>(threadIdx.x); place < kEnd; place += kBlockThreads) {
    const int64_t element = first - kReach + place;
    float share = 0.0f;
    if (element >= 0 && element < args.size) {
      const int32_t channel = static_cast<int32_t>(element % args.channels);
      const float base = lrn_base(args, memory.x, place, channel);
      share = memory.grads[place] * memory.x[place] * power_of(base, -args.beta) / base;
    }
    memory.shares[place] = share;
  }
  __syncthreads();
  StretchPlace s = stretch_place(args, first, kReach);
  float dx[kLanes];
  for (int lane = 0; lane < kLanes; ++lane) {
    const int place = s.place + lane;
    const float base = lrn_base(args, memory.x, place, s.channel);
    const float sum = window_sum(place, s.channel, args.channels, args.behind, args.before,
                                 [&](float sum, int at) { return sum + memory.shares[at]; });
    dx[lane] = memory.grads[place] * power_of(base, -args.beta) -
               2.0f * args.scale * args.beta * memory.x[place] * sum;
    if (++s.channel == args.channels) s.channel = 0;
  }
  store_stretch(args, s.element, dx);
}

}  // namespace cnnfast::cuda
