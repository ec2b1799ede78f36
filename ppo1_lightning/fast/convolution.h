// A convolution of a batch of images, forward and backward: see winograd.cpp.
//
// Each thread takes a few images at a time: what lies between the maps stays in its cache.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "cells.h"
#include "maps.h"
#include "products.h"

namespace {

constexpr int64_t BLOCK_TILES = 48;  // that a thread works on at once

template <int m>
struct Convolution : Cells {
  static constexpr int taps = POINTS + 1 - m;
  const int64_t tiles = tiles_y * tiles_x;
  const int64_t output_size = out_height * out_width * outputs;
  const int64_t weights_size = POINTS * POINTS * depth * outputs;
  const int64_t threads = std::min<int64_t>(omp_get_max_threads(), images);
  const int64_t rounds = ceil_divide(images, threads * std::max<int64_t>(1, BLOCK_TILES / tiles));
  const int64_t block = ceil_divide(images, threads * rounds);  // images at once, as many for each
  const int64_t rows = block * tiles;

  explicit Convolution(const Shape &shape) : Cells(shape, m) {}

  // Calls f(tile, row, column) for the tiles of an image and each `LANES` of `numbers`.
  template <class F>
  void for_tiles(int64_t numbers, F f) const {
    for (int64_t i = 0; i < tiles_y; ++i)
      for (int64_t j = 0; j < tiles_x; ++j)
        for (int64_t k = 0; k < numbers; k += LANES) f((i * tiles_x + j) * numbers + k, i, j, k);
  }

  // A square of vectors from or to 4 x 4 matrices [rows, numbers], of which it is one place each.
  INLINE static void load_points(const float *from, int64_t size, Square &square) {
    UNROLL
    for (int p = 0; p < POINTS * POINTS; ++p)
      square[p / POINTS][p % POINTS] = load(from + p * size);
  }
  INLINE static void store_points(float *to, int64_t size, const Square &square) {
    UNROLL
    for (int p = 0; p < POINTS * POINTS; ++p)
      store(to + p * size, square[p / POINTS][p % POINTS]);
  }

  // cells [down, across, depth] -> values [4, 4, rows, depth] of an image's tiles
  void transform_input(const float *cells, float *values) const {
    for_tiles(depth, [&](int64_t place, int64_t i, int64_t j, int64_t k) {
      const float *corner = cells + (i * cells_x + j) * m * depth + k;
      Square square;
      UNROLL
      for (int y = 0; y < POINTS; ++y)
        UNROLL
        for (int x = 0; x < POINTS; ++x) square[y][x] = load(corner + (y * cells_x + x) * depth);
      map_square<interpolate, POINTS, POINTS>(square);
      store_points(values + place, rows * depth, square);
    });
  }

  void transform_input_gradient(const float *values, float *cells) const {
    std::fill_n(cells, cells_size, 0.0f);
    for_tiles(depth, [&](int64_t place, int64_t i, int64_t j, int64_t k) {
      float *corner = cells + (i * cells_x + j) * m * depth + k;
      Square square;
      load_points(values + place, rows * depth, square);
      map_square<interpolate_transposed, POINTS, POINTS>(square);
      UNROLL
      for (int y = 0; y < POINTS; ++y)
        UNROLL
        for (int x = 0; x < POINTS; ++x) {
          float *cell = corner + (y * cells_x + x) * depth;
          store(cell, load(cell) + square[y][x]);
        }
    });
  }

  Vector activated(Vector sum) const {
    return relu ? (sum < 0.0f ? Vector{} : sum) : sum;  // lets NaN pass
  }

  // values [4, 4, rows, outputs] of an image's tiles -> output [out_height, out_width, outputs]
  void transform_output(const float *values, const float *bias, float *output) const {
    for_tiles(outputs, [&](int64_t place, int64_t i, int64_t j, int64_t k) {
      Square square;
      load_points(values + place, rows * outputs, square);
      map_square<evaluate_transposed<m>, POINTS, m>(square);
      UNROLL
      for (int y = 0; y < m; ++y)
        UNROLL
        for (int x = 0; x < m; ++x) {
          if (i * m + y >= out_height || j * m + x >= out_width) continue;
          const Vector sum = activated(square[y][x] + load(bias + k));
          store(output + ((i * m + y) * out_width + j * m + x) * outputs + k, sum);
        }
    });
  }

  // Gives outputs that see nothing but zeros the bias to the last bit, as a direct sum does. From
  // what else is in their tiles they have its rounding: where the bias is zero too, that would
  // decide whether a ReLU lets gradients pass, on a black background everywhere at once.
  void settle_blanks(const char *empty, const float *bias, float *output) const {
    for_blanks(empty, [&](int64_t y, int64_t x) {
      for (int64_t k = 0; k < outputs; k += LANES)
        store(output + (y * out_width + x) * outputs + k, activated(load(bias + k)));
    });
  }

  // Adds the gradient up for the bias, too.
  void transform_output_gradient(const float *gradient, const float *output, float *values,
                                 float *bias_gradient) const {
    for_tiles(outputs, [&](int64_t place, int64_t i, int64_t j, int64_t k) {
      Square square = {};
      Vector sum = load(bias_gradient + k);
      UNROLL
      for (int y = 0; y < m; ++y)
        UNROLL
        for (int x = 0; x < m; ++x) {
          if (i * m + y >= out_height || j * m + x >= out_width) continue;
          const int64_t at = ((i * m + y) * out_width + j * m + x) * outputs + k;
          const Vector given = load(gradient + at);
          square[y][x] = relu ? (load(output + at) <= 0.0f ? Vector{} : given) : given;
          sum += square[y][x];
        }
      store(bias_gradient + k, sum);
      map_square<evaluate<m>, m, POINTS>(square);
      store_points(values + place, rows * outputs, square);
    });
  }

  // Where in a kernel the first tap of a number of the cell is.
  int64_t place_in_kernel(int64_t number) const {
    const int64_t pixel = channels_last ? number / channels : number % (stride * stride);
    const int64_t channel = channels_last ? number % channels : number / (stride * stride);
    return (channel * kernel + pixel / stride) * kernel + pixel % stride;
  }
  int64_t place_of_output(int64_t output) const { return output * channels * kernel * kernel; }
  int64_t place_of_tap(int y, int x) const { return (y * kernel + x) * stride; }

  // weight [outputs, channels, kernel, kernel] -> values [4, 4, depth, outputs]
  void transform_weight(const float *weight, float *values) const {
    transform_weight(
        weight, values, depth, [&](int64_t i) { return place_in_kernel(i); }, outputs,
        [&](int64_t j) { return place_of_output(j); });
  }

  // weight [outputs, channels, kernel, kernel] -> values [4, 4, outputs, depth]
  void transform_weight_transposed(const float *weight, float *values) const {
    transform_weight(
        weight, values, outputs, [&](int64_t i) { return place_of_output(i); }, depth,
        [&](int64_t j) { return place_in_kernel(j); });
  }

  template <class Row, class Column>
  void transform_weight(const float *weight, float *values, int64_t count, Row row, int64_t width,
                        Column column) const {
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; ++i)
      for (int64_t j = 0; j < width; j += LANES) {
        Square square = {};
        for (int lane = 0; lane < LANES; ++lane) {
          const float *first = weight + row(i) + column(j + lane);
          for (int y = 0; y < taps; ++y)
            for (int x = 0; x < taps; ++x) square[y][x][lane] = first[place_of_tap(y, x)];
        }
        map_square<evaluate<taps>, taps, POINTS>(square);
        scale(square);
        store_points(values + i * width + j, weights_size / (POINTS * POINTS), square);
      }
  }

  // values [4, 4, depth, outputs] -> weight [outputs, channels, kernel, kernel]
  void transform_weight_gradient(const float *values, float *weight) const {
#pragma omp parallel for schedule(static)
    for (int64_t number = 0; number < depth; ++number)
      for (int64_t j = 0; j < outputs; j += LANES) {
        Square square;
        load_points(values + number * outputs + j, depth * outputs, square);
        scale(square);
        map_square<evaluate_transposed<taps>, POINTS, taps>(square);
        for (int lane = 0; lane < LANES; ++lane) {
          float *first = weight + place_in_kernel(number) + place_of_output(j + lane);
          for (int y = 0; y < taps; ++y)
            for (int x = 0; x < taps; ++x) first[place_of_tap(y, x)] = square[y][x][lane];
        }
      }
  }

  template <class Pixel>
  void forward(const Pixel *input, const float *weight, const float *bias, float *output) const {
    const Floats weights = floats(weights_size);
    std::vector<Scratch> scratch = scratches();
    transform_weight(weight, weights.get());
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < images; first += block) {
      Scratch &own = scratch[omp_get_thread_num()];
      const int64_t count = std::min(block, images - first);
      for (int64_t i = 0; i < count; ++i) {
        read_cells(input + (first + i) * image_size, own.cells.get());
        find_empty(own.cells.get(), own.empty.data() + i * cells_count);
        transform_input(own.cells.get(), own.inputs.get() + i * tiles * depth);
      }
      for (int p = 0; p < POINTS * POINTS; ++p)
        multiply<false>(own.inputs.get() + p * rows * depth, depth, 1,
                        weights.get() + p * depth * outputs,
                        own.products.get() + p * rows * outputs, count * tiles, depth, outputs);
      for (int64_t i = 0; i < count; ++i) {
        float *its_output = output + (first + i) * output_size;
        transform_output(own.products.get() + i * tiles * outputs, bias, its_output);
        settle_blanks(own.empty.data() + i * cells_count, bias, its_output);
      }
    }
  }

  // `input_gradient` is null where it is not asked for.
  template <class Pixel>
  void backward(const float *gradient, const float *output, const Pixel *input,
                const float *weight, float *input_gradient, float *weight_gradient,
                float *bias_gradient) const {
    const Floats weights = floats(input_gradient ? weights_size : 0);
    std::vector<Scratch> scratch = scratches();
    for (Scratch &own : scratch) own.add_gradients(*this, input_gradient != nullptr);
    if (input_gradient) transform_weight_transposed(weight, weights.get());
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t first = 0; first < images; first += block) {
      const Scratch &own = scratch[omp_get_thread_num()];
      const int64_t count = std::min(block, images - first), used = count * tiles;
      for (int64_t i = 0; i < count; ++i) {
        const int64_t of_output = (first + i) * output_size;
        read_cells(input + (first + i) * image_size, own.cells.get());
        transform_input(own.cells.get(), own.inputs.get() + i * tiles * depth);
        transform_output_gradient(gradient + of_output, output + of_output,
                                  own.products.get() + i * tiles * outputs, own.bias.get());
      }
      for (int p = 0; p < POINTS * POINTS; ++p) {
        const float *products = own.products.get() + p * rows * outputs;
        multiply<true>(own.inputs.get() + p * rows * depth, 1, depth, products,
                       own.weights.get() + p * depth * outputs, depth, used, outputs);
        if (input_gradient)
          multiply<false>(products, outputs, 1, weights.get() + p * depth * outputs,
                          own.input_gradients.get() + p * rows * depth, used, outputs, depth);
      }
      for (int64_t i = 0; input_gradient && i < count; ++i) {
        transform_input_gradient(own.input_gradients.get() + i * tiles * depth,
                                 own.cell_gradients.get());
        write_cells(own.cell_gradients.get(), input_gradient + (first + i) * image_size);
      }
    }
    add_up(scratch, &Scratch::weights, weights_size);
    add_up(scratch, &Scratch::bias, outputs);
    transform_weight_gradient(scratch[0].weights.get(), weight_gradient);
    std::copy_n(scratch[0].bias.get(), outputs, bias_gradient);
  }

  // What a thread has of its own.
  struct Scratch {
    Floats cells, inputs, products;                         // of a block of images
    std::vector<char> empty;                                // likewise
    Floats cell_gradients, input_gradients, weights, bias;  // the last two for all of its images

    void add_gradients(const Convolution &c, bool of_input) {
      cell_gradients = floats(of_input ? c.cells_size : 0);
      input_gradients = floats(of_input ? POINTS * POINTS * c.rows * c.depth : 0);
      weights = zeros(c.weights_size);
      bias = zeros(c.outputs);
    }
  };

  std::vector<Scratch> scratches() const {
    std::vector<Scratch> all(threads);
    for (Scratch &own : all) {
      own.cells = zeros(cells_size);  // those outside of the image stay so
      own.inputs = floats(POINTS * POINTS * rows * depth);
      own.products = floats(POINTS * POINTS * rows * outputs);
      own.empty.resize(block * cells_count);
    }
    return all;
  }

  // Adds the threads' parts to the first one's, in this order whatever happens when.
  void add_up(const std::vector<Scratch> &scratch, Floats Scratch::*part, int64_t size) const {
    float *sum = (scratch[0].*part).get();
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < size; ++i)
      for (int64_t t = 1; t < threads; ++t) sum[i] += (scratch[t].*part)[i];
  }
};

}  // namespace
