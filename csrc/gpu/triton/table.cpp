#include "gpu/triton/table.h"

#ifdef CNNFAST_TRITON_AOT
#include "triton_table.inc"  // written by build_support/triton_aot
#else
namespace cnnfast::gpu {

const Table& table() {
  static const Table empty{nullptr, 0, nullptr, ""};
  return empty;
}

}  // namespace cnnfast::gpu
#endif
