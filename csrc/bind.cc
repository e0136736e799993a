// The only file that knows pybind11: one bind_<op>() per op. It is built as lc_ext._C (CPU kernels, and CUDA kernels
// where nvcc is found) and, with LC_EMU, as lc_ext._C_emu (the CUDA kernels on the host emulation, for the tests).
#include <array>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "activation.h"
#include "assign.h"
#include "binary_plus_sparse.h"
#include "block_krylov.h"
#include "codebook_plus_sparse.h"
#include "error.h"
#include "gram_product.h"
#include "jacobi_svd.h"
#include "kmeans1d.h"
#include "kmeans_plus_sparse.h"
#include "kmeans_vq.h"
#include "l1_ball.h"
#include "lut_linear.h"
#include "nm_linear.h"
#include "nm_prune.h"
#include "pack_codes.h"
#include "quantize_scaled.h"
#include "rate_distortion.h"
#include "skinny_matmul.h"
#include "sparse_codebook.h"
#include "sparse_linear.h"
#include "tiled_conv2d.h"
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

// A list of addresses.
template <class T> static std::vector<T*> as(const std::vector<Addr>& addresses) {
  std::vector<T*> pointers;
  for (Addr address : addresses) pointers.push_back(as<T>(address));
  return pointers;
}

// Ranges from lists of addresses; score is empty for magnitudes; mask_kind is 0 for none, 1 for bytes, 2 for bits.
[[maybe_unused]] static std::vector<lc::PruneRange>
prune_ranges(const std::vector<Addr>& x, const std::vector<int64_t>& n, const std::vector<Addr>& score,
             const std::vector<Addr>& values, const std::vector<Addr>& mask, int mask_kind) {
  std::vector<lc::PruneRange> ranges;
  for (size_t t = 0; t < x.size(); ++t)
    ranges.push_back({as<const float>(x[t]), score.empty() ? nullptr : as<const float>(score[t]), n[t],
                      as<float>(values[t]), mask_kind == 1 ? as<uint8_t>(mask[t]) : nullptr,
                      mask_kind == 2 ? as<uint32_t>(mask[t]) : nullptr});
  return ranges;
}

// h is an empty list or has an entry for each x; so has values.
[[maybe_unused]] static std::vector<lc::SoftRange> soft_ranges(const std::vector<Addr>& x,
                                                               const std::vector<int64_t>& n,
                                                               const std::vector<Addr>& h,
                                                               const std::vector<Addr>& values) {
  std::vector<lc::SoftRange> ranges;
  for (size_t t = 0; t < x.size(); ++t)
    ranges.push_back({as<const float>(x[t]), h.empty() ? nullptr : as<const float>(h[t]), n[t],
                      values.empty() ? nullptr : as<float>(values[t])});
  return ranges;
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

static void bind_activation([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "activation",
      [](int f, Addr x, Addr bias, int64_t batch, int64_t rows, Addr y) {
        lc::cpu::activation(lc::Activation(f), as<const float>(x), as<const float>(bias), batch, rows, as<float>(y));
      },
      NoGil());)
}

static void bind_assign([[maybe_unused]] py::module_& cpu, [[maybe_unused]] py::module_& cuda) {
  LC_IF_CPU(cpu.def(
      "assign",
      [](Addr x, int64_t n, Addr mids, int k, Addr codes) {
        lc::cpu::assign(as<const float>(x), n, as<const float>(mids), k, as<uint8_t>(codes));
      },
      NoGil());
            cpu.def("midpoints", [](Addr codebook, int k, Addr mids) {
              lc::cpu::midpoints(as<const float>(codebook), k, as<float>(mids));
            });)
  LC_IF_CUDA(cuda.def(
      "assign",
      [](Addr x, int64_t n, Addr mids, int k, Addr codes, Addr stream) {
        lc::cuda::assign(as<const float>(x), n, as<const float>(mids), k, as<uint8_t>(codes), as<void>(stream));
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

static void bind_block_krylov([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "krylov_extend",
      [](Addr v, int64_t capacity, int64_t n, int64_t size, int64_t rows) {
        lc::cpu::krylov_extend({nullptr, 0, n, as<float>(v), nullptr, nullptr, capacity}, size, rows);
      },
      NoGil());
            cpu.def(
                "krylov_steps",
                [](Addr a, int64_t m, int64_t n, Addr v, Addr p, Addr h, int64_t capacity, int64_t processed,
                   int64_t size, int64_t steps) {
                  lc::cpu::krylov_steps({as<const float>(a), m, n, as<float>(v), as<float>(p), as<double>(h), capacity},
                                        processed, size, steps);
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

static void bind_decode([[maybe_unused]] py::module_& cpu, [[maybe_unused]] py::module_& cuda) {
  LC_IF_CPU(cpu.def(
      "decode",
      [](Addr codes, int64_t n, Addr codebook, int k, Addr x) {
        lc::cpu::decode(as<const uint8_t>(codes), n, as<const float>(codebook), k, as<float>(x));
      },
      NoGil());)
}

static void bind_gram_product([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "gram_product",
      [](Addr a, int64_t m, int64_t n, Addr v, int64_t b, Addr p, Addr x) {
        std::vector<float> work(size_t(lc::cpu::gram_product_work(m, n, b)));
        lc::cpu::gram_product(as<const float>(a), m, n, as<const float>(v), b, as<float>(p), m, false, 1.0f,
                              as<float>(x), work.data());
      },
      NoGil());)
}

static void bind_jacobi_svd([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "jacobi_svd",
      [](Addr a, int64_t count, int64_t m, int64_t n, int64_t rank, Addr left, Addr values, Addr right) {
        lc::cpu::jacobi_svd(as<const float>(a), count, m, n, rank, as<float>(left), as<float>(values),
                            as<float>(right));
      },
      NoGil());)
}

static void bind_kmeans1d([[maybe_unused]] py::module_& cpu, [[maybe_unused]] py::module_& cuda) {
  // One tensor, without lists to convert. Returns status, distortion, iterations and excess bound.
  LC_IF_CPU(cpu.def(
      "kmeans1d_one",
      [](Addr x, Addr h, int64_t n, int64_t cols, Addr codes, Addr codebook, int k, bool warm, int method, int max_iter,
         double tol, const std::vector<float>& pinned, int bits) {
        const lc::cpu::Kmeans1dPart part{as<const float>(x), as<const float>(h), n, as<void>(codes), cols};
        double distortion = 0, bound = 0;
        int64_t iterations = 0;
        const auto status = kmeans1d({{&part, 1, as<float>(codebook), &distortion, &iterations, &bound}},
                                     {k, warm, method, max_iter, tol, pinned, bits});
        return std::tuple(int(status[0]), distortion, iterations, bound);
      },
      NoGil());)
  // h is an empty list or has an entry for each x; codebooks are rows of one tensor. With `joint` all x are one
  // problem. Returns (status, distortion, iterations, excess bound) of each problem.
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
        std::vector<double> distortions(problems), bounds(problems);
        std::vector<int64_t> iterations(problems);
        std::vector<lc::cpu::Kmeans1dProblem> batch;
        for (size_t b = 0; b < problems; ++b)
          batch.push_back({&parts[b], joint ? int64_t(x.size()) : 1, as<float>(codebooks) + b * k, &distortions[b],
                           &iterations[b], &bounds[b]});
        std::vector<int> status;
        for (const auto s : kmeans1d(batch, settings)) status.push_back(int(s));
        return std::tuple(status, distortions, iterations, bounds);
      },
      NoGil());)
  // Problem b is x[offsets[b]] to x[offsets[b + 1] - 1]. Returns the first problem that failed, or -1, and its status.
  LC_IF_CPU(cpu.def(
      "kmeans1d_ragged",
      [](Addr x, Addr h, Addr offsets, int64_t problems, Addr codes, Addr codebooks, Addr distortions, Addr iterations,
         Addr bounds, const Kmeans1dSettings& settings) {
        const auto* at = as<const int64_t>(offsets);
        std::vector<lc::cpu::Kmeans1dPart> parts;
        std::vector<lc::cpu::Kmeans1dProblem> batch;
        parts.reserve(size_t(problems)), batch.reserve(size_t(problems));
        for (int64_t b = 0; b < problems; ++b) {
          const int64_t n = at[b + 1] - at[b];
          parts.push_back(
              {as<const float>(x) + at[b], h ? as<const float>(h) + at[b] : nullptr, n, as<uint8_t>(codes) + at[b], n});
          batch.push_back({&parts.back(), 1, as<float>(codebooks) + b * std::get<0>(settings),
                           as<double>(distortions) + b, as<int64_t>(iterations) + b, as<double>(bounds) + b});
        }
        const std::vector<lc::Kmeans1dStatus> status = kmeans1d(batch, settings);
        for (size_t b = 0; b < status.size(); ++b)
          if (status[b] != lc::Kmeans1dStatus::ok) return std::pair(int64_t(b), int(status[b]));
        return std::pair(int64_t(-1), 0);
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

static void bind_kmeans_vq([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "kmeans_vq",
      [](Addr x, Addr h, int64_t problems, int64_t n, int d, Addr random, int k, bool warm, int max_iter, double tol,
         Addr codes, Addr codebook, Addr distortion, Addr iterations) {
        std::vector<lc::cpu::KmeansVqProblem> batch;
        for (int64_t b = 0; b < problems; ++b)
          batch.push_back({as<const float>(x) + b * n * d, h ? as<const float>(h) + b * n : nullptr, n,
                           as<const double>(random) + b * k, as<uint8_t>(codes) + b * n,
                           as<float>(codebook) + b * k * d, as<double>(distortion) + b, as<int64_t>(iterations) + b});
        std::vector<lc::KmeansVqStatus> status;
        lc::cpu::kmeans_vq(batch, d, k, warm, max_iter, tol, status);
        std::vector<int> codes_of_status;
        for (const auto s : status) codes_of_status.push_back(int(s));
        return codes_of_status;
      },
      NoGil());)
}

static void bind_l1_ball([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(
      cpu.def(
          "l1_threshold",
          [](const std::vector<Addr>& x, const std::vector<int64_t>& n, const std::vector<Addr>& h, double radius,
             Addr threshold) { return lc::cpu::l1_threshold(soft_ranges(x, n, h, {}), radius, as<double>(threshold)); },
          NoGil());
      cpu.def(
          "soft_threshold",
          [](const std::vector<Addr>& x, const std::vector<int64_t>& n, const std::vector<Addr>& h, double t,
             const std::vector<Addr>& values) { return lc::cpu::soft_threshold(soft_ranges(x, n, h, values), t); },
          NoGil());)
}

static void bind_lut_linear([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(
      cpu.def("lut_layout_bytes",
              [](int64_t rows, int64_t cols, int bits, int layout) {
                return lc::cpu::lut_layout_bytes(rows, cols, bits, lc::LutLayout(layout));
              });
      cpu.def("lut_nibble_layout", [] { return int(lc::cpu::lut_nibble_layout()); }); cpu.def(
          "lut_repack",
          [](Addr words, int64_t rows, int64_t cols, int bits, int layout, Addr out) {
            lc::cpu::lut_repack(as<const int32_t>(words), rows, cols, bits, lc::LutLayout(layout), as<uint8_t>(out));
          },
          NoGil());
      cpu.def(
          "lut_linear",
          [](Addr x, int64_t batch, Addr codes, int64_t rows, int64_t cols, int layout, int width, int mode,
             int64_t groups, int64_t group_cols, Addr codebook, Addr table, Addr scale, Addr offset, Addr bias,
             int activation, Addr y) {
            const lc::LutMatrix w{as<const uint8_t>(codes),
                                  rows,
                                  cols,
                                  lc::LutLayout(layout),
                                  width,
                                  groups,
                                  group_cols,
                                  as<const float>(codebook),
                                  as<const int16_t>(table),
                                  as<const float>(scale),
                                  as<const int32_t>(offset),
                                  lc::Activation(activation)};
            lc::cpu::lut_linear(w, lc::LutMode(mode), as<const float>(x), batch, as<const float>(bias), as<float>(y));
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

static void bind_nm_linear([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def("nm_linear_slots", &lc::cpu::nm_linear_slots); cpu.def(
      "nm_linear_layout",
      [](Addr values, bool bfloat, Addr positions, int64_t rows, int64_t cols, int n, int m, Addr values_out,
         Addr words_out) {
        return lc::cpu::nm_linear_layout(as<const void>(values), bfloat, as<const int32_t>(positions), rows, cols, n, m,
                                         as<void>(values_out), as<uint32_t>(words_out));
      },
      NoGil());
            cpu.def(
                "nm_linear",
                [](Addr x, int64_t batch, Addr values, bool bfloat, Addr words, int64_t rows, int64_t cols, int n,
                   int m, Addr bias, bool accumulate, int f, Addr y) {
                  lc::cpu::nm_linear(as<const float>(x), batch, as<const void>(values), bfloat,
                                     as<const uint32_t>(words), rows, cols, n, m, as<const float>(bias), accumulate,
                                     lc::Activation(f), as<float>(y));
                },
                NoGil());)
}

static void bind_nm_prune([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "nm_prune",
      [](Addr x, Addr score, int score_kind, int64_t size, int64_t inner, int n, int m, Addr values, Addr mask,
         int mask_kind) {
        const lc::PruneRange all{as<const float>(x),
                                 as<const float>(score),
                                 size,
                                 as<float>(values),
                                 mask_kind == 1 ? as<uint8_t>(mask) : nullptr,
                                 mask_kind == 2 ? as<uint32_t>(mask) : nullptr};
        return lc::cpu::nm_prune(all, lc::Score(score_kind), inner, n, m);
      },
      NoGil());)
}

static void bind_pack_codes([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "pack_codes",
      [](Addr codes, int64_t rows, int64_t cols, int bits, Addr words) {
        return lc::cpu::pack_codes(as<const uint8_t>(codes), rows, cols, bits, as<int32_t>(words));
      },
      NoGil());
            cpu.def(
                "unpack_codes",
                [](Addr words, int64_t rows, int64_t cols, int bits, Addr codes) {
                  lc::cpu::unpack_codes(as<const int32_t>(words), rows, cols, bits, as<uint8_t>(codes));
                },
                NoGil());
            cpu.def(
                "count_codes",
                [](Addr codes, int64_t n, Addr counts) {
                  lc::cpu::count_codes(as<const uint8_t>(codes), n, as<int64_t>(counts));
                },
                NoGil());)
}

// h is an empty list or has an entry for each x. Each x is a problem of its own; or, if offsets are given, each of the
// segments of the one x between them; or, if joint, all x together are one problem.
static void bind_quantize_scaled([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "quantize_scaled",
      [](const std::vector<Addr>& x, const std::vector<int64_t>& n, const std::vector<Addr>& h, Addr offsets,
         int64_t segments, bool joint, Addr levels, int k, bool fixed, const std::vector<Addr>& codes, Addr scales,
         Addr distortions) {
        std::vector<lc::cpu::QuantizeScaledPart> parts;
        std::vector<int64_t> ends;
        const auto add = [&](size_t i, int64_t begin, int64_t end) {
          parts.push_back({as<const float>(x[i]) + begin, h.empty() ? nullptr : as<const float>(h[i]) + begin,
                           end - begin, as<uint8_t>(codes[i]) + begin});
          if (!joint) ends.push_back(int64_t(parts.size()));
        };
        if (offsets)
          for (int64_t g = 0; g < segments; ++g)
            add(0, as<const int64_t>(offsets)[g], as<const int64_t>(offsets)[g + 1]);
        else
          for (size_t i = 0; i < x.size(); ++i) add(i, 0, n[i]);
        if (joint) ends.push_back(int64_t(parts.size()));
        std::vector<lc::QuantizeScaledStatus> status;
        lc::cpu::quantize_scaled(parts, ends, as<const float>(levels), k, fixed, as<float>(scales),
                                 as<double>(distortions), status);
        for (size_t p = 0; p < status.size(); ++p) // the first that is bad
          if (status[p] != lc::QuantizeScaledStatus::ok) return std::pair<int64_t, int>(int64_t(p), int(status[p]));
        return std::pair<int64_t, int>(-1, 0);
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

static void bind_skinny_matmul([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "skinny_matmul",
      [](Addr a, int64_t m, int64_t n, bool transpose, Addr x, int64_t b, bool add, Addr y) {
        lc::cpu::skinny_matmul(as<const float>(a), m, n, transpose, as<const float>(x), b, add, as<float>(y));
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

static void bind_sparse_linear([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(
      cpu.def(
          "sparse_linear_check",
          [](Addr columns, int column_bytes, Addr row_starts, int64_t rows, int64_t cols, int64_t nnz) {
            return lc::cpu::sparse_linear_check(as<const void>(columns), column_bytes, as<const int32_t>(row_starts),
                                                rows, cols, nnz);
          },
          NoGil());
      cpu.def(
          "sparse_linear_slices",
          [](Addr row_starts, int64_t rows, Addr order, Addr starts) {
            return lc::cpu::sparse_linear_slices(as<const int32_t>(row_starts), rows, as<int32_t>(order),
                                                 as<int64_t>(starts));
          },
          NoGil());
      cpu.def(
          "sparse_linear_layout",
          [](Addr values, bool bfloat, Addr columns, int column_bytes, Addr row_starts, int64_t rows, int64_t cols,
             Addr order, Addr starts, Addr values_out, Addr columns_out, int bytes_out) {
            lc::cpu::sparse_linear_layout(as<const void>(values), bfloat, as<const void>(columns), column_bytes,
                                          as<const int32_t>(row_starts), rows, cols, as<const int32_t>(order),
                                          as<const int64_t>(starts), as<void>(values_out), as<void>(columns_out),
                                          bytes_out);
          },
          NoGil());
      cpu.def(
          "sparse_linear_slice",
          [](Addr x, Addr values, bool bfloat, Addr columns, int column_bytes, Addr order, Addr starts, int64_t rows,
             int64_t cols, Addr bias, bool accumulate, int f, Addr y) {
            lc::cpu::sparse_linear_slice(as<const float>(x), as<const void>(values), bfloat, as<const void>(columns),
                                         column_bytes, as<const int32_t>(order), as<const int64_t>(starts), rows, cols,
                                         as<const float>(bias), accumulate, lc::Activation(f), as<float>(y));
          },
          NoGil());
      cpu.def(
          "sparse_linear_count_pieces",
          [](Addr columns, int column_bytes, Addr row_starts, int64_t rows, int64_t cols, int64_t block, Addr counts,
             Addr piece_starts) {
            return lc::cpu::sparse_linear_count_pieces(as<const void>(columns), column_bytes,
                                                       as<const int32_t>(row_starts), rows, cols, block,
                                                       as<uint8_t>(counts), as<int64_t>(piece_starts));
          },
          NoGil());
      cpu.def(
          "sparse_linear_fill_pieces",
          [](Addr values, Addr columns, int column_bytes, Addr row_starts, int64_t rows, int64_t cols, int64_t block,
             Addr piece_starts, Addr values_out, Addr offsets, Addr piece_rows, Addr lengths) {
            lc::cpu::sparse_linear_fill_pieces(as<const float>(values), as<const void>(columns), column_bytes,
                                               as<const int32_t>(row_starts), rows, cols, block,
                                               as<const int64_t>(piece_starts), as<float>(values_out),
                                               as<uint8_t>(offsets), as<uint8_t>(piece_rows), as<uint16_t>(lengths));
          },
          NoGil());
      cpu.def(
          "sparse_linear_in_pieces",
          [](Addr x, int64_t batch, int64_t block, Addr values, Addr offsets, Addr piece_starts, Addr piece_rows,
             Addr lengths, Addr counts, Addr row_starts, int64_t rows, int64_t cols, Addr bias, bool accumulate, int f,
             Addr y) {
            const lc::SparsePieces pieces{block,
                                          as<const float>(values),
                                          as<const uint8_t>(offsets),
                                          as<const int64_t>(piece_starts),
                                          as<const uint8_t>(piece_rows),
                                          as<const uint16_t>(lengths),
                                          as<const uint8_t>(counts)};
            lc::cpu::sparse_linear_in_pieces(as<const float>(x), batch, pieces, as<const int32_t>(row_starts), rows,
                                             cols, as<const float>(bias), accumulate, lc::Activation(f), as<float>(y));
          },
          NoGil());
      cpu.def(
          "sparse_linear",
          [](Addr x, int64_t batch, Addr values, Addr columns, int column_bytes, Addr row_starts, int64_t rows,
             int64_t cols, Addr bias, bool accumulate, int f, Addr y) {
            lc::cpu::sparse_linear(as<const float>(x), batch, as<const float>(values), as<const void>(columns),
                                   column_bytes, as<const int32_t>(row_starts), rows, cols, as<const float>(bias),
                                   accumulate, lc::Activation(f), as<float>(y));
          },
          NoGil());)
}

static void bind_tiled_conv2d([[maybe_unused]] py::module_& cpu) {
  LC_IF_CPU(cpu.def(
      "tiled_conv2d",
      [](Addr x, const std::array<int64_t, 4>& size, const std::array<int64_t, 4>& step,
         const std::array<int64_t, 3>& kernel, const std::array<int64_t, 6>& options, Addr codes, int bits, Addr table,
         bool per_output, Addr starts, Addr places, Addr values, Addr bias, Addr y) {
        const lc::ConvShape shape{size[0],
                                  size[1],
                                  size[2],
                                  size[3],
                                  {step[0], step[1], step[2], step[3]},
                                  kernel[0],
                                  kernel[1],
                                  kernel[2],
                                  {options[0], options[1]},
                                  {options[2], options[3]},
                                  {options[4], options[5]}};
        const lc::ConvWeight weight{as<const uint8_t>(codes),  bits,
                                    as<const float>(table),    per_output,
                                    as<const int32_t>(starts), as<const int32_t>(places),
                                    as<const float>(values)};
        lc::cpu::tiled_conv2d(as<const float>(x), shape, weight, as<const float>(bias), as<float>(y));
      },
      NoGil());)
}

static void bind_topk_prune([[maybe_unused]] py::module_& cpu, [[maybe_unused]] py::module_& cuda) {
  LC_IF_CPU(
      cpu.def(
          "topk_prune",
          [](const std::vector<Addr>& x, const std::vector<int64_t>& n, int score_kind, const std::vector<Addr>& score,
             int64_t kappa, const std::vector<Addr>& values, const std::vector<Addr>& mask, int mask_kind,
             Addr threshold, Addr indices, Addr kept) {
            return lc::cpu::topk_prune(prune_ranges(x, n, score, values, mask, mask_kind), lc::Score(score_kind), kappa,
                                       as<float>(threshold), as<int64_t>(indices), as<int64_t>(kept));
          },
          NoGil());
      cpu.def(
          "threshold_prune",
          [](const std::vector<Addr>& x, const std::vector<int64_t>& n, int score_kind, const std::vector<Addr>& score,
             float bound, const std::vector<Addr>& values, const std::vector<Addr>& mask, int mask_kind) {
            return lc::cpu::threshold_prune(prune_ranges(x, n, score, values, mask, mask_kind), lc::Score(score_kind),
                                            bound);
          },
          NoGil());)
}

PYBIND11_MODULE(LC_MODULE, m) {
  py::register_exception<lc::Error>(m, "Error", PyExc_RuntimeError);
  auto cpu = m.def_submodule("cpu"), cuda = m.def_submodule("cuda");
  bind_activation(cpu);
  bind_assign(cpu, cuda);
  bind_binary_plus_sparse(cpu);
  bind_block_krylov(cpu);
  bind_codebook_plus_sparse(cpu);
  bind_decode(cpu, cuda);
  bind_gram_product(cpu);
  bind_jacobi_svd(cpu);
  bind_kmeans1d(cpu, cuda);
  bind_kmeans_plus_sparse(cpu);
  bind_kmeans_vq(cpu);
  bind_l1_ball(cpu);
  bind_lut_linear(cpu);
  bind_nm_linear(cpu);
  bind_nm_prune(cpu);
  bind_pack_codes(cpu);
  bind_quantize_scaled(cpu);
  bind_rate_distortion(cpu);
  bind_skinny_matmul(cpu);
  bind_sparse_codebook(cpu);
  bind_sparse_linear(cpu);
  bind_tiled_conv2d(cpu);
  bind_topk_prune(cpu, cuda);
  LC_IF_CPU(lc::active_isa(); // a bad LC_EXT_ISA is an error at import
            m.def("supported_isas", &lc::supported_isas); m.def("active_isa", &lc::active_isa);
            m.def("set_isa", &lc::set_isa);)
#if defined(LC_EMU)
  m.def("set_seed", &lc::emu::set_seed);
#endif
}
