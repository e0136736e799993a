// The instruction sets a CPU kernel is compiled for, and the choice among them at run time.
//
// Every file csrc/cpu/<op>.cc is compiled once per instruction set, in namespace lc::<isa>, with its own compiler
// flags (CMakeLists.txt). To add an instruction set: a row here, a name in isa.cc, a row in CMakeLists.txt.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

// `wide` has the 16 lanes of AVX-512 but is built with AVX2 flags, so that the logic of the 16-lane code is tested on
// machines without AVX-512. It is never chosen by itself. `vnni` is AVX-512 with VNNI and VBMI (Ice Lake, Zen 4): only
// the kernels that LC_PER_VNNI_ISA declares have code of their own for it, the others run that of avx512.
#if defined(__x86_64__) || defined(_M_X64)
#define LC_FOR_EACH_ISA(X) X(scalar) X(avx2) X(avx512) X(wide) X(vnni)
#elif defined(__aarch64__)
#define LC_FOR_EACH_ISA(X) X(scalar) X(neon)
#else
#define LC_FOR_EACH_ISA(X) X(scalar)
#endif

namespace lc {

/// Names of the instruction sets that this machine can run, in rising order of preference; `wide` comes first but one.
std::vector<std::string> supported_isas();

/// The one in use: the best supported one, or what the environment variable LC_EXT_ISA names.
std::string active_isa();

/// Use `name` from now on, for the whole process. Throws lc::Error if this machine cannot run it.
void set_isa(const std::string& name);

namespace detail {
int active_isa_index(); // position in LC_FOR_EACH_ISA
template <class F> F* pick(std::initializer_list<F*> table) {
  const int index = active_isa_index();
  return table.begin()[index < int(table.size()) ? index : 2]; // no code of its own: avx512's
}
} // namespace detail
} // namespace lc

/// LC_PER_ISA(void f(const float* x, int64_t n);) declares a kernel once for each instruction set, and
/// LC_DISPATCH(f)(x, n) calls the one in use.
#if defined(__x86_64__) || defined(_M_X64)
#define LC_PER_ISA(...)                                                                                                \
  LC_IN(scalar, __VA_ARGS__) LC_IN(avx2, __VA_ARGS__) LC_IN(avx512, __VA_ARGS__) LC_IN(wide, __VA_ARGS__)
#define LC_DISPATCH(f) (*::lc::detail::pick({&::lc::scalar::f, &::lc::avx2::f, &::lc::avx512::f, &::lc::wide::f}))
#define LC_PER_VNNI_ISA(...) LC_PER_ISA(__VA_ARGS__) LC_IN(vnni, __VA_ARGS__)
#define LC_DISPATCH_VNNI(f)                                                                                            \
  (*::lc::detail::pick({&::lc::scalar::f, &::lc::avx2::f, &::lc::avx512::f, &::lc::wide::f, &::lc::vnni::f}))
#elif defined(__aarch64__)
#define LC_PER_ISA(...) LC_IN(scalar, __VA_ARGS__) LC_IN(neon, __VA_ARGS__)
#define LC_DISPATCH(f) (*::lc::detail::pick({&::lc::scalar::f, &::lc::neon::f}))
#else
#define LC_PER_ISA(...) LC_IN(scalar, __VA_ARGS__)
#define LC_DISPATCH(f) (*::lc::detail::pick({&::lc::scalar::f}))
#endif
#if !defined(LC_PER_VNNI_ISA)
#define LC_PER_VNNI_ISA LC_PER_ISA
#define LC_DISPATCH_VNNI LC_DISPATCH
#endif
#define LC_IN(isa, ...)                                                                                                \
  namespace lc::isa {                                                                                                  \
  __VA_ARGS__                                                                                                          \
  }
