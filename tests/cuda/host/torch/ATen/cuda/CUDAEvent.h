// Stand-in for torch's header of the same name. It counts: every stream that was forked must be joined.
#pragma once
#include <c10/cuda/CUDAStream.h>

namespace at::cuda {

inline int& joined() {
  static int count = 0;
  return count;
}

class CUDAEvent {
 public:
  void record(const c10::cuda::CUDAStream& stream) { recorded_ = stream.number(); }
  void block(const c10::cuda::CUDAStream& stream) {
    if (recorded_ != 0 && stream.number() == 0) ++joined();  // the main stream waits for a branch
  }

 private:
  int recorded_ = 0;
};

}  // namespace at::cuda
