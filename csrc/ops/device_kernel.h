// Operators as the kernels of csrc/cuda have them, where those are built. csrc/gpu chooses between them and
// other backends; it finds them here, without their headers.
#pragma once
#include <atomic>
#include <stdexcept>

namespace cnnfast {

// Thrown by a backend that was asked and does not serve the call: an answer, no failure.
class Unserved : public std::runtime_error {
 public:
  Unserved() : std::runtime_error("the CUDA kernels have no form for this type, activation or size") {}
};

// The operator whose computation by ATen is kComposite, whose signature it has. Empty (nullptr) at first.
// kForm tells apart operators that share a composite.
template <auto* kComposite, int kForm = 0>
class DeviceKernel {
 public:
  using Function = decltype(kComposite);
  static bool set(Function function) {
    place() = function;
    return true;
  }
  static Function get() { return place(); }

 private:
  static std::atomic<Function>& place() {
    static std::atomic<Function> function{nullptr};
    return function;
  }
};

}  // namespace cnnfast
