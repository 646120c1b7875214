#pragma once
#include "cpu/kernels/values.inl"

namespace {

template <>
struct Values<uint16_t> : Bf16 {};

}  // namespace
