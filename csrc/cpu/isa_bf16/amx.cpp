#include "cpu/vec16/amx.h"

#include "cpu/kernels/bf16_table.inl"
#include "cpu/kernels/conv_amx.inl"

namespace cnnfast::cpu {
extern const Bf16Kernels kAmxBf16Kernels = {"amx",
                                            true,
                                            widen,
                                            narrow,
                                            amx_conv<NativeDot>,
                                            amx_scratch<NativeDot>,
                                            max_pool16,
                                            max_pool_scratch,
                                            Tiles::configure,
                                            Tiles::release};
}  // namespace cnnfast::cpu
