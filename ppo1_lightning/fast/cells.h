// An image as cells of stride x stride pixels, which are vectors: see winograd.cpp.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstring>

#include "vectors.h"

namespace {

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Shape {
  int64_t images, channels, height, width;
  bool channels_last;  // else channels first; both without gaps
  int64_t outputs, kernel, stride;
  bool relu;
};

// Whether all of some numbers are zero, of whatever sign.
inline bool all_zero(const float *numbers, int64_t count) {
  typedef uint32_t Bits __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
  if (numbers[0] != 0.0f) return false;  // as of most images
  Bits found = {};
  for (int64_t i = 0; i < count; i += LANES) found |= *reinterpret_cast<const Bits *>(numbers + i);
  found <<= 1;  // the sign's bit is the first
  uint64_t pairs[LANES / 2], any = 0;
  std::memcpy(pairs, &found, sizeof(pairs));
  for (uint64_t pair : pairs) any |= pair;
  return !any;
}

struct Cells : Shape {
  const int64_t tile, window;  // along one side: outputs of a tile, cells that an output sees
  const int64_t out_height = (height - kernel) / stride + 1;
  const int64_t out_width = (width - kernel) / stride + 1;
  const int64_t tiles_y = ceil_divide(out_height, tile), tiles_x = ceil_divide(out_width, tile);
  const int64_t cells_down = out_height + window - 1, cells_across = out_width + window - 1;
  const int64_t cells_count = cells_down * cells_across;
  const int64_t cells_x = tiles_x * tile + window - 1;  // of the last tiles some may lie outside
  const int64_t depth = stride * stride * channels;
  const int64_t cells_size = (tiles_y * tile + window - 1) * cells_x * depth;
  const int64_t image_size = channels * height * width;

  Cells(const Shape &shape, int64_t tile)
      : Shape(shape), tile(tile), window(shape.kernel / shape.stride) {}

  // Calls f(from, to, count) for runs of numbers that lie together in the image and in its cells.
  template <class F>
  void for_runs(F f) const {
    const int64_t planes = channels_last ? 1 : channels;
    const int64_t run = channels_last ? stride * channels : stride;
    for (int64_t i = 0; i < cells_down; ++i)
      for (int64_t plane = 0; plane < planes; ++plane)
        for (int64_t y = 0; y < stride; ++y) {
          const int64_t line = (plane * height + i * stride + y) * (image_size / height / planes);
          f(line, i * cells_x * depth + (plane * stride + y) * run, run, cells_across);
        }
  }

  template <class Pixel>
  void read_cells(const Pixel *image, float *cells) const {
    for_runs([&](int64_t from, int64_t to, int64_t run, int64_t count) {
      const Pixel *source = image + from;
      float *target = cells + to;
      if (run == 4)  // known in advance it is three times as fast
        for (int64_t j = 0; j < count; ++j)
          for (int64_t k = 0; k < 4; ++k) target[j * depth + k] = source[j * 4 + k];
      else
        for (int64_t j = 0; j < count; ++j)
          for (int64_t k = 0; k < run; ++k) target[j * depth + k] = source[j * run + k];
    });
  }

  void write_cells(const float *cells, float *image) const {
    if ((out_height - 1) * stride + kernel < height || (out_width - 1) * stride + kernel < width)
      std::fill_n(image, image_size, 0.0f);  // of pixels that no kernel reaches
    for_runs([&](int64_t to, int64_t from, int64_t run, int64_t count) {
      for (int64_t j = 0; j < count; ++j)
        std::copy_n(cells + from + j * depth, run, image + to + j * run);
    });
  }

  // cells [down, across, depth] -> whether each holds nothing but zeros
  void find_empty(const float *cells, char *empty) const {
    for (int64_t i = 0; i < cells_down; ++i)
      for (int64_t j = 0; j < cells_across; ++j)
        *empty++ = all_zero(cells + (i * cells_x + j) * depth, depth);
  }

  // Calls f(row, column) for each output that sees empty cells alone.
  template <class F>
  void for_blanks(const char *empty, F f) const {
    const auto is_blank = [&](int64_t y, int64_t x) {
      for (int64_t i = y; i < y + window; ++i)
        for (int64_t j = x; j < x + window; ++j)
          if (!empty[i * cells_across + j]) return false;
      return true;
    };
    for (int64_t y = 0; y < out_height; ++y)
      for (int64_t x = 0; x < out_width; ++x)
        if (is_blank(y, x)) f(y, x);
  }
};

}  // namespace
