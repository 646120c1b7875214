// The kernels of lrn.cuh with their grids and reaches. A Launcher is called as launch(kernel, grid,
// arguments).
#pragma once
#include "cuda/lrn.cuh"

namespace cnnfast::cuda {

inline dim3 stretch_grid(int64_t values) {
  return dim3(static_cast<unsigned>((values + kStretch - 1) / kStretch), 1, 1);
}

// Windows of the literature reach 2 channels; a wider reach makes blocks bring in more than they need.
template <typename T, typename Launcher>
void run_lrn(Launcher& launch, const LrnArgs<T>& args) {
  const dim3 grid = stretch_grid(args.size);
  if (args.before <= 8) return launch(lrn_forward<T, 8>, grid, args);
  launch(lrn_forward<T, kMostReach>, grid, args);
}

template <typename T, typename Launcher>
void run_lrn_backward(Launcher& launch, const LrnArgs<T>& args) {
  const dim3 grid = stretch_grid(args.size);
  if (args.before <= 4) return launch(lrn_backward<T, 8>, grid, args);
  launch(lrn_backward<T, kMostReach>, grid, args);
}

}  // namespace cnnfast::cuda
