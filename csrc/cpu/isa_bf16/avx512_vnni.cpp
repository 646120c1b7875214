#include "cpu/vec16/avx512_vnni.h"

#include "cpu/kernels/bf16_table.inl"
#include "cpu/kernels/winograd_fixed.inl"

namespace cnnfast::cpu {
extern const Bf16Kernels kAvx512VnniKernels = widened_kernels("avx512_vnni", &kFixedWinograd, kShortPixels);
}  // namespace cnnfast::cpu
