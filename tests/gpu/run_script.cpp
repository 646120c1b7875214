// run_script LIBRARY STUB SCRIPT TENSORS: runs a TorchScript on the CUDA dispatch key's kernels with the stub
// for a GPU, compares its result with the expected one, and prints how many kernels were launched and whether
// Python is mapped.
#include <dlfcn.h>
#include <torch/script.h>

#include <fstream>
#include <iostream>
#include <string>

namespace {

void* open(const char* path) {
  void* library = dlopen(path, RTLD_NOW | RTLD_GLOBAL);
  if (!library) throw std::runtime_error(dlerror());
  return library;
}

bool python_is_mapped() {
  std::ifstream maps("/proc/self/maps");
  for (std::string line; std::getline(maps, line);)
    if (line.find("libpython") != std::string::npos || line.find("torch_python") != std::string::npos)
      return true;
  return false;
}

}  // namespace

int main(int, char** arguments) {
  open(arguments[1]);
  void* stub = open(arguments[2]);
  auto script = torch::jit::load(arguments[3]);
  auto tensors = torch::jit::load(arguments[4]);
  const auto tensor = [&](const char* name) { return tensors.attr(name).toTensor(); };
  const torch::Tensor x = tensor("x"), residual = tensor("residual"), expected = tensor("expected");
  torch::Tensor output;
  {
    const c10::InferenceMode inference;
    const c10::impl::IncludeDispatchKeyGuard as_if_on_a_gpu(c10::DispatchKey::CUDA);
    output = script.forward({x, residual}).toTensor();
  }
  if (!torch::allclose(output, expected, 1e-4, 1e-4)) {
    std::cerr << "wrong by " << (output - expected).abs().max() << '\n';
    return 1;
  }
  const auto launches = reinterpret_cast<int (*)()>(dlsym(stub, "stub_launches"));
  std::cout << "launches " << launches() << " python " << (python_is_mapped() ? "yes" : "no") << '\n';
  return 0;
}
