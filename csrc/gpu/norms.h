// Steps of batch norm that operators contain, each by whichever of ATen and the CUDA kernels is faster.
#pragma once
#include "gpu/chosen.h"
#include "ops/batch_norm2d_relu.h"

namespace cnnfast::gpu {

#define CNNFAST_NAME(Struct, text)             \
  struct Struct {                              \
    static constexpr const char* value = text; \
  }

CNNFAST_NAME(BatchStatisticsName, "batch_statistics");
CNNFAST_NAME(BatchNormActName, "batch_norm_act");
CNNFAST_NAME(BatchNormActBitsName, "batch_norm_act_bits");

using BatchStatistics = Chosen<BatchStatisticsName, batch_statistics_composite>;
using BatchNormAct = Chosen<BatchNormActName, batch_norm_act_composite>;
using BatchNormActBits = Chosen<BatchNormActBitsName, batch_norm_act_bits_composite>;

}  // namespace cnnfast::gpu
