// The maps of Winograd's filtering, along one side and of a square: see winograd.cpp.
#pragma once

#include "vectors.h"

// A square of 4 x 4 vectors stays in registers if all of its indices are known to the compiler.
#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

namespace {

constexpr int POINTS = 4;  // of a side

using Side = Vector[POINTS];
using Square = Vector[POINTS][POINTS];

INLINE void interpolate(Side &v) {
  const Vector second = v[1] + v[2], third = v[2] - v[1];
  v[0] -= v[2];
  v[3] -= v[1];
  v[1] = second;
  v[2] = third;
}

INLINE void interpolate_transposed(Side &v) {
  const Vector second = v[1] - v[2] - v[3], third = v[1] + v[2] - v[0];
  v[1] = second;
  v[2] = third;
}

// From the polynomial's n coefficients to its values.
template <int n>
INLINE void evaluate(Side &v) {
  const Vector even = n == 2 ? v[0] : v[0] + v[2], odd = v[1];
  v[3] = v[n - 1];
  v[1] = even + odd;
  v[2] = even - odd;
}

template <int n>
INLINE void evaluate_transposed(Side &v) {
  const Vector even = v[1] + v[2], odd = v[1] - v[2], last = v[3];
  v[0] += even;
  v[1] = odd;
  if (n == 3) v[2] = even;
  v[n - 1] += last;
}

// Both sides of a square, of which rows x columns count before the maps.
template <void (*map)(Side &), int rows, int columns>
INLINE void map_square(Square &square) {
  UNROLL
  for (int i = 0; i < rows; ++i) map(square[i]);
  UNROLL
  for (int j = 0; j < columns; ++j) {
    Side column = {square[0][j], square[1][j], square[2][j], square[3][j]};
    map(column);
    UNROLL
    for (int i = 0; i < POINTS; ++i) square[i][j] = column[i];
  }
}

INLINE void scale(Square &square) {
  constexpr float factors[POINTS] = {1, 0.5f, 0.5f, 1};
  UNROLL
  for (int i = 0; i < POINTS; ++i)
    UNROLL
    for (int j = 0; j < POINTS; ++j) square[i][j] *= factors[i] * factors[j];
}

}  // namespace
