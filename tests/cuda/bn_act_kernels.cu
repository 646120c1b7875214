// The kernels alone, without torch: what test_bn_act_nvcc.py reads registers and instructions of.
#include "cuda/bn_act.cuh"

namespace cnnfast::cuda {

template __global__ void bn_act_forward<float, 4>(BnActArgs<float>);
template __global__ void bn_act_forward<float, 1>(BnActArgs<float>);
template __global__ void bn_act_forward<__half, 8>(BnActArgs<__half>);
template __global__ void bn_act_forward<__half, 1>(BnActArgs<__half>);
template __global__ void bn_act_forward<__nv_bfloat16, 8>(BnActArgs<__nv_bfloat16>);
template __global__ void bn_act_forward<__nv_bfloat16, 1>(BnActArgs<__nv_bfloat16>);

}  // namespace cnnfast::cuda
