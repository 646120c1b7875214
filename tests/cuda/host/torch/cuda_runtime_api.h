// Stand-in for CUDA's header of the same name: one device, the host.
#pragma once

using cudaStream_t = struct CUstream_st*;
using cudaError_t = int;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount };

inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) { return *value = 3, 0; }
