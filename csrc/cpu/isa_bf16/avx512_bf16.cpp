#include "cpu/vec16/avx512_bf16.h"

#include "cpu/kernels/bf16_table.inl"

namespace cnnfast::cpu {
extern const Bf16Kernels kAvx512WithBf16Kernels = {"avx512_bf16",
                                                   true,
                                                   widen,
                                                   narrow,
                                                   gathered_conv<NativeDot>,
                                                   gather_scratch<NativeDot>,
                                                   max_pool16,
                                                   max_pool_scratch,
                                                   nullptr,
                                                   nullptr};
}  // namespace cnnfast::cpu
