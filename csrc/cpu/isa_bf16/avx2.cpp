#include "cpu/vec16/avx2.h"

#include "cpu/kernels/bf16_table.inl"

namespace cnnfast::cpu {
extern const Bf16Kernels kAvx2Bf16Kernels = widened_kernels("avx2", nullptr, kShortPixels);
}  // namespace cnnfast::cpu
