#include "cpu/vec16/avx512_bf16.h"

#include "cpu/kernels/bf16_table.inl"
#include "cpu/kernels/depthwise16.inl"
#include "cpu/kernels/weight_gradient16.inl"
#include "cpu/kernels/winograd_fixed.inl"

namespace cnnfast::cpu {
extern const Bf16Kernels kAvx512WithBf16Kernels = {"avx512_bf16",
                                                   true,
                                                   widen,
                                                   narrow,
                                                   activation_backward,
                                                   pixels_of_planes<uint16_t>,
                                                   &kNorm16,
                                                   gathered_conv<NativeDot>,
                                                   gather_scratch<NativeDot>,
                                                   kShortPixels,
                                                   transpose_pixels,
                                                   interleave_pixels,
                                                   vector_pair_gradient<NativeDot>,
                                                   max_pool16,
                                                   max_pool_scratch,
                                                   avg_pool16,
                                                   avg_pool_scratch,
                                                   max_pool16_backward,
                                                   max_pool_apart16_backward,
                                                   box_mean<View16>,
                                                   nullptr,
                                                   nullptr,
                                                   depthwise16,
                                                   &kFixedWinograd,
                                                   Bf16::kInterleaves};
}  // namespace cnnfast::cpu
