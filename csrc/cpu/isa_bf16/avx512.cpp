#include "cpu/vec16/avx512.h"

#include "cpu/kernels/bf16_table.inl"

namespace cnnfast::cpu {
extern const Bf16Kernels kAvx512Bf16Kernels = widened_kernels("avx512", nullptr, kShortPixels);
}  // namespace cnnfast::cpu
