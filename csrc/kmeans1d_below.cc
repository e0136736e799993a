// What a solver asks of a distribution, and the opening of bins.
#include <algorithm>
#include <cmath>

#include "kmeans1d_mass.h"
#include "parallel.h"

namespace lc::cpu::kmeans {
namespace {

constexpr int64_t kRuns = 1024; // atoms that the values of an opened bin make at most

} // namespace

std::vector<int> Mass::heavy_bins(double much) const {
  std::vector<int> heavy;
  for (int bin = 0; bin < 2 * grid.half; ++bin) {
    const double h = width(bin), w = w_[size_t(bin)];
    if (w * h * h / 4 > much && !is_open(bin) && !single_valued(bin)) heavy.push_back(bin);
  }
  return heavy;
}

void Mass::open(const std::vector<Chunk>& chunks, std::vector<int> bins) {
  std::sort(bins.begin(), bins.end());
  bins.erase(std::unique(bins.begin(), bins.end()), bins.end());
  if (slot_.empty()) slot_.assign(w_.size(), -1);
  std::erase_if(bins, [&](int bin) { return slot_[size_t(bin)] >= 0; });
  std::vector<uint8_t> wanted(w_.size());
  for (int bin : bins) wanted[size_t(bin)] = 1;
  struct Found {
    float x, h;
  };
  std::vector<std::vector<Found>> found(chunks.size());
  const auto kernel = LC_DISPATCH(kmeans1d_gather);
  parallel_for(int64_t(chunks.size()), 1, [&](int64_t c, int64_t, int64_t) {
    const Chunk& chunk = chunks[size_t(c)];
    static thread_local std::vector<uint32_t> at;
    at.resize(size_t(kChunk) + 1);
    const int64_t count = kernel(chunk.x, chunk.size, grid, wanted.data(), at.data());
    auto& list = found[size_t(c)];
    list.reserve(size_t(count));
    for (int64_t i = 0; i < count; ++i) {
      const float h = chunk.h ? chunk.h[at[size_t(i)]] : 1.0f;
      if (h > 0) list.push_back({chunk.x[at[size_t(i)]], h});
    }
    std::sort(list.begin(), list.end(), [](const Found& a, const Found& b) { return a.x < b.x; });
  });
  std::vector<Found> all;
  if (found.size() == 1) {
    all.swap(found[0]);
  } else {
    size_t size = 0;
    for (const auto& list : found) size += list.size();
    all.reserve(size);
    for (auto& list : found) all.insert(all.end(), list.begin(), list.end()), list = {};
    std::stable_sort(all.begin(), all.end(), [](const Found& a, const Found& b) { return a.x < b.x; });
  }

  // The key is monotone in x, so the bins follow each other in `all`; each has as many as the histogram says.
  const auto bin_of = [&](float x) { // exactly as the kernels compute it
    const float t = x - grid.center, a = std::fabs(t) + grid.base;
    int32_t key = int32_t(bits_of(a) - bits_of(grid.base));
    if (t < 0) key = ~key;
    return (key >> grid.shift) + grid.half;
  };
  for (size_t i = 0; i < all.size();) {
    const int bin = bin_of(all[i].x);
    Opened o{int64_t(t_.size()), 0};
    double w = 0, s = 0;
    for (; i < all.size() && bin_of(all[i].x) == bin; ++i) {
      const double t = double(all[i].x) - center;
      t_.push_back(t), t_w_.push_back(w), t_s_.push_back(s);
      w += double(all[i].h), s += double(all[i].h) * t;
      ++o.size;
    }
    t_.push_back(t_.back()), t_w_.push_back(w), t_s_.push_back(s);
    slot_[size_t(bin)] = int(opened_.size());
    opened_.push_back(o);
    w_[size_t(bin)] = w, s_[size_t(bin)] = s;
  }
  double w_sum = 0, s_sum = 0;
  for (size_t b = 0; b < w_.size(); ++b) {
    w_sum_[b] = w_sum, s_sum_[b] = s_sum;
    w_sum += w_[b], s_sum += s_[b];
  }
  total_ = {w_sum, s_sum};
}

Sums Mass::within(const Opened& o, double t) const {
  const double* first = t_.data() + o.first;
  const auto i = size_t(o.first + (std::upper_bound(first, first + o.size, t) - first));
  return {t_w_[i], t_s_[i]};
}

Mass::Place Mass::place(double t) const {
  // The bin of t and the place within it, from the bits of |t| + base as the kernels do, but in double.
  const uint64_t base_bits = bits_of(double(grid.base)), key = bits_of(std::fabs(t) + double(grid.base)) - base_bits;
  const int key_shift = grid.shift + 29;
  const auto magnitude = int64_t(key >> key_shift);
  if (magnitude >= grid.half) return {t < 0 ? -1 : 2 * grid.half, 0, 0, 0};
  const uint64_t start = key >> key_shift << key_shift;
  const double near = double_of(start + base_bits) - double(grid.base);
  const double far = double_of(start + (uint64_t(1) << key_shift) + base_bits) - double(grid.base);
  const double within = double(int64_t(key - start)) * double_of(uint64_t(1023 - key_shift) << 52);
  if (t < 0) return {int(grid.half - 1 - magnitude), -far, far - near, 1 - within};
  return {int(grid.half + magnitude), near, far - near, within};
}

bool Mass::single_valued(int bin) const {
  const auto b = size_t(bin);
  if (low_.empty()) return false;
  if (!known_[b]) { // where many values have a whole mean, in keys, they are one value
    const bool single = w_[b] == 1 || (w_[b] >= 32 && low_[b] / w_[b] == std::floor(low_[b] / w_[b]));
    known_[b] = single ? 2 : 1;
  }
  return known_[b] == 2;
}

Sums Mass::below(double t, int* closed) const {
  *closed = -1;
  if (!binned) return within({0, int64_t(t_.size())}, t);
  const Place at = place(t);
  if (at.bin < 0) return {0, 0};
  if (at.bin >= 2 * grid.half) return total_;
  const auto b = size_t(at.bin);
  const double w = w_[b], s = s_[b];
  if (w == 0) return {w_sum_[b], s_sum_[b]};
  if (is_open(at.bin)) {
    const Sums in = within(opened_[size_t(slot_[b])], t);
    return {w_sum_[b] + in.w, s_sum_[b] + in.s};
  }
  *closed = at.bin;
  if (single_valued(at.bin)) return s <= t * w ? Sums{w_sum_[b] + w, s_sum_[b] + s} : Sums{w_sum_[b], s_sum_[b]};
  // Density 1 + a (2r - 1) with the mean of the bin, as far as that keeps it positive; what is missing is spread.
  const double r = at.within, mean = (s - w * at.low) / (w * at.width), a = std::clamp(6 * mean - 3, -1.0, 1.0);
  const double part = r * (1 - a + a * r), moment = r * r * ((1 - a) / 2 + a * r * (2.0 / 3));
  const double missing = mean - (0.5 + a / 6);
  return {w_sum_[b] + w * part, s_sum_[b] + w * (at.low * part + at.width * (moment + missing * part))};
}

// With the mean fixed, the sum of w (x - t) over what is above t is least if all are at the mean, and greatest if all
// are at the ends of the bin.
double Mass::doubt(double t) const {
  int closed;
  const Sums under = below(t, &closed);
  if (closed < 0) return 0;
  const Place at = place(t);
  const auto b = size_t(closed);
  const double w = w_[b], mean = std::clamp((s_[b] / w - at.low) / at.width, 0.0, 1.0);
  const double above = (s_sum_[b] + s_[b] - under.s) - t * (w_sum_[b] + w - under.w);
  const double least = w * at.width * std::max(mean - at.within, 0.0), most = w * at.width * mean * (1 - at.within);
  return std::max(above - least, most - above);
}

// A boundary between two codewords d apart costs an atom with its values spread up to 2 d w (mean - low) (high - mean)
// / (high - low) less than one with all at the mean, and together these d are at most the span of the data.
Mass::Hidden Mass::hidden() const {
  if (!binned) return {0, 0, 1e-13 * second_moment({0, int64_t(t_.size())})};
  const double key = std::ldexp(1.0, -grid.shift),
               most_off = 0.5 + std::ldexp(0.5, grid.drop); // in keys: two roundings, and what sums leave out
  double most = 0, rounding = 0, moment = 0, first = 0, last = 0;
  bool any = false;
  for (int bin = 0; bin < 2 * grid.half; ++bin) {
    const double w = w_[size_t(bin)], h = width(bin), off = most_off * key * h;
    if (!(w > 0)) continue;
    const double low = edge(bin) - off, high = edge(bin + 1) + off, mean = s_[size_t(bin)] / w;
    if (!any) first = low, any = true;
    last = high;
    if (is_open(bin)) {
      const Opened& o = opened_[size_t(slot_[size_t(bin)])];
      if (o.size > kRuns) most = std::max(most, w * h / 4);
      moment += second_moment(o);
    } else {
      most = std::max(most, w * std::max(mean - low, 0.0) * std::max(high - mean, 0.0) / (high - low));
      rounding += w * off * off;
      moment += w * mean * mean;
    }
  }
  return {2 * (last - first) * most, std::sqrt(rounding), 1e-13 * moment};
}

double Mass::second_moment(const Opened& o) const {
  double moment = 0;
  for (auto i = size_t(o.first); i < size_t(o.first + o.size); ++i) moment += (t_w_[i + 1] - t_w_[i]) * t_[i] * t_[i];
  return moment;
}

void Mass::atoms(std::vector<Atom>& out) const {
  double before = binned ? edge(0) : t_[0]; // the upper end of what there was so far
  const auto runs = [&](const Opened& o) {
    const int64_t count = binned ? std::min(o.size, kRuns) : o.size;
    for (int64_t run = 0; run < count; ++run) {
      const auto begin = size_t(o.first + run * o.size / count), end = size_t(o.first + (run + 1) * o.size / count);
      if (!(t_w_[end] > t_w_[begin])) continue;
      out.push_back({t_w_[end] - t_w_[begin], t_s_[end] - t_s_[begin], t_[end - 1] - before});
      before = t_[end - 1];
    }
  };
  out.clear();
  if (!binned) return runs({0, int64_t(t_.size())});
  for (int bin = 0; bin < 2 * grid.half; ++bin) {
    const double w = w_[size_t(bin)];
    if (!(w > 0)) continue;
    const double right = edge(bin + 1);
    if (is_open(bin)) {
      runs(opened_[size_t(slot_[size_t(bin)])]);
    } else {
      out.push_back({w, s_[size_t(bin)], out.empty() ? width(bin) : right - before});
      before = right;
    }
  }
}

} // namespace lc::cpu::kmeans
