#include "info.h"

#include "cpu/dispatch.h"
#include "cpu/paired_conv.h"
#include "cpu/parallel.h"

namespace cnnfast {

std::vector<std::string> available_isas() { return cpu::available_isas(); }
std::string active_isa() { return cpu::active_isa(); }
std::string amx_state() { return cpu::amx_state(); }

int openmp_threads() {
  int threads = 0;
  cpu::parallel_team(cpu::team_size(), [&](int thread, int team, cpu::Barrier&) {
    if (thread == 0) threads = team;
  });
  return threads;
}

bool cpu_multiplies_bfloat16() { return cpu::multiplies_bfloat16(); }
bool cpu_has_bfloat16_products() { return cpu::has_bfloat16_products(); }

}  // namespace cnnfast
