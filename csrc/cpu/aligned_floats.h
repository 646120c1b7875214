// Memory for the kernels: aligned, on large pages where it is large, kept by threads as scratch.
#pragma once
#include <cstdint>
#include <memory>

namespace cnnfast::cpu {

// 64-byte aligned floats.
class AlignedFloats {
 public:
  explicit AlignedFloats(int64_t count);
  float* data() { return data_.get(); }
  const float* data() const { return data_.get(); }
  int64_t size() const { return size_; }

 private:
  struct Free {
    void operator()(float* p) const;
  };
  std::unique_ptr<float[], Free> data_;
  int64_t size_;
};

// Scratch memory of the calling thread, kept for its next call. Each user has a slot of its own.
enum class ScratchSlot {
  kWinograd,
  kStrip,
  kSums,
  kPacked,
  kTransformed,
  kWidened,
  kGathered,
  kPooled,
  kSpread,
  kGroup,
  kCount
};
float* thread_scratch(ScratchSlot slot, int64_t floats);

}  // namespace cnnfast::cpu
