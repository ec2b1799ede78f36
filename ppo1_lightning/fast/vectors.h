// Vectors as the processor has them, and memory for them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16;
#else
constexpr int LANES = 8;
#endif

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));

Vector load(const float *from) { return *reinterpret_cast<const Vector *>(from); }
void store(float *to, Vector value) { *reinterpret_cast<Vector *>(to) = value; }

struct Free {
  void operator()(float *data) const { operator delete(data, std::align_val_t(64)); }
};
using Floats = std::unique_ptr<float[], Free>;

Floats floats(int64_t count) {
  return Floats(static_cast<float *>(operator new(count * sizeof(float), std::align_val_t(64))));
}

Floats zeros(int64_t count) {
  Floats made = floats(count);
  std::fill_n(made.get(), count, 0.0f);
  return made;
}

}  // namespace
