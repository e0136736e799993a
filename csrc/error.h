// The one exception of the native code, and the one way to throw it.
#pragma once
#include <sstream>
#include <stdexcept>
#include <string>

namespace lc {

/// Thrown by launchers and bindings only, never inside a kernel. Python sees a RuntimeError: whatever a caller can
/// get wrong has already been turned into a TypeError or ValueError by the Python op, so an lc::Error is a bug of
/// ours or a failure of the machine.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

namespace detail {
template <class... A> [[noreturn]] void fail(const char* file, int line, const char* rule, const A&... context) {
  std::ostringstream s;
  s << "lc_ext: " << rule << " does not hold";
  ((s << " " << context), ...);
  s << " (" << file << ":" << line << ")";
  throw Error(s.str());
}
} // namespace detail
} // namespace lc

/// LC_CHECK(n >= 0, "n =", n): throws lc::Error naming the rule, the values given, file and line.
#define LC_CHECK(rule, ...)                                                                                            \
  do {                                                                                                                 \
    if (!(rule)) ::lc::detail::fail(__FILE__, __LINE__, #rule __VA_OPT__(, ) __VA_ARGS__);                             \
  } while (0)
