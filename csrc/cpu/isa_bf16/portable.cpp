#include "cpu/vec16/portable.h"

#include "cpu/kernels/bf16_table.inl"

namespace cnnfast::cpu {
extern const Bf16Kernels kPortableBf16Kernels = widened_kernels("portable", nullptr, 0);
}  // namespace cnnfast::cpu
