#include "emulation/names.h"

#include <cxxabi.h>
#include <dlfcn.h>

#include <cstdlib>
#include <map>
#include <memory>
#include <stdexcept>

namespace fastmeta::emulation {
namespace {

std::set<std::string> names;

std::string demangled(const char* symbol) {
  int status = 0;
  const std::unique_ptr<char, void (*)(void*)> text(
      abi::__cxa_demangle(symbol, nullptr, nullptr, &status), std::free);
  return text ? text.get() : symbol;
}

// "void a::b::kernel<c::D>(c::E)" without namespaces, return type and parameters: "kernel<D>".
std::string own_part(const std::string& signature) {
  std::string name = signature.substr(0, signature.find('('));
  for (size_t colons; (colons = name.find("::")) != std::string::npos;) {
    const size_t before = name.find_last_of(" <,", colons);
    const size_t begin = before == std::string::npos ? 0 : before + 1;
    name.erase(begin, colons + 2 - begin);
  }
  return name.rfind("void ", 0) == 0 ? name.substr(5) : name;
}

}  // namespace

std::string kernel_name(const void* kernel) {
  static std::map<const void*, std::string> known;
  std::string& name = known[kernel];
  if (name.empty()) {
    Dl_info info{};
    dladdr(kernel, &info);
    if (info.dli_saddr != kernel) throw std::logic_error("a kernel is not among the symbols");
    name = own_part(demangled(info.dli_sname));
    names.insert(name);
  }
  return name;
}

const std::set<std::string>& kernels_run() {
  return names;
}

}  // namespace fastmeta::emulation
