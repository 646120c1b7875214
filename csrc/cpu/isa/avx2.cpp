#include "cpu/vec/avx2.h"

#include "cpu/kernels/table.inl"

namespace cnnfast::cpu {
extern const KernelTable kAvx2Kernels = CNNFAST_KERNEL_TABLE("avx2");
}  // namespace cnnfast::cpu
