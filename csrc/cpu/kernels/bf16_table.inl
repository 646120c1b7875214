// What one instruction set offers for bfloat16. Included by isa_bf16/*.cpp after a vec/ header; internal
// linkage throughout, as in table.inl.
#include "cpu/bf16_table.h"

namespace {
using namespace cnnfast;
using namespace cnnfast::cpu;
}  // namespace

// Of its functions some are for memory of floats.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include "cpu/kernels/activation.inl"
#pragma GCC diagnostic pop

#include "cpu/kernels/bf16_rows.inl"
#include "cpu/kernels/conv16.inl"
#include "cpu/kernels/max_pool16.inl"

#define CNNFAST_WIDENED_KERNELS(name, ...) \
  {name,                              \
   false,                             \
   widen,                             \
   narrow,                            \
   activation_backward,               \
   gathered_conv<WidenedDot>,         \
   gather_scratch<WidenedDot>,        \
   nullptr,                           \
   nullptr,                           \
   nullptr,                           \
   max_pool16,                        \
   max_pool_scratch,                  \
   nullptr,                           \
   nullptr, __VA_ARGS__}
