// Stand-in for torch's header of the same name.
#pragma once
#include <c10/util/Exception.h>

#define C10_CUDA_CHECK(call) TORCH_INTERNAL_ASSERT((call) == 0)
