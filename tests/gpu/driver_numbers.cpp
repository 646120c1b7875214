// Compiles where csrc/gpu/triton/driver.h agrees with NVIDIA's cuda.h.
#include <cuda.h>

#include <type_traits>

#include "gpu/triton/driver.h"

namespace ours = cnnfast::gpu;

static_assert(ours::kCapabilityMajor == int{CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR});
static_assert(ours::kCapabilityMinor == int{CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR});
static_assert(ours::kSharedBytesPerBlockOptin == int{CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN});
static_assert(ours::kProcessors == int{CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT});
static_assert(ours::kMaxDynamicSharedBytes == int{CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES});
static_assert(ours::kNonPortableClusterAllowed == int{CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED});
static_assert(ours::kJitErrorLog == int{CU_JIT_ERROR_LOG_BUFFER});
static_assert(ours::kJitErrorLogBytes == int{CU_JIT_ERROR_LOG_BUFFER_SIZE_BYTES});
static_assert(ours::kLaunchCooperative == int{CU_LAUNCH_ATTRIBUTE_COOPERATIVE});
static_assert(ours::kLaunchClusterDimension == int{CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION});
static_assert(ours::kLaunchClusterPolicy == int{CU_LAUNCH_ATTRIBUTE_CLUSTER_SCHEDULING_POLICY_PREFERENCE});
static_assert(ours::kLaunchProgrammaticSerialization ==
              int{CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION});
static_assert(ours::kClusterPolicySpread == int{CU_CLUSTER_SCHEDULING_POLICY_SPREAD});
static_assert(ours::kCaptureNone == int{CU_STREAM_CAPTURE_STATUS_NONE});
static_assert(ours::kCaptureModeRelaxed == int{CU_STREAM_CAPTURE_MODE_RELAXED});

static_assert(sizeof(ours::CuLaunchAttribute) == sizeof(CUlaunchAttribute));
static_assert(offsetof(ours::CuLaunchAttribute, value) == offsetof(CUlaunchAttribute, value));
static_assert(sizeof(ours::CuLaunchConfig) == sizeof(CUlaunchConfig));
static_assert(offsetof(ours::CuLaunchConfig, shared_bytes) == offsetof(CUlaunchConfig, sharedMemBytes));
static_assert(offsetof(ours::CuLaunchConfig, stream) == offsetof(CUlaunchConfig, hStream));
static_assert(offsetof(ours::CuLaunchConfig, attributes) == offsetof(CUlaunchConfig, attrs));
static_assert(offsetof(ours::CuLaunchConfig, attribute_count) == offsetof(CUlaunchConfig, numAttrs));

// Same number of arguments, each of the same size: what a call through a pointer needs.
template <typename A, typename B>
struct Agree : std::false_type {};
template <typename R, typename... A, typename S, typename... B>
  requires(sizeof...(A) == sizeof...(B))
struct Agree<R (*)(A...), S (*)(B...)>
    : std::bool_constant<sizeof(R) == sizeof(S) && ((sizeof(A) == sizeof(B)) && ...)> {};

#define CHECK_FUNCTION(name) static_assert(Agree<decltype(ours::Driver::name), decltype(&::name)>::value)
CHECK_FUNCTION(cuInit);
CHECK_FUNCTION(cuGetErrorName);
CHECK_FUNCTION(cuGetErrorString);
CHECK_FUNCTION(cuDeviceGet);
CHECK_FUNCTION(cuDeviceGetName);
CHECK_FUNCTION(cuDeviceGetAttribute);
CHECK_FUNCTION(cuDevicePrimaryCtxRetain);
CHECK_FUNCTION(cuCtxGetCurrent);
CHECK_FUNCTION(cuCtxSetCurrent);
CHECK_FUNCTION(cuModuleLoadDataEx);
CHECK_FUNCTION(cuModuleGetFunction);
CHECK_FUNCTION(cuFuncSetAttribute);
CHECK_FUNCTION(cuLaunchKernel);
CHECK_FUNCTION(cuStreamIsCapturing);
CHECK_FUNCTION(cuThreadExchangeStreamCaptureMode);
CHECK_FUNCTION(cuLaunchKernelEx);
