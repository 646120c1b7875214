#include "cpu/dispatch.h"

#include <cstdlib>
#include <stdexcept>

#include "cpu/amx_permission.h"
#include "cpu/bf16_table.h"
#include "cpu/kernel_table.h"

namespace cnnfast::cpu {
namespace {

struct Isa {
  const KernelTable* table;
  const Bf16Kernels* bf16;  // its name is that of the set
  bool runs_here;
  std::string refusal = {};  // why it does not run where the CPU has it
  bool by_default = true;    // false: runs, but only where it is asked for
};

// Sets that an emulator, or the CPU unannounced, executes (tests/kernels/amx_emulator.c).
bool emulated(const char* name) {
  const char* named = std::getenv("CNNFAST_EMULATED_ISA");
  return named && std::string(named) == name;
}

// Best first. The compiler's run-time test asks the operating system too (XCR0), not just the CPU.
std::vector<Isa> compiled() {
  std::vector<Isa> isas;
#if defined(CNNFAST_ISA_AVX512)
  const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
#if defined(CNNFAST_ISA_AVX512_BF16)
  // Every CPU with AVX512-BF16 has VNNI too.
  const bool bf16 = avx512 && __builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512vnni");
#if defined(CNNFAST_ISA_AMX)
  const std::string& refusal = bf16 ? amx_refusal() : kNoAmx;
  const bool amx = bf16 && refusal.empty();
  isas.push_back({&kAvx512Kernels, &kAmxBf16Kernels, amx || emulated("amx"), refusal});
#endif
  // Intel's vdpbf16ps takes four times as long as vfmadd231ps (docs/performance.md): half the products a
  // second.
  isas.push_back({&kAvx512Kernels,
                  &kAvx512WithBf16Kernels,
                  bf16 || emulated("avx512_bf16"),
                  {},
                  !__builtin_cpu_is("intel") || emulated("avx512_bf16")});
#endif
#if defined(CNNFAST_ISA_AVX512_VNNI)
  isas.push_back({&kAvx512Kernels, &kAvx512VnniKernels, avx512 && __builtin_cpu_supports("avx512vnni")});
#endif
  isas.push_back({&kAvx512Kernels, &kAvx512Bf16Kernels, avx512});
#endif
#if defined(CNNFAST_ISA_AVX2)
  isas.push_back(
      {&kAvx2Kernels, &kAvx2Bf16Kernels, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")});
#endif
  isas.push_back({&kPortableKernels, &kPortableBf16Kernels, true});
  return isas;
}

std::string joined(const std::vector<std::string>& names) {
  std::string text;
  for (const auto& name : names) text += (text.empty() ? "" : ", ") + name;
  return text;
}

Isa choose() {
  const char* forced = std::getenv("CNNFAST_CPU_ISA");
  for (const Isa& isa : compiled()) {
    if (!forced || !*forced) {
      if (isa.runs_here && isa.by_default) return isa;
    } else if (std::string(forced) == isa.bf16->name) {
      if (isa.runs_here) return isa;
      const std::string why = isa.refusal.empty() ? "" : " (" + isa.refusal + ")";
      throw std::runtime_error("cnnfast: CNNFAST_CPU_ISA=" + std::string(forced) +
                               " is not supported by this CPU" + why +
                               "; it runs: " + joined(available_isas()));
    }
  }
  throw std::runtime_error("cnnfast: CNNFAST_CPU_ISA=" + std::string(forced ? forced : "") +
                           " is unknown or was not compiled; choose from: " + joined(compiled_isas()));
}

// At the first use and not while the library is loaded, where an exception would end the process.
const Isa& chosen() {
  static const Isa isa = choose();
  return isa;
}

}  // namespace

std::vector<std::string> compiled_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : compiled()) names.push_back(isa.bf16->name);
  return names;
}

std::vector<std::string> available_isas() {
  std::vector<std::string> names;
  for (const Isa& isa : compiled())
    if (isa.runs_here) names.push_back(isa.bf16->name);
  return names;
}

std::string active_isa() { return chosen().bf16->name; }

std::string amx_state() {
#if defined(CNNFAST_ISA_AMX)
  return amx_refusal();
#else
  return "the compiler that built cnnfast does not know AMX";
#endif
}

const KernelTable& kernels() { return *chosen().table; }
const Bf16Kernels& bf16_kernels() { return *chosen().bf16; }

}  // namespace cnnfast::cpu
