#include "cpu/vec/portable.h"

#include "cpu/kernels/table.inl"

namespace cnnfast::cpu {
extern const KernelTable kPortableKernels = CNNFAST_KERNEL_TABLE("portable");
}  // namespace cnnfast::cpu
