#include "cpu/vec16/portable.h"

#include "cpu/kernels/bf16_table.inl"

namespace cnnfast::cpu {
extern const Bf16Kernels kPortableBf16Kernels = CNNFAST_WIDENED_KERNELS("portable");
}  // namespace cnnfast::cpu
