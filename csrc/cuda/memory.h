// Global memory as kernels and their arguments name it: a plain pointer, and on the host under emulation
// (tests/cuda/host) a class that counts what is read and written. Plain C++.
#pragma once
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdint>

#ifdef __CUDACC__
#define CNNFAST_HOST_DEVICE __host__ __device__
#else
#define CNNFAST_HOST_DEVICE
#endif

namespace cnnfast::cuda {

constexpr int kBlockThreads = 256;
constexpr int kVectorBytes = 16;
constexpr int kLanes = 8;  // neighbouring values that one thread works on

#ifdef CNNFAST_EMULATION
template <typename T>
using Global = emulation::Global<T>;

template <typename T>
T* address_of(const Global<T>& memory) {
  return memory.raw();
}
#else
template <typename T>
using Global = T*;

template <typename T>
T* address_of(T* memory) {
  return memory;
}
#endif

inline bool is_vector_aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % kVectorBytes == 0;  // nullptr (absent) is
}

// What 16 bytes hold of a type.
template <typename T>
constexpr int kVectorSize = kVectorBytes / static_cast<int>(sizeof(T));

}  // namespace cnnfast::cuda
