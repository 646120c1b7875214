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

#include "cpu/kernels/activation16.inl"
#include "cpu/kernels/avg_pool16.inl"
#include "cpu/kernels/bf16_rows.inl"
#include "cpu/kernels/box_mean.inl"
#include "cpu/kernels/conv16.inl"
#include "cpu/kernels/max_pool_apart16.inl"
#include "cpu/kernels/norm16.inl"
#include "cpu/kernels/planes.inl"

namespace {

// The table of a set without products of bfloat16.
constexpr Bf16Kernels widened_kernels(const char* name, const FixedWinograd* fixed, int64_t short_pixels) {
  Bf16Kernels table{};
  table.name = name;
  table.widen = widen;
  table.narrow = narrow;
  table.activation_backward = activation_backward;
  table.pixels_of_planes = pixels_of_planes<uint16_t>;
  table.norm = &kNorm16;
  table.conv = gathered_conv<WidenedDot>;
  table.conv_scratch = gather_scratch<WidenedDot>;
  table.short_pixels = short_pixels;
  table.max_pool = max_pool16;
  table.max_pool_scratch = max_pool_scratch;
  table.avg_pool = avg_pool16;
  table.avg_pool_scratch = avg_pool_scratch;
  table.max_pool_backward = max_pool16_backward;
  table.max_pool_apart_backward = max_pool_apart16_backward;
  table.box_mean = box_mean<View16>;
  table.fixed = fixed;
  return table;
}

}  // namespace
