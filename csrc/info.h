// What the operator library tells about itself; the Python binding passes it on.
#pragma once
#include <string>
#include <vector>

#define CNNFAST_API __attribute__((visibility("default")))

namespace cnnfast {

CNNFAST_API std::vector<std::string> available_isas();
CNNFAST_API std::string active_isa();
CNNFAST_API std::string amx_state();
// Whether the CPU kernels of this process multiply bfloat16 values rather than widened ones.
bool cpu_multiplies_bfloat16();
// Whether some do, where it is faster.
bool cpu_has_bfloat16_products();
// Threads that a parallel region really gets; 1 where OpenMP is missing.
CNNFAST_API int openmp_threads();

}  // namespace cnnfast
