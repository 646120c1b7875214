#include "cpu/vec/avx512.h"

#include "cpu/kernels/table.inl"

namespace cnnfast::cpu {
extern const KernelTable kAvx512Kernels = CNNFAST_KERNEL_TABLE("avx512");
}  // namespace cnnfast::cpu
