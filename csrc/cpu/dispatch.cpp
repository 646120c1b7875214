#include "cpu/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu/kernel_table.h"

namespace cnnfast::cpu {
namespace {

struct Isa {
  const KernelTable* table;
  bool runs_here;
};

// Best first. The compiler's run-time test asks the operating system too (XCR0), not just the CPU.
std::vector<Isa> compiled() {
  std::vector<Isa> isas;
#if defined(CNNFAST_ISA_AVX512)
  isas.push_back({&kAvx512Kernels, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                       __builtin_cpu_supports("avx512dq") &&
                                       __builtin_cpu_supports("avx512vl")});
#endif
#if defined(CNNFAST_ISA_AVX2)
  isas.push_back({&kAvx2Kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
  isas.push_back({&kPortableKernels, true});
  return isas;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

const KernelTable& choose() {
  const char* forced = std::getenv("CNNFAST_CPU_ISA");
  for (const Isa& isa : compiled()) {
    if (!forced || !*forced) {
      if (isa.runs_here) return *isa.table;
    } else if (std::string(forced) == isa.table->name) {
      if (isa.runs_here) return *isa.table;
      throw std::runtime_error("cnnfast: CNNFAST_CPU_ISA=" + std::string(forced) +
                               " is not supported by this CPU; it runs: " + joined(available_isas()));
    }
  }
  throw std::runtime_error("cnnfast: CNNFAST_CPU_ISA=" + std::string(forced ? forced : "") +
                           " is unknown or was not compiled; choose from: " + joined(compiled_isas()));
}

}  // namespace

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : compiled()) names.push_back(isa.table->name);
  return names;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : compiled())
    if (isa.runs_here) names.push_back(isa.table->name);
  return names;
}

std::string active_isa() { return kernels().name; }

// At the first use and not while the library is loaded, where an exception would end the process.
const KernelTable& kernels() {
  static const KernelTable& chosen = choose();
  return chosen;
}

}  // namespace cnnfast::cpu
