// Products of matrices, in tiles that stay in registers.
#pragma once

#include "vectors.h"

namespace {

constexpr int TILE_ROWS = 6;
constexpr int TILE_VECTORS = LANES == 16 ? 4 : 2;  // 6 x 4 sums fill 32 registers, 6 x 2 fill 16

// c[i][j] (+)= sum over k of a[i * row + k * step] * b[k][j], for a tile that stays in registers.
template <int rows, int vectors, bool add>
void multiply_tile(const float *a, int64_t row, int64_t step, const float *b, float *c,
                   int64_t width, int64_t steps) {
  Vector sums[rows][vectors];
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < vectors; ++j)
      sums[i][j] = add ? load(c + i * width + j * LANES) : Vector{};
  for (int64_t k = 0; k < steps; ++k) {
    Vector right[vectors];
    for (int j = 0; j < vectors; ++j) right[j] = load(b + k * width + j * LANES);
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < vectors; ++j) sums[i][j] += a[i * row + k * step] * right[j];
  }
  for (int i = 0; i < rows; ++i)
    for (int j = 0; j < vectors; ++j) store(c + i * width + j * LANES, sums[i][j]);
}

template <int vectors, bool add>
void multiply_columns(const float *a, int64_t row, int64_t step, const float *b, float *c,
                      int64_t rows, int64_t steps, int64_t width) {
  int64_t i = 0;
  for (; i + TILE_ROWS <= rows; i += TILE_ROWS)
    multiply_tile<TILE_ROWS, vectors, add>(a + i * row, row, step, b, c + i * width, width, steps);
  for (; i + 2 <= rows; i += 2)
    multiply_tile<2, vectors, add>(a + i * row, row, step, b, c + i * width, width, steps);
  for (; i < rows; ++i)
    multiply_tile<1, vectors, add>(a + i * row, row, step, b, c + i * width, width, steps);
}

// The same for matrices: b is [steps, width], c is [rows, width].
template <bool add>
void multiply(const float *a, int64_t row, int64_t step, const float *b, float *c, int64_t rows,
              int64_t steps, int64_t width) {
  constexpr int64_t wide = TILE_VECTORS * LANES, half = wide / 2;
  int64_t j = 0;
  if (rows <= 2)  // wider ones: few sums would wait for themselves
    for (; j + 2 * wide <= width; j += 2 * wide)
      multiply_columns<2 * TILE_VECTORS, add>(a, row, step, b + j, c + j, rows, steps, width);
  for (; j + wide <= width; j += wide)
    multiply_columns<TILE_VECTORS, add>(a, row, step, b + j, c + j, rows, steps, width);
  for (; j + half <= width; j += half)
    multiply_columns<TILE_VECTORS / 2, add>(a, row, step, b + j, c + j, rows, steps, width);
  for (; j < width; j += LANES)
    multiply_columns<1, add>(a, row, step, b + j, c + j, rows, steps, width);
}

}  // namespace
