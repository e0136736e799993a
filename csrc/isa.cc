#include "isa.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>

#include "error.h"

namespace lc {
namespace {

#define LC_ISA_NAME(isa) #isa,
const char* const kNames[] = {LC_FOR_EACH_ISA(LC_ISA_NAME)};
#undef LC_ISA_NAME

bool runs_here(const std::string& name) {
  if (name == "scalar" || name == "neon") return true; // the baseline of their architectures
#if defined(__x86_64__) || defined(_M_X64)
  // These also ask the operating system whether it saves the wide registers.
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  if (name == "avx2" || name == "wide") return avx2;
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  if (name == "avx512") return avx512;
  if (name == "vnni") return avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512vbmi");
#endif
  return false;
}

int index_of(const std::string& name) {
  const auto* it = std::find(std::begin(kNames), std::end(kNames), name);
  return it == std::end(kNames) ? -1 : int(it - std::begin(kNames));
}

int best() {
  int index = 0;
  for (const char* name : kNames)
    if (std::string(name) != "wide" && runs_here(name)) index = index_of(name);
  return index;
}

std::atomic<int> active{-1};

} // namespace

std::vector<std::string> supported_isas() {
  std::vector<std::string> names;
  for (const char* name : kNames)
    if (runs_here(name)) names.emplace_back(name);
  return names;
}

void set_isa(const std::string& name) {
  const int index = index_of(name);
  LC_CHECK(index >= 0, "for instruction set", name);
  LC_CHECK(runs_here(name), "on this machine for instruction set", name);
  active = index;
}

std::string active_isa() { return kNames[detail::active_isa_index()]; }

int detail::active_isa_index() {
  if (active < 0) {
    const char* forced = std::getenv("LC_EXT_ISA");
    if (forced && *forced) {
      if (index_of(forced) < 0 || !runs_here(forced)) {
        std::string message = "LC_EXT_ISA=" + std::string(forced) + ": this machine can run";
        for (const std::string& name : supported_isas()) message += " " + name;
        throw Error(message);
      }
      set_isa(forced);
    } else {
      active = best();
    }
  }
  return active;
}

} // namespace lc
