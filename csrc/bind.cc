// The only file that knows pybind11: one bind_<op>() per op. It is built as lc_ext._C (CPU kernels, and CUDA kernels
// where nvcc is found) and, with LC_EMU, as lc_ext._C_emu (the CUDA kernels on the host emulation, for the tests).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "assign.h"
#include "error.h"
#include "kmeans1d.h"
#include "lut_linear.h"
#include "sparse_linear.h"
#include "topk_prune.h"

#if defined(LC_EMU)
#include "cuda/emu.h"
#define LC_IF_CPU(...)
#define LC_IF_CUDA(...) __VA_ARGS__
#define LC_MODULE _C_emu
#elif defined(LC_CUDA)
#define LC_IF_CPU(...) __VA_ARGS__
#define LC_IF_CUDA(...) __VA_ARGS__
#define LC_MODULE _C
#else
#define LC_IF_CPU(...) __VA_ARGS__
#define LC_IF_CUDA(...)
#define LC_MODULE _C
#endif

namespace py = pybind11;
using NoGil = py::call_guard<py::gil_scoped_release>;
using Addr = std::uintptr_t; // Tensor.data_ptr(); the Python op has checked the tensor and allocated the result

template <class T> static T* as(Addr address) { return reinterpret_cast<T*>(address); }

static void bind_assign([[maybe_unused]] py::module_& cpu, [[maybe_unused]] py::module_& cuda) {
  LC_IF_CPU(cpu.def(
      "assign",
      [](Addr x, int64_t n, Addr mids, int k, Addr codes) {
        lc::cpu::assign(as<const float>(x), n, as<const float>(mids), k, as<uint8_t>(codes));
      },
      NoGil());)
  LC_IF_CUDA(cuda.def(
      "assign",
      [](Addr x, int64_t n, Addr mids, int k, Addr codes, Addr stream) {
        lc::cuda::assign(as<const float>(x), n, as<const float>(mids), k, as<uint8_t>(codes), as<void>(stream));
      },
      NoGil());)
}

// A list of addresses.
template <class T> static std::vector<T*> as(const std::vector<Addr>& addresses) {
  std::vector<T*> pointers;
  for (Addr address : addresses) pointers.push_back(as<T>(address));
  return pointers;
}

static void bind_decode([[maybe_unused]] py::module_& cpu, [[maybe_unused]] py::module_& cuda) {
  LC_IF_CPU(cpu.def(
      "decode",
      [](Addr codes, int64_t n, Addr codebook, Addr x) {
        lc::cpu::decode(as<const uint8_t>(codes), n, as<const float>(codebook), as<float>(x));
      },
      NoGil());)
}

#if !defined(LC_EMU)
// k, whether warm, method, max_iter, tol, pinned codewords, bits of packed codes
using Kmeans1dSettings = std::tuple<int, bool, int, int, double, std::vector<float>, int>;

static std::vector<lc::Kmeans1dStatus> kmeans1d(const std::vector<lc::cpu::Kmeans1dProblem>& batch,
                                                const Kmeans1dSettings& settings) {
  const auto& [k, warm, method, max_iter, tol, pinned, bits] = settings;
  std::vector<lc::Kmeans1dStatus> status;
  lc::cpu::kmeans1d(
      batch, {k, warm, lc::Kmeans1dMethod(method), max_iter, tol, pinned.data(), int(pinned.size()), bits}, status);
  return status;
}
#endif

static void bind_kmeans1d([[maybe_unused]] py::module_& cpu, [[maybe_unused]] py::module_& cuda) {
  // h is an empty list or has an entry for each x; codebooks are rows of one tensor. With `joint` all x are one
  // problem. Returns (status, distortion, iterations) of each problem.
  LC_IF_CPU(cpu.def(
      "kmeans1d",
      [](const std::vector<Addr>& x, const std::vector<Addr>& h, const std::vector<int64_t>& n,
         const std::vector<int64_t>& cols, const std::vector<Addr>& codes, Addr codebooks, bool joint,
         const Kmeans1dSettings& settings) {
        const size_t problems = joint ? 1 : x.size(), k = size_t(std::get<0>(settings));
        std::vector<lc::cpu::Kmeans1dPart> parts;
        for (size_t i = 0; i < x.size(); ++i)
          parts.push_back(
              {as<const float>(x[i]), h.empty() ? nullptr : as<const float>(h[i]), n[i], as<void>(codes[i]), cols[i]});
        std::vector<double> distortions(problems);
        std::vector<int64_t> iterations(problems);
        std::vector<lc::cpu::Kmeans1dProblem> batch;
        for (size_t b = 0; b < problems; ++b)
          batch.push_back({&parts[b], joint ? int64_t(x.size()) : 1, as<float>(codebooks) + b * k, &distortions[b],
                           &iterations[b]});
        std::vector<int> status;
        for (const auto s : kmeans1d(batch, settings)) status.push_back(int(s));
        return std::tuple(status, distortions, iterations);
      },
      NoGil());)
  // Problem b is x[offsets[b]] to x[offsets[b + 1] - 1]. Returns the first problem that failed, or -1, and its status.
  LC_IF_CPU(cpu.def(
      "kmeans1d_ragged",
      [](Addr x, Addr h, Addr offsets, int64_t problems, Addr codes, Addr codebooks, Addr distortions, Addr iterations,
         const Kmeans1dSettings& settings) {
        const auto* at = as<const int64_t>(offsets);
        std::vector<lc::cpu::Kmeans1dPart> parts;
        std::vector<lc::cpu::Kmeans1dProblem> batch;
        parts.reserve(size_t(problems)), batch.reserve(size_t(problems));
        for (int64_t b = 0; b < problems; ++b) {
          const int64_t n = at[b + 1] - at[b];
          parts.push_back(
              {as<const float>(x) + at[b], h ? as<const float>(h) + at[b] : nullptr, n, as<uint8_t>(codes) + at[b], n});
          batch.push_back({&parts.back(), 1, as<float>(codebooks) + b * std::get<0>(settings),
                           as<double>(distortions) + b, as<int64_t>(iterations) + b});
        }
        const std::vector<lc::Kmeans1dStatus> status = kmeans1d(batch, settings);
        for (size_t b = 0; b < status.size(); ++b)
          if (status[b] != lc::Kmeans1dStatus::ok) return std::pair(int64_t(b), int(status[b]));
        return std::pair(int64_t(-1), 0);
      },
      NoGil());)
}

static void bind_topk_prune([[maybe_unused]] py::module_& cpu, [[maybe_unused]] py::module_& cuda) {
  LC_IF_CPU(cpu.def(
      "topk_prune",
      [](const std::vector<Addr>& x, const std::vector<int64_t>& n, int64_t kappa, const std::vector<Addr>& values,
         const std::vector<Addr>& mask, Addr threshold) {
        return lc::cpu::topk_prune(as<const float>(x), n, kappa, as<float>(values), as<uint8_t>(mask),
                                   as<float>(threshold));
      },
      NoGil());)
}

static void bind_lut_linear([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "lut_linear",
      [](Addr x, int64_t batch, Addr words, int64_t rows, int64_t cols, int bits, Addr codebook, int k, Addr bias,
         Addr y) {
        lc::cpu::lut_linear(as<const float>(x), batch, as<const int32_t>(words), rows, cols, bits,
                            as<const float>(codebook), k, as<const float>(bias), as<float>(y));
      },
      NoGil());
            cpu.def(
                "lut_decode",
                [](Addr words, int64_t rows, int64_t cols, int bits, Addr codebook, int k, Addr weight) {
                  lc::cpu::lut_decode(as<const int32_t>(words), rows, cols, bits, as<const float>(codebook), k,
                                      as<float>(weight));
                },
                NoGil());)
}

static void bind_sparse_linear([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def("sparse_linear_panel_size", &lc::cpu::sparse_linear_panel_size); cpu.def(
      "sparse_linear",
      [](Addr x, int64_t batch, Addr values, Addr columns, int column_bytes, Addr row_starts, int64_t rows,
         int64_t cols, Addr bias, Addr panel, Addr y) {
        lc::cpu::sparse_linear(as<const float>(x), batch, as<const float>(values), as<const void>(columns),
                               column_bytes, as<const int32_t>(row_starts), rows, cols, as<const float>(bias),
                               as<float>(panel), as<float>(y));
      },
      NoGil());)
}

PYBIND11_MODULE(LC_MODULE, m) {
  py::register_exception<lc::Error>(m, "Error", PyExc_RuntimeError);
  auto cpu = m.def_submodule("cpu"), cuda = m.def_submodule("cuda");
  bind_assign(cpu, cuda);
  bind_lut_linear(cpu);
  bind_sparse_linear(cpu);
  bind_decode(cpu, cuda);
  bind_kmeans1d(cpu, cuda);
  bind_topk_prune(cpu, cuda);
  LC_IF_CPU(lc::active_isa(); // a bad LC_EXT_ISA is an error at import
            m.def("supported_isas", &lc::supported_isas); m.def("active_isa", &lc::active_isa);
            m.def("set_isa", &lc::set_isa);)
#if defined(LC_EMU)
  m.def("set_seed", &lc::emu::set_seed);
#endif
}
