// The op library, and the Python module that loads it; the ops themselves are in the other files
// here. Gradients are defined in Python (fastmeta/ops): ops registered with autograd in C++ would
// break torch.func.
#include <Python.h>

#include "cpu/kernels.h"
#include "ops/tensors.h"

namespace fastmeta {
namespace {

std::string build_info() {
#if defined(FM_WITH_CUDA)
  const std::string cuda = FM_CUDA_VERSION ";" FM_CUDA_ARCHITECTURES;
#else
  const std::string cuda = ";";
#endif
  return std::string(cpu::kernels().isa) + ";" + FM_COMPILER + ";" + FM_TORCH_VERSION + ";" + cuda +
         ";" + FM_CUDA_REASON;
}

}  // namespace
}  // namespace fastmeta

STABLE_TORCH_LIBRARY(fastmeta, m) {
  m.def("build_info() -> str");
}

STABLE_TORCH_LIBRARY_IMPL(fastmeta, CompositeExplicitAutograd, m) {
  m.impl("build_info", TORCH_BOX(&fastmeta::build_info));
}

// Importing the module loads the library, which registers the ops above.
PyMODINIT_FUNC PyInit__C() {
  static PyModuleDef definition = {
      PyModuleDef_HEAD_INIT, "_C", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};
  return PyModule_Create(&definition);
}
