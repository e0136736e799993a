// The program of tests/test_isa_native.py: every op of lc::cpu on every instruction set that the machine can run.
//   isa_main    prints "isas: ..." and "digest: ..." and, last, "N passed, M failed"; exit status 1 if M > 0
//
// What csrc/*.h promises to be the same on every instruction set is compared with `scalar` bit for bit, and hashed into
// the digest, so that two architectures can be compared too. Everything is also compared with a definition in plain
// loops. Inputs are heap buffers of their exact size, for ASan; outputs stand between guard bytes. The data come from
// integer arithmetic, since what <random> and libm return depends on the library.
#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <numeric>
#include <omp.h>
#include <set>
#include <string>
#include <vector>

#include "activation.h"
#include "assign.h"
#include "binary_plus_sparse.h"
#include "block_krylov.h"
#include "codebook_plus_sparse.h"
#include "error.h"
#include "gram_product.h"
#include "isa.h"
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

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity(), kNan = std::numeric_limits<float>::quiet_NaN();

// ---- counting and comparing -----------------------------------------------------------------------------------------

int64_t passed = 0, failed = 0;

void check(bool holds, const std::string& what) {
  ++(holds ? passed : failed);
  if (!holds && failed <= 20) std::printf("does not hold: %s\n", what.c_str());
}

template <class... A> std::string text(const A&... parts) {
  std::ostringstream s;
  ((s << parts << " "), ...);
  return s.str();
}

using Bytes = std::vector<uint8_t>;

template <class T> void append(Bytes& bytes, const T* p, int64_t n) {
  if (n) bytes.insert(bytes.end(), reinterpret_cast<const uint8_t*>(p), reinterpret_cast<const uint8_t*>(p + n));
}

uint64_t digest = 14695981039346656037u; // FNV-1a

void hash(const Bytes& bytes) {
  for (uint8_t b : bytes) digest = (digest ^ b) * 1099511628211u;
}

/// f(), which returns its results as bytes, on each instruction set: all must equal those of the first, `scalar`. Each
/// runs with another number of threads, on which the results may not depend either.
template <class F> void same_on_each_isa(const std::string& what, const F& f) {
  const std::vector<std::string> isas = lc::supported_isas();
  Bytes scalar;
  for (size_t i = 0; i < isas.size(); ++i) {
    lc::set_isa(isas[i]);
    omp_set_num_threads(1 + int(i) % 3);
    const Bytes got = f(isas[i] + ": " + what);
    if (i == 0)
      scalar = got;
    else
      check(got == scalar, text(isas[i], "equals scalar:", what));
  }
  hash(scalar);
}

/// n items between guard bytes, `offset` items after an aligned address.
template <class T> class Output {
public:
  explicit Output(int64_t n, int offset = 0)
      : bytes_(size_t(2 * kGuard + (n + offset) * int64_t(sizeof(T))), kUntouched), n_(n),
        first_(kGuard + offset * int64_t(sizeof(T))) {}
  T* data() { return reinterpret_cast<T*>(bytes_.data() + first_); }
  T operator[](int64_t i) { return data()[i]; }
  bool guards_hold() const {
    const auto untouched = [](uint8_t b) { return b == kUntouched; };
    return std::all_of(bytes_.begin(), bytes_.begin() + first_, untouched) &&
           std::all_of(bytes_.begin() + first_ + n_ * int64_t(sizeof(T)), bytes_.end(), untouched);
  }

private:
  static constexpr int64_t kGuard = 64;
  static constexpr uint8_t kUntouched = 0xee;
  Bytes bytes_;
  int64_t n_, first_;
};

/// A copy of the items in a heap buffer that ends where they end, `offset` items after an aligned address.
template <class T> class Input {
public:
  explicit Input(const std::vector<T>& items, int offset = 0) : items_(size_t(offset)), offset_(offset) {
    items_.insert(items_.end(), items.begin(), items.end());
    items_.shrink_to_fit();
  }
  const T* data() const { return items_.data() + offset_; }

private:
  std::vector<T> items_;
  int offset_;
};

// ---- data -----------------------------------------------------------------------------------------------------------

class Random { // splitmix64
public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  int64_t below(int64_t n) { return int64_t(next() % uint64_t(n)); }

private:
  uint64_t state_;
};

float float_of(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, sizeof x);
  return x;
}

uint32_t key_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits & 0x7fffffff;
}

enum class Kind { bulk, ties, denormal, huge, any, spike, constant };
constexpr Kind kKinds[] = {Kind::bulk, Kind::ties, Kind::denormal, Kind::huge, Kind::any, Kind::spike, Kind::constant};
const char* const kKindNames[] = {"bulk", "ties", "denormal", "huge", "any", "spike", "constant"};

const char* name(Kind kind) { return kKindNames[int(kind)]; }

/// On a grid of 2^-14 in (-8, 8): differences, and sums of two, are exact.
float bell(Random& random) {
  int64_t sum = -4 * 32768;
  for (int i = 0; i < 4; ++i) sum += random.below(65536);
  return float(sum) / 16384;
}

float draw(Kind kind, Random& random) {
  const auto r = uint32_t(random.next());
  switch (kind) {
  case Kind::bulk:
    return bell(random);
  case Kind::ties:
    return float(int(r % 17) - 8) / 4; // also both zeros: -0 below
  case Kind::denormal:
    return r % 16 == 0 ? float_of(r & 0x80000000) : float_of((r & 0x807fffff) >> (r >> 8) % 8);
  case Kind::huge:
    return float_of((r & 0x807fffff) | 0x7f000000);
  case Kind::any:
    return float_of((r & 0x7f800000) == 0x7f800000 ? r & 0xbfffffff : r);
  case Kind::spike:
    return r % 10 ? 0.5f : r % 1000 ? bell(random) : 1e6f * bell(random);
  case Kind::constant:
    return -1.25f;
  }
  return 0;
}

std::vector<float> draw(Kind kind, int64_t n, Random& random) {
  std::vector<float> x;
  for (int64_t i = 0; i < n; ++i) x.push_back(draw(kind, random));
  if (kind == Kind::ties && n > 1) x[size_t(n / 2)] = -0.0f;
  return x;
}

// Around the vectors of 1, 4, 8 and 16 lanes, and 4 of them, and the blocks of 64.
const int64_t kSizes[] = {0, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 63, 64, 65, 127, 128, 129, 1000};

// ---- isa ------------------------------------------------------------------------------------------------------------

void check_isa() {
  const std::vector<std::string> isas = lc::supported_isas();
  check(!isas.empty() && isas[0] == "scalar", "scalar is the first instruction set");
  check(lc::active_isa() == isas.back() || isas.back() == "wide", "the best one is in use at first");
  check(lc::active_isa() != "wide", "wide is not chosen by itself");
  for (const std::string& isa : isas) {
    lc::set_isa(isa);
    check(lc::active_isa() == isa, text("set_isa", isa));
  }
  bool threw = false;
  try {
    lc::set_isa("sse9");
  } catch (const lc::Error&) {
    threw = true;
  }
  check(threw && lc::active_isa() == isas.back(), "an unknown instruction set is refused");
}

// ---- assign and decode ----------------------------------------------------------------------------------------------

/// Index of a nearest codeword, by distances in double.
bool is_nearest(float x, const std::vector<float>& codebook, int code) {
  const auto distance = [&](float c) { return std::fabs(double(x) - double(c)); };
  for (float c : codebook)
    if (distance(c) < distance(codebook[size_t(code)]) ||
        (distance(c) == distance(codebook[size_t(code)]) && c < codebook[size_t(code)]))
      return false;
  return true;
}

void check_assign(Kind kind, int64_t n, int k, int offset, Random& random) {
  std::vector<float> codebook = draw(kind, k, random), x = draw(kind, n, random), mids(size_t(k - 1));
  std::sort(codebook.begin(), codebook.end());
  lc::cpu::midpoints(codebook.data(), k, mids.data());
  for (int64_t i = 0; i < n; i += 3) // at a boundary, at a codeword, at neither
    if (k > 1) x[size_t(i)] = i % 2 ? mids[size_t(random.below(k - 1))] : codebook[size_t(random.below(k))];
  const float special[] = {kNan, kInf, -kInf, -0.0f, FLT_MAX, float_of(1), -kNan};
  for (int64_t i = 0; i < n / 8; ++i) x[size_t(random.below(n))] = special[i % 7];
  const Input in(x, offset), book(codebook), between(mids);
  const bool exact = kind == Kind::bulk || kind == Kind::ties || kind == Kind::constant;
  same_on_each_isa(text("assign", name(kind), "n", n, "k", k, "offset", offset), [&](const std::string& what) {
    Output<uint8_t> codes(n, offset);
    Output<float> decoded(n, offset);
    lc::cpu::assign(in.data(), n, between.data(), k, codes.data());
    lc::cpu::decode(codes.data(), n, book.data(), k, decoded.data());
    int64_t wrong = 0;
    for (int64_t i = 0; i < n; ++i) {
      const float v = x[size_t(i)];
      int below = 0;
      for (float m : mids) below += m < v;
      wrong += codes[i] != below || (exact && std::fabs(v) < 16 && !is_nearest(v, codebook, codes[i]));
      wrong += std::memcmp(&codebook[codes[i]], decoded.data() + i, 4) != 0;
    }
    check(wrong == 0 && codes.guards_hold() && decoded.guards_hold(), what);
    Bytes bytes;
    append(bytes, codes.data(), n), append(bytes, decoded.data(), n);
    return bytes;
  });
}

void run_assign() {
  Random random(1);
  for (Kind kind : kKinds)
    for (int64_t n : kSizes)
      for (int k : {1, 2, 5, 16, 33, 256}) check_assign(kind, n, k, int(n + k) % 4, random);
  for (int k : {3, 4, 31, 32, 64, 65, 129, 255}) check_assign(Kind::bulk, 300, k, 1, random);
  for (Kind kind : kKinds)
    for (int k : {33, 256}) check_assign(kind, 4500, k, 1, random);              // enough values for a grid
  for (int k : {4, 200}) check_assign(Kind::bulk, (1 << 17) + 21, k, 3, random); // three chunks of parallel_for
}

// ---- topk_prune -----------------------------------------------------------------------------------------------------

float score_of(float x, float given, lc::Score score) {
  const float size = std::fabs(x);
  return score == lc::Score::magnitude ? size : score == lc::Score::weighted ? given * size * size : given;
}

std::vector<float> draw_scores(int64_t n, Random& random) {
  std::vector<float> h;
  for (int64_t i = 0; i < n; ++i) h.push_back(random.below(4) ? std::fabs(bell(random)) : i % 2 ? 0.0f : -0.0f);
  return h;
}

uint8_t bit_of(const uint32_t* words, int64_t i) { return words[i / 32] >> (i % 32) & 1; }

/// The tensors are `parts` pieces of x, the last but one of them empty.
void check_topk(const std::vector<float>& x, const std::vector<float>& h, lc::Score score, int64_t kappa, int parts,
                int offset, const std::string& about) {
  const auto n = int64_t(x.size());
  std::vector<float> scores;
  for (size_t i = 0; i < x.size(); ++i) scores.push_back(score_of(x[i], h.empty() ? 0 : h[i], score));
  std::vector<int64_t> order(x.size()), sizes;
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return scores[size_t(a)] > scores[size_t(b)]; });
  std::vector<uint8_t> keep(x.size());
  for (int64_t i = 0; i < kappa; ++i) keep[size_t(order[size_t(i)])] = 1;
  const float smallest = kappa ? scores[size_t(order[size_t(kappa - 1)])] : kInf;

  std::vector<Input<float>> inputs, given;
  for (int64_t t = 0, at = 0; t < parts; ++t) {
    const int64_t size = parts > 1 && t == parts - 2 ? 0 : t == parts - 1 ? n - at : n / parts;
    sizes.push_back(size);
    inputs.emplace_back(std::vector<float>(x.begin() + at, x.begin() + at + size), offset);
    if (!h.empty()) given.emplace_back(std::vector<float>(h.begin() + at, h.begin() + at + size), offset);
    at += size;
  }
  same_on_each_isa(text("topk_prune", about, "score", int(score), "n", n, "kappa", kappa, "parts", parts),
                   [&](const std::string& what) {
                     std::vector<Output<float>> values;
                     std::vector<Output<uint8_t>> bytes_of;
                     std::vector<Output<uint32_t>> bits_of;
                     Output<int64_t> indices(kappa), kept(parts);
                     std::vector<lc::PruneRange> ranges;
                     values.reserve(size_t(parts)), bytes_of.reserve(size_t(parts)), bits_of.reserve(size_t(parts));
                     for (size_t t = 0; t < size_t(parts); ++t)
                       ranges.push_back({inputs[t].data(), h.empty() ? nullptr : given[t].data(), sizes[t],
                                         values.emplace_back(sizes[t], offset).data(),
                                         bytes_of.emplace_back(sizes[t], offset).data(),
                                         t % 2 ? nullptr : bits_of.emplace_back((sizes[t] + 31) / 32).data()});
                     float threshold = 0;
                     bool right = lc::cpu::topk_prune(ranges, score, kappa, &threshold, indices.data(), kept.data());
                     right &= threshold == smallest && indices.guards_hold() && kept.guards_hold();
                     Bytes bytes;
                     append(bytes, &threshold, 1);
                     int64_t found = 0;
                     for (size_t t = 0, at = 0; t < size_t(parts); at += size_t(sizes[t++])) {
                       const int64_t first = found;
                       for (int64_t i = 0; i < sizes[t]; ++i) {
                         const bool stays = keep[at + size_t(i)];
                         const float wanted = stays ? x[at + size_t(i)] : 0.0f;
                         right &= std::memcmp(&wanted, ranges[t].values + i, 4) == 0 && ranges[t].bytes[i] == stays;
                         right &= !ranges[t].bits || bit_of(ranges[t].bits, i) == stays;
                         if (stays) right &= indices[found++] == i;
                       }
                       right &= kept[int64_t(t)] == found - first;
                       append(bytes, ranges[t].values, sizes[t]), append(bytes, ranges[t].bytes, sizes[t]);
                       right &= values[t].guards_hold() && bytes_of[t].guards_hold();
                     }
                     for (const auto& bits : bits_of) right &= bits.guards_hold();
                     check(right, what);
                     return bytes;
                   });
}

void check_topk_refuses(int64_t n, int64_t at, float bad, int64_t kappa, Random& random) {
  std::vector<float> x = draw(Kind::bulk, n, random);
  x[size_t(at)] = bad;
  const Input in(x);
  same_on_each_isa(text("topk_prune refuses", bad, "at", at, "of", n, "kappa", kappa), [&](const std::string& what) {
    Output<float> values(n);
    float threshold = 0;
    const std::vector<lc::PruneRange> ranges{{in.data(), nullptr, n, values.data(), nullptr, nullptr}};
    check(!lc::cpu::topk_prune(ranges, lc::Score::magnitude, kappa, &threshold, nullptr, nullptr), what);
    check(lc::cpu::threshold_prune(ranges, lc::Score::magnitude, 1) < 0 && values.guards_hold(), what);
    return Bytes{};
  });
}

/// The kernels below topk_prune: brackets at the ends of the range, empty and full ones.
void check_topk_kernels(Kind kind, int64_t n, Random& random) {
  const std::vector<float> x = draw(kind, n, random);
  std::vector<uint32_t> bounds = {0, 0x7f7fffff, key_of(draw(kind, random)), key_of(draw(kind, random))};
  std::sort(bounds.begin(), bounds.end() - 1 + random.below(2));
  const uint32_t low = std::min(bounds[0], bounds[2]), high = std::max(bounds[0], bounds[2]);
  const uint32_t mid = std::clamp(bounds[1], low, high);
  std::vector<uint32_t> listed;
  int64_t kept = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t key = key_of(x[size_t(i)]);
    kept += key >= mid;
    if (key >= low && key <= high) listed.push_back(uint32_t(i));
  }
  const Input in(x, 1);
  const lc::PruneRange range{in.data(), nullptr, n, nullptr, nullptr, nullptr};
  same_on_each_isa(text("topk_pass", name(kind), "n", n), [&](const std::string& what) {
    Output<uint32_t> at(n + 2), histogram(64);
    Output<int64_t> reached(lc::kTopkBounds);
    std::fill(histogram.data(), histogram.data() + 64, 0);
    const auto magnitude = lc::Score::magnitude;
    const lc::TopkCounts counts = LC_DISPATCH(topk_pass)(range, magnitude, low, mid, high, false, at.data());
    const lc::TopkCounts none = LC_DISPATCH(topk_pass)(range, magnitude, 1, mid, 0, false, nullptr);
    bool right = counts.kept == kept && counts.listed == int64_t(listed.size()) && counts.valid;
    right &= none.kept == kept && none.listed == 0;
    for (size_t i = 0; i < listed.size(); ++i) right &= at[int64_t(i)] == listed[i];
    LC_DISPATCH(topk_histogram)(range, magnitude, 26, low >> 26, 20, 64, histogram.data());
    for (uint32_t bin = 0; bin < 64; ++bin)
      right &= histogram[bin] ==
               std::count_if(x.begin(), x.end(), [&](float v) { return key_of(v) >> 20 == ((low >> 26) << 6 | bin); });
    const uint32_t limits[lc::kTopkBounds] = {low, mid, high, 0, 0x80000000, mid + 1};
    LC_DISPATCH(topk_count)(range, magnitude, limits, reached.data());
    for (int j = 0; j < lc::kTopkBounds; ++j)
      right &= reached[j] == std::count_if(x.begin(), x.end(), [&](float v) { return key_of(v) >= limits[j]; });
    check(right && at.guards_hold() && histogram.guards_hold() && reached.guards_hold(), what);
    Bytes bytes;
    append(bytes, at.data(), int64_t(listed.size())), append(bytes, histogram.data(), 64);
    return bytes;
  });
}

void run_topk() {
  Random random(2);
  for (Kind kind : kKinds) {
    const bool small = kind != Kind::huge && kind != Kind::any; // h x^2 is finite
    for (int64_t n : kSizes) {
      const std::vector<float> x = draw(kind, n, random), h = draw_scores(n, random);
      for (int64_t kappa : {int64_t(0), int64_t(1), n / 3, n - 1, n})
        if (kappa >= 0 && kappa <= n) check_topk(x, {}, lc::Score::magnitude, kappa, 1, int(n % 4), name(kind));
      check_topk(x, {}, lc::Score::magnitude, n / 2, 3, 1, name(kind));
      check_topk(x, h, lc::Score::given, n / 2, 2, 1, name(kind));
      if (small) check_topk(x, h, lc::Score::weighted, n / 2, 3, 0, name(kind));
      check_topk_kernels(kind, n, random);
    }
    const std::vector<float> large = draw(kind, 70001, random); // a sampled bracket, and two chunks
    for (int64_t kappa : {int64_t(1), int64_t(3500), int64_t(70000)})
      check_topk(large, {}, lc::Score::magnitude, kappa, 1, 1, name(kind));
    check_topk(large, {}, lc::Score::magnitude, 20000, 4, 3, name(kind));
    if (small) check_topk(large, draw_scores(70001, random), lc::Score::weighted, 20000, 4, 3, name(kind));
  }
  for (int64_t n : {1, 4, 5, 17, 33, 70})
    for (int64_t at = 0; at < n; at += n > 40 ? 5 : 1)
      for (float bad : {kNan, -kInf}) check_topk_refuses(n, at, bad, n / 2, random);
  for (int64_t at : {0, 777, 69999})
    for (int64_t kappa : {0, 100, 70000}) check_topk_refuses(70000, at, kNan, kappa, random);
}

// ---- kmeans1d -------------------------------------------------------------------------------------------------------

double cost(double w, double s, double q) { return w > 0 ? std::max(0.0, q - s * s / w) : 0; }

/// The least distortion of any k codewords, by the quadratic dynamic programme over the sorted values.
double best_distortion(const std::vector<float>& x, const std::vector<float>& h, int k) {
  std::vector<size_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return x[a] < x[b]; });
  const double shift = double(x[order[x.size() / 2]]);
  std::vector<double> w{0}, s{0}, q{0};
  for (size_t i : order) {
    const double weight = h.empty() ? 1 : double(h[i]), t = double(x[i]) - shift;
    w.push_back(w.back() + weight), s.push_back(s.back() + weight * t), q.push_back(q.back() + weight * t * t);
  }
  const auto segment = [&](size_t i, size_t j) { return cost(w[j] - w[i], s[j] - s[i], q[j] - q[i]); };
  std::vector<double> least(w.size());
  for (size_t j = 0; j < w.size(); ++j) least[j] = segment(0, j);
  for (int c = 1; c < k; ++c) {
    std::vector<double> next = least;
    for (size_t j = 1; j < w.size(); ++j)
      for (size_t i = 0; i < j; ++i) next[j] = std::min(next[j], least[i] + segment(i, j));
    least = next;
  }
  return least.back();
}

double distortion_of(const std::vector<float>& x, const std::vector<float>& h, const std::vector<float>& codebook) {
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    double nearest = DBL_MAX;
    for (float c : codebook) nearest = std::min(nearest, std::fabs(double(x[i]) - double(c)));
    sum += (h.empty() ? 1.0 : double(h[i])) * nearest * nearest;
  }
  return sum;
}

/// Codewords are means rounded to float: of a mean, an error e costs the weight times e^2. Sums of n doubles are off by
/// n 2^-53 of the sum of the squares about the center they are taken from; bounded by those of the largest |x|.
double slack(const std::vector<float>& x, const std::vector<float>& h) {
  double largest = 0, weight = 0;
  for (float v : x) largest = std::max(largest, std::fabs(double(v)));
  for (size_t i = 0; i < x.size(); ++i) weight += h.empty() ? 1 : double(h[i]);
  const double rounding = std::max(std::ldexp(largest, -23), std::ldexp(1, -149));
  return weight * (rounding * rounding + double(x.size()) * std::ldexp(4 * largest * largest, -52));
}

struct Case {
  std::vector<float> x, h, start; // h, start: may be empty
};

void check_kmeans(const std::vector<Case>& batch, int k, int max_iter, bool optimal, const std::string& about) {
  const bool warm = !batch[0].start.empty();
  std::vector<Input<float>> x, h;
  std::vector<double> wanted;
  for (const Case& c : batch) {
    x.emplace_back(c.x, int(c.x.size()) % 4), h.emplace_back(c.h, int(c.x.size() + 1) % 4);
    wanted.push_back(warm ? distortion_of(c.x, c.h, c.start) : optimal ? best_distortion(c.x, c.h, k) : DBL_MAX);
  }
  const std::string title = text("kmeans1d", about, "n", batch[0].x.size(), "k", k,
                                 batch[0].h.empty() ? "" : "weighted", warm ? "warm" : "cold");
  same_on_each_isa(title, [&](const std::string& what) {
    std::vector<Output<uint8_t>> codes;
    std::vector<Output<float>> codebooks;
    std::vector<double> distortions(batch.size());
    std::vector<int64_t> iterations(batch.size());
    std::vector<lc::cpu::Kmeans1dPart> parts;
    std::vector<lc::cpu::Kmeans1dProblem> problems;
    parts.reserve(batch.size()), codes.reserve(batch.size()), codebooks.reserve(batch.size());
    for (size_t b = 0; b < batch.size(); ++b) {
      const auto n = int64_t(batch[b].x.size());
      codes.emplace_back(n, int(n) % 3), codebooks.emplace_back(k);
      if (warm) std::copy(batch[b].start.begin(), batch[b].start.end(), codebooks[b].data());
      parts.push_back({x[b].data(), batch[b].h.empty() ? nullptr : h[b].data(), n, codes[b].data(), n});
      problems.push_back({&parts[b], 1, codebooks[b].data(), &distortions[b], &iterations[b]});
    }
    std::vector<lc::Kmeans1dStatus> status;
    const auto method = optimal ? lc::Kmeans1dMethod::optimal : lc::Kmeans1dMethod(k % 2);
    lc::cpu::kmeans1d(problems, {k, warm, method, max_iter, 0, nullptr, 0, 0}, status);
    Bytes bytes;
    for (size_t b = 0; b < batch.size(); ++b) {
      const Case& c = batch[b];
      const auto n = int64_t(c.x.size());
      const std::vector<float> codebook(codebooks[b].data(), codebooks[b].data() + k);
      std::vector<float> mids(size_t(k - 1));
      lc::cpu::midpoints(codebook.data(), k, mids.data());
      bool right = status[b] == lc::Kmeans1dStatus::ok && std::is_sorted(codebook.begin(), codebook.end());
      double sum = 0;
      for (int64_t i = 0; i < n; ++i) {
        const auto code = std::lower_bound(mids.begin(), mids.end(), c.x[size_t(i)]) - mids.begin();
        right &= codes[b][i] == code;
        const double d = double(c.x[size_t(i)]) - double(codebook[size_t(code)]);
        sum += (c.h.empty() ? 1.0 : double(c.h[size_t(i)])) * d * d;
      }
      check(right && codes[b].guards_hold() && codebooks[b].guards_hold(), what + "codes are the nearest");
      const double rough = n > 65536 && c.h.empty() ? 1e-7 : double(n + 3) * DBL_EPSILON; // see kmeans1d.h
      check(std::fabs(distortions[b] - sum) <= rough * sum, what + "distortion is the sum");
      check(distortions[b] <= wanted[b] + slack(c.x, c.h),
            what + (warm ? "no worse than the start" : "no worse than the optimum"));
      append(bytes, codebook.data(), k), append(bytes, codes[b].data(), n);
      append(bytes, &distortions[b], 1), append(bytes, &iterations[b], 1);
    }
    return bytes;
  });
}

std::vector<float> weights(int64_t n, Random& random) {
  std::vector<float> h;
  for (int64_t i = 0; i < n; ++i) h.push_back(i % 7 == 3 ? 0.0f : float(1 + random.below(4096)) / 1024);
  return h;
}

std::vector<float> spread_start(const std::vector<float>& x, int k, Random& random) {
  std::vector<float> start;
  for (int c = 0; c < k; ++c) start.push_back(x[size_t(random.below(int64_t(x.size())))]);
  std::sort(start.begin(), start.end());
  return start;
}

void check_kmeans_refuses(const Case& c, lc::Kmeans1dStatus wanted, const std::string& about) {
  const Input x(c.x), h(c.h);
  same_on_each_isa(text("kmeans1d refuses", about, "n", c.x.size()), [&](const std::string& what) {
    Output<uint8_t> codes(int64_t(c.x.size()));
    Output<float> codebook(4);
    double distortion;
    int64_t iterations;
    std::vector<lc::Kmeans1dStatus> status;
    const auto n = int64_t(c.x.size());
    const lc::cpu::Kmeans1dPart part{x.data(), c.h.empty() ? nullptr : h.data(), n, codes.data(), n};
    const lc::cpu::Kmeans1dOptions options{4, false, lc::Kmeans1dMethod::automatic, 10, 0, nullptr, 0, 0};
    lc::cpu::kmeans1d({{&part, 1, codebook.data(), &distortion, &iterations}}, options, status);
    check(status == std::vector{wanted} && codes.guards_hold() && codebook.guards_hold(), what);
    return Bytes{};
  });
}

/// The kernels below kmeans1d, with values on the grid and off it.
void check_kmeans_kernels(Kind kind, int64_t n, Random& random) {
  std::vector<float> x = draw(kind, n, random);
  lc::Kmeans1dGrid grid{0.25f, 0.5f, 14, 0, int(n % 3)};
  // What of kind `huge` the grid reaches: a quarter of the range of exponents.
  grid.half = int32_t((key_of(1e6f) - key_of(grid.base)) >> grid.shift) + 1;
  const auto key_in = [&](float v) {
    const float t = v - grid.center;
    const auto key = int32_t(key_of(std::fabs(t) + grid.base) - key_of(grid.base));
    return t < 0 ? ~key : key;
  };
  const auto bin_of = [&](float v) { return (key_in(v) >> grid.shift) + grid.half; };
  const auto on_grid = [&](float v) { return bin_of(v) >= 0 && bin_of(v) < 2 * grid.half; };
  const bool all_on = std::all_of(x.begin(), x.end(), on_grid);
  const std::vector<float> h = weights(n, random);
  const auto bins = size_t(2 * grid.half), stride = bins + 4;
  std::vector<uint8_t> wanted(bins);
  for (uint8_t& w : wanted) w = random.below(3) == 0;
  std::vector<int32_t> rank(static_cast<size_t>(n)), order(rank);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return x[size_t(a)] < x[size_t(b)]; });
  for (size_t i = 0; i < order.size(); ++i) rank[size_t(order[i])] = int32_t(i);
  const Input in(x, 1), weight(h, 3);
  same_on_each_isa(text("kmeans1d kernels", name(kind), "n", n), [&](const std::string& what) {
    std::vector<uint64_t> table(2 * stride);
    std::vector<double> count(bins), low(bins), count_wanted(bins), low_wanted(bins), sums(2 * bins),
        sums_wanted(2 * bins);
    Output<uint32_t> at(n);
    Output<int32_t> ranks(n);
    Bytes bytes;
    bool right = LC_DISPATCH(kmeans1d_histogram)(in.data(), n, grid, table.data(), int64_t(stride)) == all_on;
    right &= LC_DISPATCH(kmeans1d_histogram_weighted)(in.data(), weight.data(), n, grid, sums.data()) == all_on;
    if (all_on) {
      LC_DISPATCH(kmeans1d_flush)(table.data(), int64_t(stride), grid, count.data(), low.data());
      const int64_t found = LC_DISPATCH(kmeans1d_gather)(in.data(), n, grid, wanted.data(), at.data());
      int64_t next = 0;
      for (int64_t i = 0; i < n; ++i) {
        const auto bin = size_t(bin_of(x[size_t(i)]));
        ++count_wanted[bin];
        low_wanted[bin] += double((key_in(x[size_t(i)]) >> grid.drop) & ((1 << (grid.shift - grid.drop)) - 1));
        sums_wanted[2 * bin] += double(h[size_t(i)]);
        sums_wanted[2 * bin + 1] += double(h[size_t(i)]) * (double(x[size_t(i)]) - double(grid.center));
        if (wanted[bin]) right &= next < found && at[next++] == uint32_t(i);
      }
      right &= found == next && count == count_wanted && low == low_wanted && sums == sums_wanted && at.guards_hold();
      right &= std::count(table.begin(), table.end(), 0) == std::ptrdiff_t(table.size());
      append(bytes, low.data(), int64_t(bins)), append(bytes, sums.data(), int64_t(2 * bins));
    }
    if (n) {
      const Kmeans1dRange range = LC_DISPATCH(kmeans1d_range)(in.data(), n);
      right &= range.finite && range.low == *std::min_element(x.begin(), x.end());
      right &= range.high == *std::max_element(x.begin(), x.end());
      LC_DISPATCH(kmeans1d_rank)(in.data(), int(n), ranks.data());
      for (int64_t i = 0; i < n; ++i) right &= ranks[i] == rank[size_t(i)];
      right &= ranks.guards_hold();
    }
    check(right, what);
    return bytes;
  });
  for (int64_t i = 0; i < n; i += n > 70 ? 37 : 1) {
    const float before = x[size_t(i)];
    x[size_t(i)] = i % 3 == 0 ? kNan : i % 3 == 1 ? kInf : -kInf;
    const Input bad(x, 1);
    same_on_each_isa(text("kmeans1d kernels see", x[size_t(i)], "at", i, "of", n), [&](const std::string& what) {
      std::vector<uint64_t> table(2 * stride);
      check(!LC_DISPATCH(kmeans1d_range)(bad.data(), n).finite, what);
      check(!LC_DISPATCH(kmeans1d_histogram)(bad.data(), n, grid, table.data(), int64_t(stride)), what);
      return Bytes{};
    });
    x[size_t(i)] = before;
  }
}

/// Packed codes of each width, against the bits one by one, in rows that end within a word.
void check_kmeans_pack(int64_t n, Random& random) {
  for (int bits = 1; bits <= 8; ++bits) {
    std::vector<uint8_t> codes;
    for (int64_t i = 0; i < n; ++i) codes.push_back(uint8_t(random.below(int64_t(1) << bits)));
    const int64_t words = (n * bits + 31) / 32;
    std::vector<uint8_t> wanted(static_cast<size_t>(4 * words));
    for (int64_t i = 0; i < n * bits; ++i)
      wanted[size_t(i / 8)] |= uint8_t((codes[size_t(i / bits)] >> (i % bits) & 1) << (i % 8));
    const Input in(codes, 1);
    same_on_each_isa(text("kmeans1d_pack", n, "codes of bits", bits), [&](const std::string& what) {
      Output<int32_t> out(words);
      LC_DISPATCH(kmeans1d_pack)(in.data(), n, bits, out.data());
      Bytes bytes;
      append(bytes, out.data(), words);
      check(bytes == wanted && out.guards_hold(), what);
      return bytes;
    });
  }
}

/// Atoms of small whole weights and values, so that many partitions tie.
void check_partition(int m, int k, Random& random) {
  std::vector<double> w{0}, s{0};
  double value = -3;
  for (int j = 0; j < m; ++j) {
    const double weight = double(1 + random.below(2));
    w.push_back(w.back() + weight), s.push_back(s.back() + weight * value);
    value += double(1 + random.below(2));
  }
  const auto gain = [&](size_t i, size_t j) { return (s[j] - s[i]) * (s[j] - s[i]) / (w[j] - w[i]); };
  std::vector<double> best(w.size(), -1e300);
  for (size_t j = 1; j < w.size(); ++j) best[j] = gain(0, j);
  for (int c = 1; c < k; ++c) {
    std::vector<double> next(w.size(), -1e300);
    for (size_t j = size_t(c) + 1; j < w.size(); ++j)
      for (size_t i = size_t(c); i < j; ++i) next[j] = std::max(next[j], best[i] + gain(i, j));
    best = next;
  }
  const Input w_in(w), s_in(s);
  same_on_each_isa(text("kmeans1d_partition m", m, "k", k), [&](const std::string& what) {
    std::vector<double> scratch(size_t(2 * (m + 1)));
    std::vector<int> splits(size_t(k * (m + 1)));
    Output<int> ends(k);
    LC_DISPATCH(kmeans1d_partition)(w_in.data(), s_in.data(), m, k, scratch.data(), splits.data(), ends.data());
    double total = 0;
    bool right = ends[k - 1] == m && ends.guards_hold();
    for (int c = 0, begin = 0; c < k && right; begin = ends[c++]) {
      right = ends[c] > begin && ends[c] <= m;
      if (right) total += gain(size_t(begin), size_t(ends[c]));
    }
    check(right && std::fabs(total - best.back()) <= 4 * k * DBL_EPSILON * best.back(), what);
    Bytes bytes;
    append(bytes, ends.data(), k);
    return bytes;
  });
}

void run_kmeans() {
  Random random(3);
  for (Kind kind : kKinds) {
    for (int64_t n : {1, 2, 3, 5, 8, 17, 40})
      for (int k : {1, 2, 3, 8}) {
        const std::vector<float> x = draw(kind, n, random);
        std::vector<float> h = weights(n, random);
        check_kmeans({{x, {}, {}}, {draw(kind, n, random), {}, {}}}, k, 100, true, name(kind));
        check_kmeans({{x, h, {}}}, k, 100, true, name(kind));
        check_kmeans({{x, {}, spread_start(x, k, random)}}, k, 100, false, name(kind));
      }
    for (int64_t n : {64, 129, 1000, 5000}) {
      const std::vector<float> x = draw(kind, n, random), h = weights(n, random);
      check_kmeans({{x, {}, {}}}, n == 5000 ? 16 : 4, 50, false, name(kind));
      check_kmeans({{x, h, {}}}, n == 5000 ? 5 : 16, 50, false, name(kind));
      check_kmeans({{x, h, spread_start(x, 16, random)}}, 16, n == 64 ? 0 : 50, false, name(kind));
    }
    const std::vector<float> large = draw(kind, 70001, random); // two chunks
    check_kmeans({{large, {}, {}}}, 4, 20, false, name(kind));
    check_kmeans({{large, weights(70001, random), spread_start(large, 7, random)}}, 7, 20, false, name(kind));
    for (int64_t n : kSizes) check_kmeans_kernels(kind, n, random);
  }
  for (int64_t n : kSizes) check_kmeans_pack(n, random);
  check_kmeans({{draw(Kind::bulk, 6000, random), {}, {}}}, 256, 5, false, "bulk");
  check_kmeans({{draw(Kind::bulk, (1 << 17) + 9, random), {}, {}}}, 3, 10, false, "bulk"); // threads within a problem
  for (int m : {1, 2, 3, 4, 5, 7, 8, 9, 16, 17, 31, 33, 64, 100})
    for (int k : {1, 2, 3, 5, 8})
      if (k <= m) check_partition(m, k, random);

  using lc::Kmeans1dStatus;
  for (int64_t n : {1, 4, 9, 65, 6000})
    for (int64_t at : {int64_t(0), n / 2, n - 1}) {
      Case c{draw(Kind::bulk, n, random), weights(n, random), {}};
      c.h[0] = 1;
      const auto with = [&](std::vector<float> values, float bad) {
        values[size_t(at)] = bad;
        return values;
      };
      for (float bad : {kNan, kInf, -kInf}) {
        check_kmeans_refuses({with(c.x, bad), {}, {}}, Kmeans1dStatus::not_finite, "not finite");
        check_kmeans_refuses({with(c.x, bad), c.h, {}}, Kmeans1dStatus::not_finite, "not finite, weighted");
      }
      for (float bad : {kNan, kInf, -1.0f, -float_of(1)})
        check_kmeans_refuses({c.x, with(c.h, bad), {}}, Kmeans1dStatus::bad_weights, "bad weights");
      check_kmeans_refuses({c.x, std::vector<float>(size_t(n)), {}}, Kmeans1dStatus::bad_weights, "no weight");
    }
}

// ---- activation -----------------------------------------------------------------------------------------------------

double activated(int kind, double x) {
  const double u = kind == 4 ? x : 2 * std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x);
  return kind == 0   ? x
         : kind == 1 ? (x < 0 ? 0 : x)
         : kind == 2 ? x * 0.5 * std::erfc(-x / std::sqrt(2.0))
         : u < 0     ? x * (std::exp(u) / (1 + std::exp(u)))
                     : x / (1 + std::exp(-u));
}

void run_activation() {
  Random random(9);
  for (int kind = 0; kind < 5; ++kind)
    for (Kind of : {Kind::bulk, Kind::denormal, Kind::huge, Kind::any})
      for (int64_t rows : {0, 1, 5, 16, 33, 9000})
        for (int64_t batch : {1, 3}) {
          const std::vector<float> x = draw(of, batch * rows, random), bias = draw(of, rows, random);
          const bool biased = (rows + batch) % 2;
          const Input x_in(x, 1), bias_in(bias, 3);
          same_on_each_isa(text("activation", kind, name(of), rows, batch), [&](const std::string& what) {
            Output<float> y(batch * rows, 2);
            lc::cpu::activation(lc::Activation(kind), x_in.data(), biased ? bias_in.data() : nullptr, batch, rows,
                                y.data());
            int64_t wrong = 0;
            for (int64_t i = 0; i < batch * rows; ++i) {
              const float sum = biased ? x[size_t(i)] + bias[size_t(i % rows)] : x[size_t(i)];
              const double exact = activated(kind, double(sum));
              const double relative = std::ldexp(1, -20) + (kind == 3 ? std::ldexp(1, -13) : 0); // |u| < 100
              wrong += std::isfinite(sum) &&
                       !(std::fabs(double(y[i]) - exact) <= relative * std::fabs(exact) + std::ldexp(1, -142));
            }
            check(wrong == 0 && y.guards_hold(), text(what, wrong, "are off"));
            Bytes bytes;
            append(bytes, y.data(), batch * rows);
            return bytes;
          });
        }
}

// ---- the linear layers ----------------------------------------------------------------------------------------------

constexpr double kUnit = 1.0 / (1 << 24);

/// One element of the result: of `terms` products with the sum `exact`, the sum of magnitudes `magnitude`. Any order of
/// the additions, with or without fma, is within terms * u of the magnitudes, to first order; a product that is not
/// normal adds at most the smallest denormal. Where the magnitudes overflow float, so may the sum.
bool is_close(float got, double exact, double magnitude, int64_t terms) {
  if (magnitude > double(FLT_MAX) / 2) return true;
  const double units = double(terms) * kUnit;
  return std::fabs(double(got) - exact) <= units / (1 - units) * magnitude + double(terms) * std::ldexp(1, -149);
}

/// f(y) writes `size` floats, with 1 and with 3 threads, on each instruction set; the bits may not differ between those
/// two. Compared with exact[i] and magnitude[i].
template <class F> void check_linear(const std::string& title, const std::vector<double>& exact,
                                     const std::vector<double>& magnitude, const std::vector<int64_t>& terms,
                                     const F& f) {
  const auto size = int64_t(exact.size());
  for (const std::string& isa : lc::supported_isas()) {
    lc::set_isa(isa);
    Output<float> y(size, 1), again(size, 2);
    omp_set_num_threads(1);
    f(y.data());
    omp_set_num_threads(3);
    f(again.data());
    int64_t wrong = 0;
    for (int64_t i = 0; i < size; ++i)
      wrong += !is_close(y[i], exact[size_t(i)], magnitude[size_t(i)], terms[size_t(i)]);
    check(wrong == 0, text(isa + ":", title, "is the sum,", wrong, "of", size, "are off"));
    check(size == 0 || std::memcmp(y.data(), again.data(), size_t(size) * 4) == 0, text(isa + ":", title, "threads"));
    check(y.guards_hold() && again.guards_hold(), text(isa + ":", title, "guards"));
  }
}

/// f(kind, y) writes a layer's result with an activation: to the bit that of the layer without, and then the function.
template <class F> void check_activated(const std::string& title, int64_t rows, int64_t batch, const F& f) {
  for (const std::string& isa : lc::supported_isas()) {
    lc::set_isa(isa);
    omp_set_num_threads(3);
    const auto kind = lc::Activation(1 + (rows + batch) % 4);
    Output<float> y(batch * rows, 1), plain(batch * rows, 2);
    f(kind, y.data());
    f(lc::Activation::none, plain.data());
    lc::cpu::activation(kind, plain.data(), nullptr, batch, rows, plain.data());
    check(y.guards_hold() && std::memcmp(y.data(), plain.data(), size_t(batch * rows) * 4) == 0,
          text(isa + ":", title, "activation", int(kind)));
  }
}

// Codes in the layouts of the kernels, each in memory of its own size.
struct LutInput {
  const int32_t* words;
  int64_t rows, cols;
  int bits;
  mutable std::vector<std::unique_ptr<Output<uint8_t>>> kept;
  LutInput(const int32_t* from, int64_t n, int64_t m, int b) : words(from), rows(n), cols(m), bits(b) {}

  lc::LutMatrix matrix(lc::LutLayout layout, int width) const {
    kept.push_back(std::make_unique<Output<uint8_t>>(lc::cpu::lut_layout_bytes(rows, cols, bits, layout)));
    lc::cpu::lut_repack(words, rows, cols, bits, layout, kept.back()->data());
    check(kept.back()->guards_hold(), text("lut_repack guards", bits, rows, cols));
    lc::LutMatrix w{};
    w.codes = kept.back()->data(), w.rows = rows, w.cols = cols, w.layout = layout, w.width = width;
    w.group_cols = std::max<int64_t>(cols, 1);
    return w;
  }
};

// The integer arithmetics, and codebooks of rows and groups: the same bits on each instruction set.
void check_lut_integers(const std::string& title, const LutInput& input, int bits, int width, const Input<float>& books,
                        const Input<float>& x, int64_t batch, int64_t rows, int64_t cols, const float* bias,
                        Random& random) {
  const int64_t groups = cols % 3 == 0 && cols ? 3 : 1;
  const int wide = std::max(width, 4);
  std::vector<int16_t> table, table8;
  std::vector<float> floats, scale;
  std::vector<int32_t> offset;
  for (int64_t i = 0; i < (rows * groups + 1) << wide; ++i) {
    table.push_back(int16_t(random.next() % 8191 - 4095)), table8.push_back(int16_t(random.next() % 128));
    floats.push_back(float(int(random.next() % 1001)) - 500);
  }
  for (int64_t o = 0; o < rows; ++o) scale.push_back(float(o + 1) / 64), offset.push_back(int32_t(random.next() % 128));
  const Input<int16_t> table_in(table), table8_in(table8);
  const Input<float> floats_in(floats), scale_in(scale);
  const Input<int32_t> offset_in(offset);
  for (int arithmetic = 0; arithmetic < 3; ++arithmetic)
    for (bool by_row : {false, true}) {
      // int8 reads codewords of at most 127 in place of codes of 8 bits.
      if (!by_row && (arithmetic == 0 || (arithmetic == 2 && (bits == 1 || bits == 8)))) continue;
      same_on_each_isa(text("lut_linear", title, "arithmetic", arithmetic, by_row), [&](const std::string& what) {
        const bool nibbles = !by_row && arithmetic == 1 && bits <= 2;
        lc::LutMatrix w = input.matrix(by_row    ? lc::LutLayout::row_major
                                       : nibbles ? lc::cpu::lut_nibble_layout()
                                                 : lc::LutLayout(arithmetic),
                                       by_row ? wide : width);
        if (by_row) w.groups = groups, w.group_cols = std::max<int64_t>(cols / groups, 1);
        w.codebook = by_row ? floats_in.data() : books.data();
        w.table = arithmetic == 1 ? table_in.data() : table8_in.data();
        w.scale = scale_in.data(), w.offset = offset_in.data();
        Output<float> y(batch * rows, 1);
        w.activation = lc::Activation((rows + batch) % 5);
        lc::cpu::lut_linear(w, lc::LutMode(arithmetic), x.data(), batch, bias, y.data());
        check(y.guards_hold(), what);
        Bytes bytes;
        append(bytes, y.data(), batch * rows);
        return bytes;
      });
    }
}

void check_lut(int bits, int k, int64_t batch, int64_t rows, int64_t cols, Kind kind, Random& random) {
  const int64_t stride = (cols * bits + 31) / 32;
  const std::vector<float> codebook = draw(kind, k, random), bias = draw(kind, rows, random);
  const std::vector<float> x = draw(Kind::bulk, batch * cols, random);
  std::vector<int32_t> words;
  for (int64_t i = 0; i < rows * stride; ++i) words.push_back(int32_t(random.next())); // padding is not zero
  std::vector<float> weight;
  for (int64_t o = 0; o < rows; ++o)
    for (int64_t i = 0; i < cols; ++i) {
      int code = 0;
      for (int64_t b = i * bits; b < (i + 1) * bits; ++b)
        code |= int(uint32_t(words[size_t(o * stride + b / 32)]) >> (b % 32) & 1) << (b - i * bits);
      weight.push_back(code < k ? codebook[size_t(code)] : 0.0f);
    }
  const bool biased = (rows + cols) % 2;
  std::vector<double> exact, magnitude;
  for (int64_t m = 0; m < batch; ++m)
    for (int64_t o = 0; o < rows; ++o) {
      double sum = biased ? double(bias[size_t(o)]) : 0, absolute = std::fabs(sum);
      for (int64_t i = 0; i < cols; ++i) {
        const double product = double(x[size_t(m * cols + i)]) * double(weight[size_t(o * cols + i)]);
        sum += product, absolute += std::fabs(product);
      }
      exact.push_back(sum), magnitude.push_back(absolute);
    }
  const Input x_in(x, 1), book(codebook), bias_in(bias, 3);
  const Input<int32_t> words_in(words, 1);
  const std::string title = text("bits", bits, "k", k, "batch", batch, "rows", rows, "cols", cols, name(kind));
  const int width = bits <= 2 ? bits : bits <= 4 ? 4 : 8;
  const float* bias_data = biased ? bias_in.data() : nullptr;
  const LutInput input(words_in.data(), rows, cols, bits);
  std::vector<float> padded(size_t(1) << width, 0.0f);
  std::copy(codebook.begin(), codebook.end(), padded.begin());
  const Input books(padded);
  check_linear("lut_linear " + title, exact, magnitude, std::vector(exact.size(), cols + 2), [&](float* y) {
    lc::LutMatrix w = input.matrix(lc::LutLayout::exact, width);
    w.codebook = books.data();
    lc::cpu::lut_linear(w, lc::LutMode::exact, x_in.data(), batch, bias_data, y);
  });
  check_activated("lut_linear " + title, rows, batch, [&](lc::Activation f, float* y) {
    lc::LutMatrix w = input.matrix(lc::LutLayout::exact, width);
    w.codebook = books.data(), w.activation = f;
    lc::cpu::lut_linear(w, lc::LutMode::exact, x_in.data(), batch, bias_data, y);
  });
  check_lut_integers(title, input, bits, width, books, x_in, batch, rows, cols, bias_data, random);
  if (batch > 1) return;
  same_on_each_isa("lut_decode " + title, [&](const std::string& what) {
    Output<float> decoded(rows * cols, 1);
    lc::cpu::lut_decode(words_in.data(), rows, cols, bits, book.data(), k, decoded.data());
    const bool right = weight.empty() || std::memcmp(decoded.data(), weight.data(), weight.size() * 4) == 0;
    check(right && decoded.guards_hold(), what);
    Bytes bytes;
    append(bytes, decoded.data(), rows * cols);
    return bytes;
  });
}

void run_lut() {
  Random random(4);
  const int64_t row_counts[] = {1, 2, 3, 4, 5, 7, 8, 9, 17}, batches[] = {1, 2, 3, 4, 5, 9};
  for (int bits = 1; bits <= 8; ++bits) {
    int turn = bits;
    for (int64_t cols : {1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 24, 31, 32, 33, 63, 64, 65, 71, 95, 129, 257})
      for (int i = 0; i < 4; ++i, ++turn) {
        const int full = 1 << bits, k = turn % 3 == 0 ? full : turn % 3 == 1 ? std::max(1, full - 1) : full / 2 + 1;
        const Kind kind = turn % 5 == 0 ? Kind::denormal : turn % 5 == 1 ? Kind::ties : Kind::bulk;
        check_lut(bits, k, batches[turn % 6], row_counts[turn % 9], cols, kind, random);
        if (i == 0) check_lut(bits, k, 1, row_counts[turn % 9], cols, Kind::any, random); // decoded exactly
      }
    check_lut(bits, 1 << bits, 2, 40, 4099, Kind::bulk, random); // several chunks of parallel_for
    check_lut(bits, 1, 0, 3, 9, Kind::bulk, random);
    check_lut(bits, 1, 1, 0, 9, Kind::bulk, random);
  }
  for (int64_t rows : {255, 256, 257, 520}) check_lut(1, 2, 5, rows, 300, Kind::bulk, random); // blocks of 256 rows
}

template <class C>
void check_sparse(int64_t batch, int64_t rows, int64_t cols, int64_t most, Kind kind, Random& random) {
  std::vector<int32_t> starts{0};
  std::vector<C> columns;
  std::vector<float> values;
  for (int64_t o = 0; o < rows; ++o) {
    std::set<int64_t> kept;
    if (o % 5 != 4) kept.insert(cols - 1);
    for (int64_t j = o % 5 == 4 ? 0 : random.below(most + 1); j > 0; --j) kept.insert(random.below(cols));
    for (const int64_t column : kept) {
      columns.push_back(C(column));
      values.push_back(draw(kind, random));
    }
    starts.push_back(int32_t(values.size()));
  }
  const std::vector<float> x = draw(Kind::bulk, batch * cols, random), bias = draw(kind, rows, random);
  const bool biased = (batch + cols) % 2;
  std::vector<double> exact, magnitude;
  std::vector<int64_t> terms;
  for (int64_t m = 0; m < batch; ++m)
    for (int64_t o = 0; o < rows; ++o) {
      double sum = biased ? double(bias[size_t(o)]) : 0, absolute = std::fabs(sum);
      for (int32_t j = starts[size_t(o)]; j < starts[size_t(o + 1)]; ++j) {
        const double product = double(values[size_t(j)]) * double(x[size_t(m * cols) + columns[size_t(j)]]);
        sum += product, absolute += std::fabs(product);
      }
      exact.push_back(sum), magnitude.push_back(absolute);
      terms.push_back(starts[size_t(o + 1)] - starts[size_t(o)] + 2);
    }
  const Input x_in(x, 1), values_in(values, 3), bias_in(bias, 1);
  const Input<C> columns_in(columns, 1);
  const Input<int32_t> starts_in(starts, 1);
  const std::string title =
      text("sparse_linear batch", batch, "rows", rows, "cols", cols, "bytes", sizeof(C), "most", most, name(kind));
  const auto nnz = int64_t(values.size());
  check(lc::cpu::sparse_linear_check(columns_in.data(), int(sizeof(C)), starts_in.data(), rows, cols, nnz) == -1,
        title + " is valid");
  check(lc::cpu::sparse_linear_check(columns_in.data(), int(sizeof(C)), starts_in.data(), rows, cols, nnz + 1) == -2,
        title + " has one value too few");
  if (nnz)
    check(lc::cpu::sparse_linear_check(columns_in.data(), int(sizeof(C)), starts_in.data(), rows, cols - 1, nnz) == 0,
          title + " has a column too many");
  const float* const bias_at = biased ? bias_in.data() : nullptr;
  if (batch != 1) {
    const auto whole = [&](lc::Activation f, float* y) {
      lc::cpu::sparse_linear(x_in.data(), batch, values_in.data(), columns_in.data(), int(sizeof(C)), starts_in.data(),
                             rows, cols, bias_at, false, f, y);
    };
    check_linear(title, exact, magnitude, terms, [&](float* y) { whole(lc::Activation::none, y); });
    check_activated(title, rows, batch, whole);
    const int64_t block = 16, chunks = (rows + 63) / 64;
    Output<uint8_t> counts(chunks * ((cols + block - 1) / block));
    Output<int64_t> piece_starts(chunks + 1);
    const int64_t total = lc::cpu::sparse_linear_count_pieces(columns_in.data(), int(sizeof(C)), starts_in.data(), rows,
                                                              cols, block, counts.data(), piece_starts.data());
    Output<float> cut(nnz, 1);
    Output<uint8_t> offsets(nnz, 1), piece_rows(total, 1);
    Output<uint16_t> lengths(total);
    lc::cpu::sparse_linear_fill_pieces(values_in.data(), columns_in.data(), int(sizeof(C)), starts_in.data(), rows,
                                       cols, block, piece_starts.data(), cut.data(), offsets.data(), piece_rows.data(),
                                       lengths.data());
    check(counts.guards_hold() && piece_starts.guards_hold() && cut.guards_hold() && offsets.guards_hold() &&
              piece_rows.guards_hold() && lengths.guards_hold(),
          title + " pieces");
    const lc::SparsePieces pieces{block,          cut.data(),   offsets.data(), piece_starts.data(), piece_rows.data(),
                                  lengths.data(), counts.data()};
    const auto in_pieces = [&](lc::Activation f, float* y) {
      lc::cpu::sparse_linear_in_pieces(x_in.data(), batch, pieces, starts_in.data(), rows, cols, bias_at, false, f, y);
    };
    check_linear(title + " in pieces", exact, magnitude, terms, [&](float* y) { in_pieces(lc::Activation::none, y); });
    check_activated(title + " in pieces", rows, batch, in_pieces);
    return;
  }
  const int64_t slices = (rows + 15) / 16;
  Output<int32_t> order(16 * slices);
  Output<int64_t> starts_of(slices + 1);
  const int64_t entries = 16 * lc::cpu::sparse_linear_slices(starts_in.data(), rows, order.data(), starts_of.data());
  Output<float> laid(entries, 1);
  Output<int32_t> at(entries, 1);
  lc::cpu::sparse_linear_layout(values_in.data(), false, columns_in.data(), int(sizeof(C)), starts_in.data(), rows,
                                cols, order.data(), starts_of.data(), laid.data(), at.data(), 4);
  check(order.guards_hold() && starts_of.guards_hold() && laid.guards_hold() && at.guards_hold(), title + " layout");
  const auto slice = [&](lc::Activation f, float* y) {
    lc::cpu::sparse_linear_slice(x_in.data(), laid.data(), false, at.data(), 4, order.data(), starts_of.data(), rows,
                                 cols, bias_at, false, f, y);
  };
  check_linear(title, exact, magnitude, terms, [&](float* y) { slice(lc::Activation::none, y); });
  check_activated(title, rows, batch, slice);
}

void run_sparse() {
  Random random(5);
  int turn = 0;
  for (int64_t batch : {0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 32, 33, 40})
    for (int64_t rows : {0, 1, 3, 7, 8, 9, 16, 21})
      for (int64_t cols : {1, 7, 8, 9, 16, 40}) {
        const Kind kind = ++turn % 4 == 0 ? Kind::denormal : turn % 4 == 1 ? Kind::ties : Kind::bulk;
        const int64_t most = turn % 3 == 0 ? 40 : turn % 3 == 1 ? 17 : 5;
        turn % 2 ? check_sparse<uint16_t>(batch, rows, cols, most, kind, random)
                 : check_sparse<int32_t>(batch, rows, cols, most, kind, random);
      }
  for (int64_t batch : {1, 3}) { // several chunks of parallel_for, and columns that need their upper bits
    check_sparse<uint16_t>(batch, 400, 65536, 200, Kind::bulk, random);
    check_sparse<int32_t>(batch, 300, 70000, 200, Kind::bulk, random);
  }
}

// ---- nm_linear ------------------------------------------------------------------------------------------------------

void check_nm_linear(int n, int m, int64_t batch, int64_t rows, int64_t cols, Kind kind, Random& random) {
  const int64_t groups = (cols + m - 1) / m, used = groups * n;
  const int bits = m <= 2 ? 1 : m <= 4 ? 2 : m <= 8 ? 3 : 4;
  const int64_t stride = (used * bits + 31) / 32;
  const std::vector<float> values = draw(kind, rows * used, random), bias = draw(kind, rows, random),
                           x = draw(Kind::bulk, batch * cols, random);
  std::vector<int32_t> words(size_t(rows * stride), 0);
  std::vector<float> weight(size_t(rows * cols), 0.0f);
  for (int64_t o = 0; o < rows; ++o)
    for (int64_t g = 0, s = 0; g < groups; ++g) {
      std::set<int64_t> positions;
      while (int(positions.size()) < n) positions.insert(random.below(m));
      for (const int64_t p : positions) {
        for (int b = 0; b < bits; ++b)
          if (p >> b & 1) {
            int32_t& word = words[size_t(o * stride + (s * bits + b) / 32)];
            word = int32_t(uint32_t(word) | 1u << (s * bits + b) % 32);
          }
        if (g * m + p < cols) weight[size_t(o * cols + g * m + p)] = values[size_t(o * used + s)];
        ++s;
      }
    }
  const bool biased = (batch + cols) % 2;
  std::vector<double> exact, magnitude;
  for (int64_t i = 0; i < batch; ++i)
    for (int64_t o = 0; o < rows; ++o) {
      double sum = biased ? double(bias[size_t(o)]) : 0, absolute = std::fabs(sum);
      for (int64_t c = 0; c < cols; ++c) {
        const double product = double(x[size_t(i * cols + c)]) * double(weight[size_t(o * cols + c)]);
        sum += product, absolute += std::fabs(product);
      }
      exact.push_back(sum), magnitude.push_back(absolute);
    }
  const Input x_in(x, 1), values_in(values, 3), bias_in(bias, 1);
  const Input<int32_t> words_in(words, 1);
  const std::string title = text("nm_linear", n, m, "batch", batch, "rows", rows, "cols", cols, name(kind));
  const int64_t slots = lc::cpu::nm_linear_slots(cols, n, m), blocks = (rows + 15) / 16;
  Output<float> laid(blocks * slots * 16, 1);
  Output<uint32_t> at(blocks * slots * (m <= 4 ? 1 : 2), 1);
  const int64_t bad =
      lc::cpu::nm_linear_layout(values_in.data(), false, words_in.data(), rows, cols, n, m, laid.data(), at.data());
  check(bad == -1 && laid.guards_hold() && at.guards_hold(), title + " layout");
  const auto run = [&](lc::Activation f, float* y) {
    lc::cpu::nm_linear(x_in.data(), batch, laid.data(), false, at.data(), rows, cols, n, m,
                       biased ? bias_in.data() : nullptr, false, f, y);
  };
  check_linear(title, exact, magnitude, std::vector(exact.size(), used + 2),
               [&](float* y) { run(lc::Activation::none, y); });
  check_activated(title, rows, batch, run);
}

void run_nm_linear() {
  Random random(6);
  const std::pair<int, int> patterns[] = {{2, 4}, {1, 4}, {1, 2}, {2, 3}, {4, 8}, {3, 7}, {8, 16}, {1, 16}, {5, 9}};
  const int64_t batches[] = {1, 2, 5, 9, 13, 20, 40}, row_counts[] = {1, 15, 16, 17, 40};
  int turn = 0;
  for (const auto& [n, m] : patterns)
    for (int64_t cols : {1, 2, 7, 16, 33, 70})
      for (int i = 0; i < 3; ++i, ++turn)
        check_nm_linear(n, m, batches[turn % 7], row_counts[turn % 5], cols,
                        turn % 4 == 0   ? Kind::denormal
                        : turn % 4 == 1 ? Kind::ties
                                        : Kind::bulk,
                        random);
  for (int64_t batch : {1, 3, 70}) check_nm_linear(2, 4, batch, 300, 600, Kind::bulk, random); // several chunks
  check_nm_linear(2, 4, 0, 3, 9, Kind::bulk, random);
  check_nm_linear(2, 4, 1, 0, 9, Kind::bulk, random);
}

// ---- nm_prune -------------------------------------------------------------------------------------------------------

void check_nm(Kind kind, int64_t blocks, int64_t inner, int n, int m, lc::Score score, Random& random) {
  const int64_t size = blocks * m * inner;
  const std::vector<float> x = draw(kind, size, random), h = draw_scores(size, random);
  std::vector<uint8_t> keep(x.size());
  for (int64_t g = 0; g < blocks * inner; ++g) {
    const int64_t first = g / inner * m * inner + g % inner;
    const auto at = [&](int64_t row) { return size_t(first + row * inner); };
    for (int64_t i = 0; i < m; ++i) {
      int beaten = 0;
      const float own = score_of(x[at(i)], h[at(i)], score);
      for (int64_t j = 0; j < m; ++j) {
        const float other = score_of(x[at(j)], h[at(j)], score);
        beaten += other > own || (other == own && j < i);
      }
      keep[at(i)] = beaten < n;
    }
  }
  const Input in(x, int(size % 3)), given(h, 1);
  same_on_each_isa(text("nm_prune", name(kind), n, "of", m, "inner", inner, "blocks", blocks),
                   [&](const std::string& what) {
                     Output<float> values(size, 1);
                     Output<uint8_t> mask(size, 2);
                     Output<uint32_t> bits((size + 31) / 32);
                     bool right = lc::cpu::nm_prune(
                         {in.data(), given.data(), size, values.data(), mask.data(), bits.data()}, score, inner, n, m);
                     for (int64_t i = 0; i < size; ++i) {
                       const float wanted = keep[size_t(i)] ? x[size_t(i)] : 0.0f;
                       right &= std::memcmp(&wanted, values.data() + i, 4) == 0 && mask[i] == keep[size_t(i)];
                       right &= bit_of(bits.data(), i) == keep[size_t(i)];
                     }
                     check(right && values.guards_hold() && mask.guards_hold() && bits.guards_hold(), what);
                     Bytes bytes;
                     append(bytes, values.data(), size), append(bytes, bits.data(), (size + 31) / 32);
                     return bytes;
                   });
}

void run_nm() {
  Random random(5);
  for (int m = 2; m <= 16; ++m)
    for (int64_t inner : {1, 2, 9, 32, 33})
      for (int64_t blocks : {1, 5, 33}) {
        const int n = 1 + int(random.below(m - 1));
        check_nm(Kind::ties, blocks, inner, n, m, lc::Score::magnitude, random);
        check_nm(Kind::any, blocks, inner, n, m, lc::Score::given, random);
        check_nm(Kind::bulk, blocks, inner, n, m, lc::Score::weighted, random);
      }
  check_nm(Kind::bulk, 20000, 1, 2, 4, lc::Score::magnitude, random);
  check_nm(Kind::bulk, 3000, 9, 2, 5, lc::Score::magnitude, random);
}

// ---- l1_ball --------------------------------------------------------------------------------------------------------

void check_l1(Kind kind, int64_t n, bool weighted, double part, Random& random) {
  const std::vector<float> x = draw(kind, n, random);
  std::vector<float> h = draw_scores(n, random);
  double total = 0;
  for (float v : x) total += std::fabs(double(v));
  const double radius = part * total;
  const Input in(x, 1), weights(h, 2);
  same_on_each_isa(
      text("l1_ball", name(kind), "n", n, "weighted", weighted, "part", part), [&](const std::string& what) {
        Output<float> values(n, 1);
        const std::vector<lc::SoftRange> ranges{{in.data(), weighted ? weights.data() : nullptr, n, values.data()}};
        double threshold = 0;
        bool right = lc::cpu::l1_threshold(ranges, radius, &threshold);
        const double t = std::max(threshold, 0.0);
        right &= lc::cpu::soft_threshold(ranges, t) && (part < 1 || radius == 0 || threshold == -1);
        double sum = 0, size = 0;
        for (int64_t i = 0; i < n; ++i) {
          const double inverse = weighted ? double(1.0f / std::fabs(h[size_t(i)])) : 1;
          const double rest = std::fabs(double(x[size_t(i)])) - t * inverse;
          const float wanted = rest > 0 ? std::copysign(float(rest), x[size_t(i)]) + 0.0f : 0.0f;
          right &= std::memcmp(&wanted, values.data() + i, 4) == 0;
          if (rest > 0) sum += rest, size += t * inverse;
        }
        if (threshold > 0)
          right &= std::isinf(threshold) ? sum == 0 : std::fabs(sum - radius) <= 1e-12 * (size + radius);
        check(right && values.guards_hold(), what);
        Bytes bytes;
        append(bytes, &threshold, 1), append(bytes, values.data(), n);
        return bytes;
      });
}

void run_l1() {
  Random random(6);
  for (Kind kind : kKinds)
    for (bool weighted : {false, true}) {
      for (int64_t n : kSizes)
        for (double part : {0.0, 0.01, 0.5, 1.5}) check_l1(kind, n, weighted, part, random);
      check_l1(kind, 300001, weighted, 0.3, random); // a sampled start, and chunks
    }
  for (int64_t n : {1, 17, 70000})
    for (float bad : {kNan, kInf, -1.0f}) {
      std::vector<float> x(size_t(n), 1.0f), h = x;
      (bad < 0 ? h : x).back() = bad;
      const Input in(x), weights(h);
      same_on_each_isa(text("l1_ball refuses", bad, "n", n), [&](const std::string& what) {
        Output<float> values(n);
        double t = 0;
        const std::vector<lc::SoftRange> ranges{{in.data(), weights.data(), n, values.data()}};
        check(!lc::cpu::l1_threshold(ranges, 0.5, &t) && !lc::cpu::soft_threshold(ranges, 0.5), what);
        return Bytes{};
      });
    }
}

// ---- pack_codes -----------------------------------------------------------------------------------------------------

void check_pack(int bits, int64_t rows, int64_t cols, Random& random) {
  const int64_t stride = (cols * bits + 31) / 32;
  std::vector<uint8_t> codes;
  for (int64_t i = 0; i < rows * cols; ++i) codes.push_back(uint8_t(random.below(1 << bits)));
  const Input<uint8_t> in(codes, 1);
  same_on_each_isa(text("pack_codes bits", bits, "rows", rows, "cols", cols), [&](const std::string& what) {
    Output<int32_t> words(rows * stride);
    Output<uint8_t> back(rows * cols, 3);
    int64_t counts[256];
    bool right = lc::cpu::pack_codes(in.data(), rows, cols, bits, words.data());
    lc::cpu::unpack_codes(words.data(), rows, cols, bits, back.data());
    lc::cpu::count_codes(in.data(), rows * cols, counts);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t b = 0; b < 32 * stride; ++b) {
        const int64_t i = b / bits;
        const int wanted = i < cols ? codes[size_t(r * cols + i)] >> (b % bits) & 1 : 0;
        right &= int(uint32_t(words[r * stride + b / 32]) >> (b % 32) & 1) == wanted;
      }
    right &= std::equal(codes.begin(), codes.end(), back.data());
    for (int c = 0; c < 256; ++c) right &= counts[c] == std::count(codes.begin(), codes.end(), c);
    check(right && words.guards_hold() && back.guards_hold(), what);
    Bytes bytes;
    append(bytes, words.data(), rows * stride), append(bytes, counts, 256);
    return bytes;
  });
}

void run_pack() {
  Random random(6);
  for (int bits = 1; bits <= 8; ++bits) {
    for (int64_t cols : {0, 1, 3, 7, 8, 9, 31, 32, 33, 65, 257}) check_pack(bits, 3, cols, random);
    check_pack(bits, 2, (1 << 16) + 21, random); // several pieces to a row
    check_pack(bits, 1, 1 << 17, random);
  }
}

// ---- quantize_scaled ------------------------------------------------------------------------------------------------

void check_quantize_scaled(Kind kind, int64_t n, const std::vector<float>& levels, bool weighted, Random& random) {
  const auto k = int(levels.size());
  std::vector<float> x = draw(kind, n, random), h;
  for (float& v : x) v = std::isfinite(v) ? std::clamp(v, -1e30f, 1e30f) : 0;
  for (int64_t i = 0; i < n && weighted; ++i) h.push_back(float(random.below(5)) / 4);
  const Input in(x, 1), h_in(h, 2), book(levels, 3);
  const std::string about = text("quantize_scaled", name(kind), "n", n, "k", k, weighted ? "weighted" : "");
  same_on_each_isa(about, [&](const std::string& what) {
    Output<uint8_t> codes(n, 1);
    float scales[3] = {};
    double distortions[3] = {};
    std::vector<lc::QuantizeScaledStatus> status;
    const int64_t cut = n / 3; // a problem of one part, and one of two
    const auto part = [&](int64_t begin, int64_t end) {
      return lc::cpu::QuantizeScaledPart{in.data() + begin, weighted ? h_in.data() + begin : nullptr, end - begin,
                                         codes.data() + begin};
    };
    lc::cpu::quantize_scaled({part(0, cut), part(cut, 2 * cut), part(2 * cut, n)}, {1, 3}, book.data(), k, false,
                             scales, distortions, status);
    bool right = codes.guards_hold();
    for (int p = 0; p < 2; ++p) {
      const int64_t begin = p ? cut : 0, end = p ? n : cut;
      const auto at = [&](float s) { // the codes and the distortion at a scale, by definition
        std::vector<float> codebook, mids(size_t(k - 1));
        for (float c : levels) codebook.push_back(s * c);
        lc::cpu::midpoints(codebook.data(), k, mids.data());
        double sum = 0;
        bool same = true;
        for (int64_t i = begin; i < end; ++i) {
          int code = 0;
          for (float m : mids) code += m < x[size_t(i)];
          same &= code == codes[i];
          const double d = double(x[size_t(i)]) - double(codebook[size_t(code)]);
          sum += (weighted ? double(h[size_t(i)]) : 1.0) * d * d;
        }
        return std::pair(sum, same);
      };
      const auto [sum, same] = at(scales[p]);
      right &= status[size_t(p)] == lc::QuantizeScaledStatus::ok && same;
      right &= std::fabs(sum - distortions[p]) <= 1e-12 * sum;
      if (n > 2000) continue;
      for (float factor : {0.25f, 0.5f, 0.9f, 0.99f, 1.01f, 1.1f, 2.0f, 4.0f}) // none is better
        right &= sum <= at(scales[p] * factor).first * (1 + 1e-5) + 1e-300;
    }
    check(right, what);
    Bytes bytes;
    append(bytes, codes.data(), n), append(bytes, scales, 2), append(bytes, distortions, 2);
    return bytes;
  });
}

void run_quantize_scaled() {
  Random random(7);
  std::vector<std::vector<float>> books = {{2}, {-1, 1}, {-1, 0, 1}, {-2, -1, 1, 2}, {-3, 0.25f, 1}};
  for (int most : {3, 7, 20}) {
    books.emplace_back();
    for (int c = -most; c <= most; ++c) books.back().push_back(float(c));
  }
  books.emplace_back();
  for (int c = -20; c <= 20; ++c) books.back().push_back(float(c * std::abs(c)));
  for (Kind kind : {Kind::bulk, Kind::ties, Kind::denormal, Kind::spike, Kind::constant})
    for (int64_t n : {0, 1, 5, 24, 97, 1000})
      for (const auto& book : books) check_quantize_scaled(kind, n, book, (n + int64_t(book.size())) % 2, random);
  for (size_t b : {2, 6, 8}) // through the histogram
    for (bool weighted : {false, true}) check_quantize_scaled(Kind::bulk, 120'000, books[b], weighted, random);
}

// ---- kmeans_vq ------------------------------------------------------------------------------------------------------

void check_kmeans_vq(int d, int64_t n, int k, bool weighted, bool warm, Random& random) {
  const std::vector<float> x = draw(Kind::bulk, n * d, random), start = draw(Kind::bulk, k * d, random);
  std::vector<float> h;
  for (int64_t i = 0; i < n && weighted; ++i) h.push_back(float(1 + random.below(4)) / 4);
  std::vector<double> u;
  for (int c = 0; c < k; ++c) u.push_back(double(random.below(1024)) / 1024);
  const Input in(x, 1), h_in(h, 3);
  const std::string about = text("kmeans_vq d", d, "n", n, "k", k, weighted ? "weighted" : "", warm ? "warm" : "");
  same_on_each_isa(about, [&](const std::string& what) {
    Output<uint8_t> codes(n, 1);
    Output<float> codebook(k * d, 1);
    if (warm) std::copy(start.begin(), start.end(), codebook.data());
    double distortion = 0;
    int64_t iterations = 0;
    std::vector<lc::KmeansVqStatus> status;
    lc::cpu::kmeans_vq({{in.data(), weighted ? h_in.data() : nullptr, n, u.data(), codes.data(), codebook.data(),
                         &distortion, &iterations}},
                       d, k, warm, 4, 0, status);
    double sum = 0, worst = 0;
    for (int64_t i = 0; i < n; ++i) {
      const auto square = [&](int c) {
        double s = 0;
        for (int j = 0; j < d; ++j) s += std::pow(double(x[size_t(i * d + j)]) - double(codebook[c * d + j]), 2);
        return s;
      };
      const double own = square(codes[i]);
      sum += (weighted ? double(h[size_t(i)]) : 1.0) * own;
      for (int c = 0; c < k; ++c) worst = std::max(worst, own - square(c));
    }
    check(status[0] == lc::KmeansVqStatus::ok && iterations <= 4 && worst <= 1e-3 && codes.guards_hold() &&
              codebook.guards_hold() && std::fabs(sum - distortion) <= 1e-12 * sum,
          what);
    Bytes bytes;
    append(bytes, codes.data(), n), append(bytes, codebook.data(), k * d), append(bytes, &distortion, 1);
    return bytes;
  });
}

void run_kmeans_vq() {
  Random random(8);
  int turn = 0;
  for (int d : {2, 4, 8})
    for (int64_t n : {1, 2, 31, 32, 33, 70, 1000})
      for (int k : {1, 2, 9, 40}) {
        ++turn;
        check_kmeans_vq(d, n, k, turn % 2, turn % 3 == 0, random);
      }
  check_kmeans_vq(2, 20'000, 5, false, false, random); // several chunks of parallel_for
  check_kmeans_vq(4, 20'000, 5, true, true, random);
}

// ---- skinny_matmul --------------------------------------------------------------------------------------------------

void check_skinny(int64_t m, int64_t n, bool transpose, int64_t b, bool add, Random& random) {
  const int64_t rows = transpose ? n : m, inner = transpose ? m : n;
  const std::vector<float> a = draw(Kind::bulk, m * n, random), x = draw(Kind::bulk, inner * b, random),
                           before = draw(Kind::bulk, rows * b, random);
  std::vector<double> exact, magnitude;
  for (int64_t i = 0; i < rows; ++i)
    for (int64_t j = 0; j < b; ++j) {
      double sum = add ? double(before[size_t(i * b + j)]) : 0, absolute = std::fabs(sum);
      for (int64_t l = 0; l < inner; ++l) {
        const double product = double(a[size_t(transpose ? l * n + i : i * n + l)]) * double(x[size_t(l * b + j)]);
        sum += product, absolute += std::fabs(product);
      }
      exact.push_back(sum), magnitude.push_back(absolute);
    }
  const Input a_in(a, 1), x_in(x, 3);
  const std::string title = text("skinny_matmul", m, n, "transpose", transpose, "b", b, "add", add);
  check_linear(title, exact, magnitude, std::vector<int64_t>(exact.size(), inner + 2), [&](float* y) {
    if (add) std::copy(before.begin(), before.end(), y);
    lc::cpu::skinny_matmul(a_in.data(), m, n, transpose, x_in.data(), b, add, y);
  });
}

void run_skinny() {
  Random random(6);
  for (int64_t m : {0, 1, 5, 6, 13, 130})
    for (int64_t n : {0, 1, 7, 24})
      for (int64_t b : {16, 48})
        for (int mode = 0; mode < 4; ++mode) check_skinny(m, n, mode & 1, b, mode & 2, random);
  for (bool transpose : {false, true})
    check_skinny(400, 1100, transpose, 16, false, random); // several chunks and blocks
}

// ---- gram_product, jacobi_svd, block_krylov -------------------------------------------------------------------------

void check_gram(int64_t m, int64_t n, int64_t b, bool add, Random& random) {
  const std::vector<float> a = draw(Kind::bulk, m * n, random), v = draw(Kind::bulk, b * n, random),
                           before = draw(Kind::bulk, b * n, random);
  const int64_t stride = m + 3;
  std::vector<double> exact(size_t(b * n)), magnitude(size_t(b * n));
  for (int64_t i = 0; i < b; ++i)
    for (int64_t r = 0; r < m; ++r) {
      double p = 0, absolute = 0;
      for (int64_t l = 0; l < n; ++l) {
        const double e = double(v[size_t(i * n + l)]) * double(a[size_t(r * n + l)]);
        p += e, absolute += std::fabs(e);
      }
      for (int64_t l = 0; l < n; ++l) {
        exact[size_t(i * n + l)] -= p * double(a[size_t(r * n + l)]);
        magnitude[size_t(i * n + l)] += absolute * std::fabs(double(a[size_t(r * n + l)]));
      }
    }
  for (int64_t i = 0; add && i < b * n; ++i) {
    exact[size_t(i)] += double(before[size_t(i)]);
    magnitude[size_t(i)] += std::fabs(double(before[size_t(i)]));
  }
  const Input a_in(a, 1), v_in(v, 3);
  const std::string title = text("gram_product", m, n, "b", b, "add", add);
  check_linear(title, exact, magnitude, std::vector<int64_t>(exact.size(), m + n + 4), [&](float* x) {
    if (add) std::copy(before.begin(), before.end(), x);
    Output<float> p(b * stride, 1), work(lc::cpu::gram_product_work(m, n, b), 2);
    lc::cpu::gram_product(a_in.data(), m, n, v_in.data(), b, p.data(), stride, add, -1.0f, x, work.data());
    check(p.guards_hold() && work.guards_hold(), title + "guards");
  });
}

void check_jacobi(int64_t count, int64_t m, int64_t n, int64_t rank, Random& random) {
  const std::vector<float> a = draw(Kind::bulk, count * m * n, random);
  const Input in(a, 1);
  same_on_each_isa(text("jacobi_svd", count, m, n, "rank", rank), [&](const std::string& what) {
    Output<float> left(count * rank * m, 1), values(count * rank, 2), right(count * rank * n, 3);
    lc::cpu::jacobi_svd(in.data(), count, m, n, rank, left.data(), values.data(), right.data());
    double worst = 0; // of a v - s u, relative to the norm
    for (int64_t c = 0; c < count; ++c) {
      double norm = 0;
      for (int64_t i = 0; i < m * n; ++i) norm += std::pow(double(a[size_t(c * m * n + i)]), 2);
      for (int64_t r = 0; r < rank; ++r)
        for (int64_t i = 0; i < m; ++i) {
          double image = 0;
          for (int64_t l = 0; l < n; ++l)
            image += double(a[size_t((c * m + i) * n + l)]) * double(right[(c * rank + r) * n + l]);
          image -= double(values[c * rank + r]) * double(left[(c * rank + r) * m + i]);
          worst = std::max(worst, std::fabs(image) / std::sqrt(norm));
        }
    }
    check(worst < 1e-5 && left.guards_hold() && values.guards_hold() && right.guards_hold(), text(what, worst));
    Bytes bytes;
    append(bytes, left.data(), count * rank * m), append(bytes, values.data(), count * rank);
    append(bytes, right.data(), count * rank * n);
    return bytes;
  });
}

/// Rows orthonormal, p the images of those that were multiplied, and h the coefficients of a^T a on them.
void check_krylov(int64_t m, int64_t n, int64_t start, int64_t steps, Random& random) {
  const std::vector<float> a = draw(Kind::bulk, m * n, random), first = draw(Kind::bulk, start * n, random);
  const int64_t capacity = start * (steps + 1), done = start * steps;
  const Input in(a, 1);
  for (const std::string& isa : lc::supported_isas()) {
    lc::set_isa(isa);
    Output<float> v(capacity * n, 1), p(capacity * m, 2);
    Output<double> h(capacity * capacity, 1);
    std::copy(first.begin(), first.end(), v.data());
    const lc::cpu::KrylovSpace space{in.data(), m, n, v.data(), p.data(), h.data(), capacity};
    lc::cpu::krylov_extend(space, 0, start);
    lc::cpu::krylov_steps(space, 0, start, steps);
    double skew = 0, image = 0, scale = 0;
    for (int64_t i = 0; i < capacity; ++i)
      for (int64_t j = 0; j <= i; ++j) {
        double dot = i == j ? -1 : 0;
        for (int64_t l = 0; l < n; ++l) dot += double(v[i * n + l]) * double(v[j * n + l]);
        skew = std::max(skew, std::fabs(dot));
      }
    for (int64_t i = 0; i < done; ++i)
      for (int64_t r = 0; r < m; ++r) {
        double sum = -double(p[i * m + r]);
        for (int64_t l = 0; l < n; ++l) sum += double(v[i * n + l]) * double(a[size_t(r * n + l)]);
        image = std::max(image, std::fabs(sum)), scale = std::max(scale, std::fabs(double(p[i * m + r])));
      }
    const std::string title = text(isa + ": krylov", m, n, start, steps, skew, image / scale);
    check(skew < 1e-4 && image <= 1e-5 * scale && v.guards_hold() && p.guards_hold() && h.guards_hold(), title);
  }
}

void run_low_rank() {
  Random random(18);
  for (int64_t m : {1, 5, 6, 13, 300})
    for (int64_t n : {16, 17, 40})
      for (int64_t b : {1, 3, 4, 9})
        for (bool add : {false, true}) check_gram(m, n, b, add, random);
  for (int64_t m : {1, 2, 5, 9})
    for (int64_t n : {1, 3, 9})
      for (int64_t count : {1, 7, 16, 33}) check_jacobi(count, m, n, (std::min(m, n) + 1) / 2, random);
  check_krylov(60, 40, 4, 4, random);
  check_krylov(33, 90, 5, 6, random);
  check_krylov(200, 64, 8, 3, random);
}

// ---- tiled_conv2d ---------------------------------------------------------------------------------------------------

void check_conv(const lc::ConvShape& s, int bits, bool per_output, bool sparse, Random& random) {
  const int64_t taps = s.taps(), tiles = s.tiles(), cells = tiles * taps * lc::kConvTile;
  const std::vector<float> x = draw(Kind::bulk, s.batch * s.channels * s.height * s.width, random);
  const int64_t books = per_output ? tiles * lc::kConvTile : 1;
  const std::vector<float> table = draw(Kind::bulk, bits ? books << bits : 0, random);
  const std::vector<float> bias = draw(Kind::bulk, s.outputs, random);
  std::vector<double> weight(size_t(cells), 0.0);
  std::vector<uint8_t> codes;
  for (int64_t i = 0; i < cells * bits / 8; ++i) codes.push_back(uint8_t(random.below(256)));
  for (int64_t i = 0; bits && i < cells; ++i) {
    const int64_t half = i % 16 / 8, byte = i / 16 * 8 + i % 8;
    const int64_t code = bits == 8 ? codes[size_t(i)] : codes[size_t(byte)] >> (4 * half) & 15;
    const int64_t tile = i / (taps * lc::kConvTile);
    weight[size_t(i)] = double(table[size_t(per_output ? ((tile << bits) + code) * lc::kConvTile + i % 16 : code)]);
  }
  std::vector<int32_t> starts{0}, places;
  std::vector<float> values;
  for (int64_t t = 0; sparse && t < tiles; ++t) {
    for (int32_t i = int32_t(random.below(5)); i < taps * lc::kConvTile; i += 1 + int32_t(random.below(40))) {
      places.push_back(i), values.push_back(draw(Kind::bulk, 1, random)[0]);
      weight[size_t(t * taps * lc::kConvTile + i)] += double(values.back());
    }
    starts.push_back(int32_t(places.size()));
  }
  std::vector<double> exact, magnitude;
  for (int64_t n = 0; n < s.batch; ++n)
    for (int64_t p = 0; p < s.out_height(); ++p)
      for (int64_t q = 0; q < s.out_width(); ++q)
        for (int64_t o = 0; o < s.outputs; ++o) {
          double sum = double(bias[size_t(o)]), absolute = std::fabs(sum);
          for (int64_t i = 0; i < s.kernel_height; ++i)
            for (int64_t j = 0; j < s.kernel_width; ++j)
              for (int64_t c = 0; c < s.channels; ++c) {
                const int64_t h = p * s.stride[0] + i * s.dilation[0] - s.padding[0];
                const int64_t w = q * s.stride[1] + j * s.dilation[1] - s.padding[1];
                if (h < 0 || h >= s.height || w < 0 || w >= s.width) continue;
                const int64_t tap = (i * s.kernel_width + j) * s.channels + c;
                const double e = double(x[size_t(n * s.step[0] + c * s.step[1] + h * s.step[2] + w * s.step[3])]) *
                                 weight[size_t((o / 16 * taps + tap) * 16 + o % 16)];
                sum += e, absolute += std::fabs(e);
              }
          exact.push_back(sum), magnitude.push_back(absolute);
        }
  const Input x_in(x, 1), table_in(table, 1), bias_in(bias, 1);
  const lc::ConvWeight held{bits ? codes.data() : nullptr,    bits ? bits : 4, table_in.data(), per_output,
                            sparse ? starts.data() : nullptr, places.data(),   values.data()};
  const std::string title = text("tiled_conv2d", s.outputs, s.channels, s.kernel_height, s.kernel_width, "bits", bits);
  check_linear(title, exact, magnitude, std::vector<int64_t>(exact.size(), taps + 3),
               [&](float* y) { lc::cpu::tiled_conv2d(x_in.data(), s, held, bias_in.data(), y); });
}

void run_conv() {
  Random random(17);
  for (int64_t outputs : {1, 15, 16, 33})
    for (int64_t channels : {1, 3, 8})
      for (int64_t side : {1, 3})
        for (int mode = 0; mode < 6; ++mode) {
          lc::ConvShape s{2,     channels, 9, 8, {}, outputs, side, side + mode % 2, {1 + mode % 2, 1}, {1, mode % 3},
                          {1, 1}};
          if (mode == 5) s.dilation[0] = s.dilation[1] = 2;
          const bool last = mode & 1; // channels last, or first
          s.step[0] = 72 * channels, s.step[1] = last ? 1 : 72, s.step[2] = last ? 8 * channels : 8;
          s.step[3] = last ? channels : 1;
          const int bits = mode % 3 == 0 ? 0 : mode % 3 == 1 ? 4 : 8;
          for (bool per_output : {false, true})
            if (bits || !per_output) check_conv(s, bits, per_output, mode % 3 == 0 || mode > 3, random);
        }
}

// ---- sums of a codebook and corrections, joint sparsity and codebook ------------------------------------------------

/// sum of h (x - q)^2 over all but the corrected entries must be *distortion; corrections the largest, the first in
/// ties.
void check_codebook_plus_sparse(Kind kind, int64_t n, int k, int64_t kappa, bool weighted, int offset, Random& random) {
  const std::vector<float> x = draw(kind, n, random);
  std::vector<float> h, codebook = draw(kind, k, random), mids(size_t(k - 1));
  for (int64_t i = 0; weighted && i < n; ++i) h.push_back(float(random.below(5)) / 4);
  std::sort(codebook.begin(), codebook.end());
  lc::cpu::midpoints(codebook.data(), k, mids.data());
  std::vector<double> score;
  std::vector<uint8_t> nearest;
  for (size_t i = 0; i < x.size(); ++i) {
    nearest.push_back(uint8_t(std::count_if(mids.begin(), mids.end(), [&](float m) { return m < x[i]; })));
    const double d = double(x[i]) - double(codebook[nearest[i]]);
    score.push_back(weighted ? double(h[i]) * (d * d) : d * d);
  }
  std::vector<int64_t> order(x.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return score[size_t(a)] > score[size_t(b)]; });
  double rest = 0;
  for (size_t i = size_t(kappa); i < order.size(); ++i) rest += score[size_t(order[i])];
  std::sort(order.begin(), order.begin() + kappa);
  const Input in(x, offset), weights(h, offset), book(codebook);
  const std::string about = text("codebook_plus_sparse", name(kind), "n", n, "k", k, "kappa", kappa, "h", weighted);
  same_on_each_isa(about, [&](const std::string& what) {
    Output<uint8_t> codes(n, offset);
    Output<int64_t> indices(kappa);
    Output<float> values(kappa, offset);
    double distortion = -1;
    std::vector<const float*> weights_at;
    if (weighted) weights_at.push_back(weights.data());
    const auto status = lc::cpu::codebook_plus_sparse({in.data()}, weights_at, {n}, book.data(), k, kappa,
                                                      {codes.data()}, indices.data(), values.data(), &distortion);
    bool right = status == lc::ListStatus::ok && std::fabs(distortion - rest) <= 1e-12 * rest;
    for (int64_t i = 0; i < n; ++i) right &= codes[i] == nearest[size_t(i)];
    for (int64_t i = 0; i < kappa; ++i) {
      const auto at = size_t(order[size_t(i)]);
      const float value = x[at] - codebook[nearest[at]];
      right &= indices[i] == int64_t(at) && std::memcmp(&value, values.data() + i, 4) == 0;
    }
    check(right && codes.guards_hold() && indices.guards_hold() && values.guards_hold(), what);
    Bytes bytes;
    append(bytes, codes.data(), n), append(bytes, indices.data(), kappa), append(bytes, &distortion, 1);
    return bytes;
  });
}

/// What is solved on the histogram, which the definition in plain loops does not have: only that all agree.
void check_histogram_solvers(Kind kind, int64_t n, int k, int64_t kappa, Random& random) {
  const std::vector<float> x = draw(kind, n, random);
  const Input in(x, 1);
  const std::string about = text("solvers on the histogram", name(kind), "n", n, "k", k, "kappa", kappa);
  same_on_each_isa(about, [&](const std::string& what) {
    Output<uint8_t> codes(n, 1);
    Output<float> codebook(std::max(k, 2)), values(kappa);
    Output<int64_t> indices(kappa);
    double distortion = 0, curve[4] = {};
    int64_t iterations = 0, used = 0;
    Bytes bytes;
    bool right = true;
    const auto record = [&](lc::ListStatus status, int words) {
      right &= status == lc::ListStatus::ok && codes.guards_hold() && codebook.guards_hold() && values.guards_hold() &&
               indices.guards_hold();
      append(bytes, codes.data(), n), append(bytes, codebook.data(), words), append(bytes, &distortion, 1);
    };
    for (const auto turns : {lc::cpu::Turns::trimmed, lc::cpu::Turns::alternate})
      for (const bool warm : {false, true})
        record(lc::cpu::kmeans_plus_sparse({in.data()}, {n}, {k, kappa, turns, warm, 20, 1e-4}, {codes.data()},
                                           codebook.data(), indices.data(), values.data(), &distortion, &iterations),
               k);
    if (k < 256)
      for (const bool warm : {false, true})
        record(lc::cpu::sparse_codebook({in.data()}, {n}, k, kappa, warm, 20, {codes.data()}, codebook.data(),
                                        &distortion, &used, &iterations),
               k);
    record(lc::cpu::binary_plus_sparse({in.data()}, {n}, kappa, {codes.data()}, codebook.data(), indices.data(),
                                       values.data(), &distortion),
           2);
    right &= lc::cpu::rate_distortion({in.data()}, {n}, {1, 3}, {kappa / 2, kappa}, curve);
    right &= curve[0] >= curve[1] && curve[0] >= curve[2] && curve[2] >= curve[3];
    append(bytes, curve, 4);
    check(right, what);
    return bytes;
  });
}

void run_sums() {
  Random random(6);
  for (Kind kind : kKinds)
    for (int64_t n : kSizes)
      if (n > 0) {
        for (int k : {1, 2, 4, 16, 17, 256})
          check_codebook_plus_sparse(kind, n, k, random.below(n + 1), (n + k) % 2, int(n + k) % 4, random);
        if (n % 2 == 0 || n == 1000) {
          const int k = 1 + int(random.below(5)); // not in the call, where the order of two draws is the compiler's
          check_histogram_solvers(kind, n, k, random.below(n + 1), random);
        }
      }
  for (Kind kind : {Kind::bulk, Kind::ties, Kind::spike}) {
    for (int k : {2, 16, 100}) check_codebook_plus_sparse(kind, 70000, k, 700, k == 16, 3, random);
    check_histogram_solvers(kind, 70000, 3, 700, random);
  }
  check_histogram_solvers(Kind::bulk, 20000, 200, 5000, random);
}

} // namespace

int main() {
  check_isa();
  run_assign();
  run_topk();
  run_kmeans();
  run_activation();
  run_lut();
  run_sparse();
  run_nm_linear();
  run_nm();
  run_l1();
  run_pack();
  run_quantize_scaled();
  run_kmeans_vq();
  run_skinny();
  run_low_rank();
  run_conv();
  run_sums();
  std::printf("isas:");
  for (const std::string& isa : lc::supported_isas()) std::printf(" %s", isa.c_str());
  std::printf("\ndigest: %016llx\n%lld passed, %lld failed\n", static_cast<unsigned long long>(digest),
              static_cast<long long>(passed), static_cast<long long>(failed));
  return failed > 0;
}
