// Stand-in for torch's header of the same name. Streams are numbers, and work given to any of them is done at
// once; `used` counts what was taken from the pool.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdint>

namespace c10::cuda {

class CUDAStream {
 public:
  explicit CUDAStream(int number) : number_(number) {}
  operator cudaStream_t() const { return reinterpret_cast<cudaStream_t>(static_cast<intptr_t>(number_)); }
  int number() const { return number_; }
  int device_index() const { return 0; }

 private:
  int number_;
};

inline int& current_number() {
  static int number = 0;
  return number;
}
inline int& used() {
  static int count = 0;
  return count;
}
inline CUDAStream getCurrentCUDAStream() { return CUDAStream(current_number()); }
inline CUDAStream getStreamFromPool(bool, int) { return CUDAStream(++used()); }

}  // namespace c10::cuda
