// Stand-in for torch's header of the same name.
#pragma once
#include <c10/core/Device.h>
#include <c10/cuda/CUDAStream.h>

namespace c10::cuda {

struct CUDAGuard {
  explicit CUDAGuard(c10::Device) {}
};

class CUDAStreamGuard {
 public:
  explicit CUDAStreamGuard(CUDAStream stream) : before_(current_number()) {
    current_number() = stream.number();
  }
  ~CUDAStreamGuard() { current_number() = before_; }
  CUDAStreamGuard(const CUDAStreamGuard&) = delete;
  CUDAStreamGuard& operator=(const CUDAStreamGuard&) = delete;

 private:
  int before_;
};

}  // namespace c10::cuda
