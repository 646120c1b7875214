#include "cpu/vec16/amx.h"

#include "cpu/kernels/bf16_table.inl"
#include "cpu/kernels/conv_amx.inl"
#include "cpu/kernels/depthwise16.inl"
#include "cpu/kernels/weight_gradient16.inl"
#include "cpu/kernels/weight_gradient_amx.inl"

namespace cnnfast::cpu {
extern const Bf16Kernels kAmxBf16Kernels = {"amx",
                                            true,
                                            widen,
                                            narrow,
                                            activation_backward,
                                            pixels_of_planes<uint16_t>,
                                            &kNorm16,
                                            amx_conv<NativeDot>,
                                            amx_scratch<NativeDot>,
                                            kFewTilePixels - 1,
                                            transpose_pixels,
                                            interleave_pixels,
                                            amx_pair_gradient,
                                            max_pool16,
                                            max_pool_scratch,
                                            avg_pool16,
                                            avg_pool_scratch,
                                            max_pool16_backward,
                                            max_pool_apart16_backward,
                                            box_mean<View16>,
                                            Tiles::configure,
                                            Tiles::release,
                                            depthwise16};
}  // namespace cnnfast::cpu
