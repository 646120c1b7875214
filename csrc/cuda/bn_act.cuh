// Batch normalisation with given statistics, optional residual and activation, forward, on NHWC memory:
//
//   output[i] = act((input[i] - mean[c]) / sqrt(var[c] + eps) * weight[c] + bias[c] + residual[i])
//
// with c = i % channels. Two reads and one write per element with a residual, one read and one write without.
// Any grid computes the right answer; the grid of bn_act_launch.h also lets every thread keep its channels'
// constants in registers. Arithmetic is float32, rounded once at the store. No shared memory, no barriers, no
// inline assembly: the same body compiles for the host (tests/cuda/host).
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

namespace cnnfast::cuda {

// Values of cnnfast::Activation.
constexpr int kActivationNone = 0;
constexpr int kActivationReLU = 1;
constexpr int kActivationSigmoid = 2;

constexpr int kBlockThreads = 256;
constexpr int kBlocksPerProcessor = 4;  // resident at once; a fifth would leave too few registers

template <typename T>
struct BnActArgs {
  const T* input;
  const T* residual;  // nullptr: none
  T* output;          // overlaps nothing that is read
  const float* mean;
  const float* var;
  const float* weight;  // nullptr: 1
  const float* bias;    // nullptr: 0
  int64_t size;         // elements, a multiple of channels
  int32_t channels;
  int32_t activation;
  float eps;
};

// What one access moves: 16 bytes, or one element.
template <typename T, int kLanes>
struct alignas(sizeof(T) * kLanes) Pack {
  T lanes[kLanes];
};

template <typename T, int kLanes>
__device__ inline Pack<T, kLanes> load_pack(const T* address) {
  return *reinterpret_cast<const Pack<T, kLanes>*>(address);
}

template <typename T, int kLanes>
__device__ inline void store_pack(T* address, const Pack<T, kLanes>& pack) {
  *reinterpret_cast<Pack<T, kLanes>*>(address) = pack;
}

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ inline void round_to(float value, float& result) { result = value; }
__device__ inline void round_to(float value, __half& result) { result = __float2half_rn(value); }
__device__ inline void round_to(float value, __nv_bfloat16& result) { result = __float2bfloat16_rn(value); }

__device__ inline float activate(float value, int activation) {
  if (activation == kActivationReLU)
    return value < 0.0f ? 0.0f : value;  // a comparison keeps NaN, fmaxf does not
  if (activation == kActivationSigmoid) return 1.0f / (1.0f + expf(-value));
  return value;
}

// The constants of kLanes neighbouring channels. The mean is subtracted, not folded into the bias: x - mean
// is exact where the two are close, and mean * scale may be many times larger than the result.
template <int kLanes>
struct ChannelConstants {
  float mean[kLanes];
  float scale[kLanes];
  float bias[kLanes];

  template <typename T>
  __device__ void load(const BnActArgs<T>& args, uint32_t first_channel) {
    for (int lane = 0; lane < kLanes; ++lane) {
      const uint32_t c = (first_channel + lane) % static_cast<uint32_t>(args.channels);
      const float gain = args.weight ? args.weight[c] : 1.0f;
      mean[lane] = args.mean[c];
      scale[lane] = gain / sqrtf(args.var[c] + args.eps);
      bias[lane] = args.bias ? args.bias[c] : 0.0f;
    }
  }
};

template <typename T, int kLanes>
__device__ inline void bn_act_pack(const BnActArgs<T>& args, const ChannelConstants<kLanes>& constants,
                                   int64_t first_element) {
  Pack<T, kLanes> pack = load_pack<T, kLanes>(args.input + first_element);
  Pack<T, kLanes> residual = pack;
  if (args.residual) residual = load_pack<T, kLanes>(args.residual + first_element);
  for (int lane = 0; lane < kLanes; ++lane) {
    float y =
        fmaf(to_float(pack.lanes[lane]) - constants.mean[lane], constants.scale[lane], constants.bias[lane]);
    if (args.residual) y += to_float(residual.lanes[lane]);
    round_to(activate(y, args.activation), pack.lanes[lane]);
  }
  store_pack<T, kLanes>(args.output + first_element, pack);
}

template <typename T, int kLanes>
__global__ void __launch_bounds__(kBlockThreads, kBlocksPerProcessor) bn_act_forward(BnActArgs<T> args) {
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t threads = static_cast<int64_t>(gridDim.x) * blockDim.x;
  const int64_t packs = args.size / kLanes;
  const uint32_t channels = static_cast<uint32_t>(args.channels);
  uint32_t channel = static_cast<uint32_t>(thread * kLanes % channels);
  const uint32_t step = static_cast<uint32_t>(threads * kLanes % channels);

  ChannelConstants<kLanes> constants;
  constants.load(args, channel);
  for (int64_t pack = thread; pack < packs; pack += threads) {
    bn_act_pack<T, kLanes>(args, constants, pack * kLanes);
    if (step != 0) {
      channel = (channel + step) % channels;
      constants.load(args, channel);
    }
  }
  for (int64_t element = packs * kLanes + thread; element < args.size; element += threads) {
    ChannelConstants<1> constant;
    constant.load(args, static_cast<uint32_t>(element % channels));
    bn_act_pack<T, 1>(args, constant, element);
  }
}

}  // namespace cnnfast::cuda
