// The only file that knows pybind11: one bind_<op>() per op. It is built as lc_ext._C (CPU kernels, and CUDA kernels
// where nvcc is found) and, with LC_EMU, as lc_ext._C_emu (the CUDA kernels on the host emulation, for the tests).
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "assign.h"
#include "binary_plus_sparse.h"
#include "codebook_plus_sparse.h"
#include "error.h"
#include "kmeans1d.h"
#include "kmeans_plus_sparse.h"
#include "lut_linear.h"
#include "rate_distortion.h"
#include "sparse_codebook.h"
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

// h is an empty list or has an entry for each x. codebooks, distortions and iterations are rows of one tensor each.
static void bind_kmeans1d([[maybe_unused]] py::module_& cpu, [[maybe_unused]] py::module_& cuda) {
  LC_IF_CPU(cpu.def(
      "kmeans1d",
      [](const std::vector<Addr>& x, const std::vector<int64_t>& n, const std::vector<Addr>& h, int k, bool warm,
         int max_iter, const std::vector<Addr>& codes, Addr codebooks, Addr distortions, Addr iterations) {
        std::vector<lc::cpu::Kmeans1dProblem> batch;
        for (size_t b = 0; b < x.size(); ++b)
          batch.push_back({as<const float>(x[b]), h.empty() ? nullptr : as<const float>(h[b]), n[b],
                           as<uint8_t>(codes[b]), as<float>(codebooks) + b * size_t(k), as<double>(distortions) + b,
                           as<int64_t>(iterations) + b});
        std::vector<lc::Kmeans1dStatus> status;
        lc::cpu::kmeans1d(batch, k, warm, max_iter, status);
        std::vector<int> codes_of_status;
        for (const auto s : status) codes_of_status.push_back(int(s));
        return codes_of_status;
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

// codes is an empty list or has an entry for each x, and so has h.
static void bind_codebook_plus_sparse([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "codebook_plus_sparse",
      [](const std::vector<Addr>& x, const std::vector<Addr>& h, const std::vector<int64_t>& n, Addr codebook, int k,
         int64_t kappa, const std::vector<Addr>& codes, Addr indices, Addr values, Addr distortion) {
        return int(lc::cpu::codebook_plus_sparse(as<const float>(x), as<const float>(h), n, as<const float>(codebook),
                                                 k, kappa, as<uint8_t>(codes), as<int64_t>(indices), as<float>(values),
                                                 as<double>(distortion)));
      },
      NoGil());)
}

static void bind_binary_plus_sparse([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "binary_plus_sparse",
      [](const std::vector<Addr>& x, const std::vector<int64_t>& n, int64_t kappa, const std::vector<Addr>& codes,
         Addr codebook, Addr indices, Addr values, Addr distortion) {
        return int(lc::cpu::binary_plus_sparse(as<const float>(x), n, kappa, as<uint8_t>(codes), as<float>(codebook),
                                               as<int64_t>(indices), as<float>(values), as<double>(distortion)));
      },
      NoGil());)
}

static void bind_kmeans_plus_sparse([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "kmeans_plus_sparse",
      [](const std::vector<Addr>& x, const std::vector<int64_t>& n, int k, int64_t kappa, bool alternate, bool warm,
         int max_iter, double tol, const std::vector<Addr>& codes, Addr codebook, Addr indices, Addr values,
         Addr distortion, Addr iterations) {
        const auto turns = alternate ? lc::cpu::Turns::alternate : lc::cpu::Turns::trimmed;
        return int(lc::cpu::kmeans_plus_sparse(as<const float>(x), n, {k, kappa, turns, warm, max_iter, tol},
                                               as<uint8_t>(codes), as<float>(codebook), as<int64_t>(indices),
                                               as<float>(values), as<double>(distortion), as<int64_t>(iterations)));
      },
      NoGil());)
}

static void bind_sparse_codebook([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(
      cpu.def(
          "nearest_sparse",
          [](const std::vector<Addr>& x, const std::vector<Addr>& h, const std::vector<int64_t>& n, Addr codebook,
             int k, int64_t kappa, const std::vector<Addr>& codes, Addr distortion, Addr used) {
            return int(lc::cpu::nearest_sparse(as<const float>(x), as<const float>(h), n, as<const float>(codebook), k,
                                               kappa, as<uint8_t>(codes), as<double>(distortion), as<int64_t>(used)));
          },
          NoGil());
      cpu.def(
          "sparse_codebook",
          [](const std::vector<Addr>& x, const std::vector<int64_t>& n, int k, int64_t kappa, bool warm, int max_iter,
             const std::vector<Addr>& codes, Addr codebook, Addr distortion, Addr used, Addr iterations) {
            return int(lc::cpu::sparse_codebook(as<const float>(x), n, k, kappa, warm, max_iter, as<uint8_t>(codes),
                                                as<float>(codebook), as<double>(distortion), as<int64_t>(used),
                                                as<int64_t>(iterations)));
          },
          NoGil());)
}

static void bind_rate_distortion([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "rate_distortion",
      [](const std::vector<Addr>& x, const std::vector<int64_t>& n, const std::vector<int>& codewords,
         const std::vector<int64_t>& nonzeros, Addr distortions) {
        return lc::cpu::rate_distortion(as<const float>(x), n, codewords, nonzeros, as<double>(distortions));
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
  bind_codebook_plus_sparse(cpu);
  bind_binary_plus_sparse(cpu);
  bind_kmeans_plus_sparse(cpu);
  bind_sparse_codebook(cpu);
  bind_rate_distortion(cpu);
  LC_IF_CPU(lc::active_isa(); // a bad LC_EXT_ISA is an error at import
            m.def("supported_isas", &lc::supported_isas); m.def("active_isa", &lc::active_isa);
            m.def("set_isa", &lc::set_isa);)
#if defined(LC_EMU)
  m.def("set_seed", &lc::emu::set_seed);
#endif
}
