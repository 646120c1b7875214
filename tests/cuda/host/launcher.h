// launch(kernel, grid, arguments) on the host.
#pragma once
#include "cuda/access.cuh"
#include "emulation.h"

namespace emulation {

class Launcher {
 public:
  explicit Launcher(uint64_t seed) : seed_(seed) {}
  template <typename Args>
  void operator()(void (*kernel)(Args), dim3 grid, const Args& args) {
    launch(grid, cnnfast::cuda::kBlockThreads, seed_++, [&] { kernel(args); });
  }

 private:
  uint64_t seed_;
};

}  // namespace emulation
