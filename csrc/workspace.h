// Scratch memory that is kept from call to call, since pages of fresh memory cost more than most kernels.
#pragma once
#include <cstdint>
#include <new>

namespace lc {

/// Aligned to cache lines; its contents are lost when it grows. One for each thread that calls, mostly:
/// `static thread_local Workspace w;`.
class Workspace {
public:
  Workspace() = default;
  Workspace(const Workspace&) = delete;
  Workspace& operator=(const Workspace&) = delete;
  ~Workspace() { release(); }

  float* floats(int64_t n) {
    if (n > size_) {
      release();
      data_ = static_cast<float*>(::operator new(size_t(n) * sizeof(float), kAlignment));
      size_ = n;
    }
    return data_;
  }

private:
  static constexpr std::align_val_t kAlignment{64};
  void release() {
    if (data_) ::operator delete(data_, kAlignment);
    data_ = nullptr;
    size_ = 0;
  }
  float* data_ = nullptr;
  int64_t size_ = 0;
};

} // namespace lc
