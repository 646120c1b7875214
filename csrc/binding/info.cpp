// Python's view of the library: introspection only. Operators are reached through torch.ops.cnnfast.
#include "info.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

PYBIND11_MODULE(_info, m) {
  m.doc() = "What the cnnfast operator library was built with, and what runs on this machine.";
  m.def("available_isas", &cnnfast::available_isas,
        "Instruction sets compiled and runnable here, best first.");
  m.def("active_isa", &cnnfast::active_isa, "The instruction set in use.");
  m.def("amx_state", &cnnfast::amx_state, "Empty where AMX can be used, else the reason why not.");
  m.def("openmp_threads", &cnnfast::openmp_threads, "Threads that a parallel region really gets.");
}
