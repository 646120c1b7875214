// Tiles, and AVX512-BF16 for what they leave.
#pragma once
#include "cpu/vec/amx.h"
#include "cpu/vec16/avx512_bf16.h"
