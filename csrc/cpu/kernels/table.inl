// Everything that one instruction set offers. Included by isa/*.cpp after a vec/ header; the whole of it has
// internal linkage, so no code compiled for a newer CPU can be picked by the linker for an older one.
#include "cpu/kernel_table.h"

namespace {
using namespace cnnfast;
using namespace cnnfast::cpu;
}  // namespace

#include "cpu/kernels/activation.inl"
#include "cpu/kernels/batch_norm.inl"
#include "cpu/kernels/bn_act_backward.inl"
#include "cpu/kernels/box_mean.inl"
#include "cpu/kernels/conv.inl"
#include "cpu/kernels/depthwise.inl"
#include "cpu/kernels/depthwise_gradient.inl"
#include "cpu/kernels/gather.inl"
#include "cpu/kernels/layer_norm.inl"
#include "cpu/kernels/limits.inl"
#include "cpu/kernels/linear.inl"
#include "cpu/kernels/lrn.inl"
#include "cpu/kernels/norm_backward.inl"
#include "cpu/kernels/planes.inl"
#include "cpu/kernels/pool.inl"
#include "cpu/kernels/pool_backward.inl"
#include "cpu/kernels/resample.inl"
#include "cpu/kernels/weight_gradient.inl"
#include "cpu/kernels/winograd.inl"
#include "cpu/kernels/winograd_gradient.inl"

#define CNNFAST_KERNEL_TABLE(name)   \
  {name,                             \
   Vec::kWidth,                      \
   Vec::kPanelVectors,               \
   Vec::kMaxPanelVectors,            \
   kWinogradVectors,                 \
   tile_pixels,                      \
   conv,                             \
   winograd,                         \
   winograd_scratch,                 \
   winograd_rows,                    \
   winograd_weights,                 \
   gather_kernels,                   \
   scatter_kernels,                  \
   weight_gradient,                  \
   gradient_units,                   \
   winograd_gradient,                \
   winograd_gradient_scratch,        \
   winograd_gradient_sums,           \
   depthwise,                        \
   depthwise_gradient,               \
   depthwise_gradient_scratch,       \
   pool<MaxReduce>,                  \
   pool<MeanReduce>,                 \
   pool_backward<MaxGradient>,       \
   pool_backward<MeanGradient>,      \
   box_mean<View>,                   \
   affine,                           \
   column_sum<float>,                \
   column_distances<float>,          \
   activate,                         \
   pixels_of_planes<float>,          \
   lrn,                              \
   lrn_backward,                     \
   norm_backward_sums<float, float>, \
   norm_backward<float, float>,      \
   bn_act_backward<float, float>,    \
   adaptive_pool<MaxReduce>,         \
   adaptive_pool<MeanReduce>,        \
   image_mean,                       \
   layer_norm,                       \
   group_norm,                       \
   blend_row,                        \
   interleave_row,                   \
   prelu_pixels,                     \
   channel_max,                      \
   linear_scratch,                   \
   linear,                           \
   linear_input_grad,                \
   linear_weight_grad,               \
   multiply_adds,                    \
   read_all}
