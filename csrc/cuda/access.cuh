// How kernels reach memory: 16 bytes at a time where addresses allow it, numbers of the three image types as
// float32, shared memory by its type. No inline assembly: all of it compiles for the host too.
#pragma once
#include "cuda/memory.h"

namespace cnnfast::cuda {

#ifdef CNNFAST_EMULATION
// Memory of one block, as long as the block runs; its contents are undefined at first.
template <typename T>
T& block_shared() {
  return emulation::block_shared<T>();
}

template <typename To, typename T>
To load_as(Global<const T> address) {
  return emulation::read_as<To>(address);
}

template <typename From, typename T>
void store_as(Global<T> address, const From& value) {
  emulation::write_as(address, value);
}
#else
template <typename T>
__device__ inline T& block_shared() {
  __shared__ T memory;
  return memory;
}

template <typename To, typename T>
__device__ inline To load_as(const T* address) {
  return *reinterpret_cast<const To*>(address);
}

template <typename From, typename T>
__device__ inline void store_as(T* address, const From& value) {
  *reinterpret_cast<From*>(address) = value;
}
#endif

__device__ inline float to_float(float value) { return value; }
__device__ inline float to_float(__half value) { return __half2float(value); }
__device__ inline float to_float(__nv_bfloat16 value) { return __bfloat162float(value); }

__device__ inline void round_to(float value, float& result) { result = value; }
__device__ inline void round_to(float value, __half& result) { result = __float2half_rn(value); }
__device__ inline void round_to(float value, __nv_bfloat16& result) { result = __float2bfloat16_rn(value); }

// The value as T would store it.
template <typename T>
__device__ inline float rounded(float value) {
  T stored;
  round_to(value, stored);
  return to_float(stored);
}

template <typename T>
__device__ inline float load_float(Global<const T> address) {
  const T value = address[0];
  return to_float(value);
}

template <typename T>
__device__ inline void store_float(Global<T> address, float value) {
  T stored;
  round_to(value, stored);
  address[0] = stored;
}

template <typename T>
struct alignas(kVectorBytes) Vector {
  static constexpr int kSize = kVectorSize<T>;
  T lanes[kSize];
};

// kCount values from an address divisible by 16 bytes, kCount a multiple of what 16 bytes hold.
template <int kCount, typename T>
__device__ inline void load_vectors(Global<const T> address, float (&values)[kCount]) {
  constexpr int kSize = Vector<T>::kSize;
  static_assert(kCount % kSize == 0, "whole vectors");
  for (int first = 0; first < kCount; first += kSize) {
    const Vector<T> vector = load_as<Vector<T>, T>(address + first);
    for (int lane = 0; lane < kSize; ++lane) values[first + lane] = to_float(vector.lanes[lane]);
  }
}

template <int kCount, typename T>
__device__ inline void store_vectors(Global<T> address, const float (&values)[kCount]) {
  constexpr int kSize = Vector<T>::kSize;
  static_assert(kCount % kSize == 0, "whole vectors");
  for (int first = 0; first < kCount; first += kSize) {
    Vector<T> vector;
    for (int lane = 0; lane < kSize; ++lane) round_to(values[first + lane], vector.lanes[lane]);
    store_as<Vector<T>, T>(address + first, vector);
  }
}

}  // namespace cnnfast::cuda
