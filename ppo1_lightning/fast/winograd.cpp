// Convolutions by Winograd's minimal filtering, forward and backward, for float32 on the CPU.
//
// A convolution whose kernel is 2 or 3 strides wide is one of 2 x 2 or 3 x 3 taps with stride 1
// over cells of stride x stride pixels, each a vector of all their channels. Tiles of m x m of its
// outputs, m + taps = 5, take 4 x 4 products instead of m * m * taps * taps: 16 for 36.
//
// Along one side, with input d (4 cells), weights w (`taps`) and output y (m), for the polynomials'
// values at the points 0, 1, -1 and infinity (Toom-Cook; Lavin and Gray 2016, arXiv:1509.09308):
//
//     y = evaluate_m^T ((scale * evaluate_taps w) . (interpolate d))
//
// It is linear in each of the two, so gradients are the same three maps, transposed. At these
// points they are sums and differences, so that rounding is that of a direct convolution.
//
// Each thread takes a few images at a time: what lies between the maps stays in its cache.

#include <omp.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <algorithm>
#include <cstdint>
#include <memory>
#include <new>
#include <stdexcept>
#include <vector>

namespace {

#ifdef __AVX512F__
constexpr int LANES = 16, TILE_VECTORS = 4;  // 6 x 4 sums fill 32 registers
#else
constexpr int LANES = 8, TILE_VECTORS = 2;  // 6 x 2 sums fill 16
#endif
constexpr int TILE_ROWS = 6;
constexpr int POINTS = 4;             // of a side
constexpr int64_t BLOCK_TILES = 48;   // that a thread works on at once

typedef float Vector __attribute__((vector_size(4 * LANES), aligned(4), may_alias));
using Side = Vector[POINTS];
using Square = Vector[POINTS][POINTS];

// A square of 4 x 4 vectors stays in registers if all of its indices are known to the compiler.
#define INLINE inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 16")

Vector load(const float *from) { return *reinterpret_cast<const Vector *>(from); }
void store(float *to, Vector value) { *reinterpret_cast<Vector *>(to) = value; }

int64_t ceil_divide(int64_t a, int64_t b) { return (a + b - 1) / b; }

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

// ------------------------------------------------------------------ products of matrices

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
  for (; j + wide <= width; j += wide)
    multiply_columns<TILE_VECTORS, add>(a, row, step, b + j, c + j, rows, steps, width);
  for (; j + half <= width; j += half)
    multiply_columns<TILE_VECTORS / 2, add>(a, row, step, b + j, c + j, rows, steps, width);
  for (; j < width; j += LANES)
    multiply_columns<1, add>(a, row, step, b + j, c + j, rows, steps, width);
}

// --------------------------------------------------------------- the maps along one side

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

// ---------------------------------------------------------------------- a convolution

struct Shape {
  int64_t images, channels, height, width;
  bool channels_last;  // else channels first; both without gaps
  int64_t outputs, kernel, stride;
  bool relu;
};

template <int m>
struct Convolution : Shape {
  static constexpr int taps = POINTS + 1 - m;
  const int64_t out_height = (height - kernel) / stride + 1;
  const int64_t out_width = (width - kernel) / stride + 1;
  const int64_t tiles_y = ceil_divide(out_height, m), tiles_x = ceil_divide(out_width, m);
  const int64_t tiles = tiles_y * tiles_x;
  const int64_t cells_x = tiles_x * m + taps - 1;  // of the last tiles some may lie outside
  const int64_t depth = stride * stride * channels;
  const int64_t cells_size = (tiles_y * m + taps - 1) * cells_x * depth;
  const int64_t image_size = channels * height * width;
  const int64_t output_size = out_height * out_width * outputs;
  const int64_t weights_size = POINTS * POINTS * depth * outputs;
  const int64_t threads = std::min<int64_t>(omp_get_max_threads(), images);
  const int64_t rounds = ceil_divide(images, threads * std::max<int64_t>(1, BLOCK_TILES / tiles));
  const int64_t block = ceil_divide(images, threads * rounds);  // images at once, as many for each
  const int64_t rows = block * tiles;

  explicit Convolution(const Shape &shape) : Shape(shape) {}

  // Calls f(from, to, count) for runs of numbers that lie together in the image and in its cells.
  template <class F>
  void for_runs(F f) const {
    const int64_t cells_down = out_height + taps - 1, cells_across = out_width + taps - 1;
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
          Vector sum = square[y][x] + load(bias + k);
          if (relu) sum = sum < 0.0f ? Vector{} : sum;  // lets NaN pass
          store(output + ((i * m + y) * out_width + j * m + x) * outputs + k, sum);
        }
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
      const Scratch &own = scratch[omp_get_thread_num()];
      const int64_t count = std::min(block, images - first);
      for (int64_t i = 0; i < count; ++i) {
        read_cells(input + (first + i) * image_size, own.cells.get());
        transform_input(own.cells.get(), own.inputs.get() + i * tiles * depth);
      }
      for (int p = 0; p < POINTS * POINTS; ++p)
        multiply<false>(own.inputs.get() + p * rows * depth, depth, 1,
                        weights.get() + p * depth * outputs,
                        own.products.get() + p * rows * outputs, count * tiles, depth, outputs);
      for (int64_t i = 0; i < count; ++i)
        transform_output(own.products.get() + i * tiles * outputs, bias,
                         output + (first + i) * output_size);
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

// ------------------------------------------------------------------ as operators of PyTorch

void check(AOTITorchError error) {
  if (error) throw std::runtime_error("a tensor cannot be read or made");
}

template <class T>
T *data_of(AtenTensorHandle tensor) {
  void *data;
  check(aoti_torch_get_data_ptr(tensor, &data));
  return static_cast<T *>(data);
}

const int64_t *sizes_of(AtenTensorHandle tensor) {
  int64_t *sizes;
  check(aoti_torch_get_sizes(tensor, &sizes));
  return sizes;
}

bool is_uint8(AtenTensorHandle tensor) {
  int32_t dtype;
  check(aoti_torch_get_dtype(tensor, &dtype));
  return dtype == aoti_torch_dtype_uint8();
}

AtenTensorHandle empty(std::vector<int64_t> sizes, std::vector<int64_t> strides) {
  AtenTensorHandle made;
  check(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(),
                                 aoti_torch_dtype_float32(), aoti_torch_device_type_cpu(), 0,
                                 &made));
  return made;
}

AtenTensorHandle empty_channels_last(int64_t images, int64_t channels, int64_t height,
                                     int64_t width) {
  return empty({images, channels, height, width},
               {height * width * channels, 1, width * channels, channels});
}

Shape shape_of(AtenTensorHandle input, AtenTensorHandle weight, int64_t stride, bool relu) {
  const int64_t *in = sizes_of(input), *taps = sizes_of(weight);
  int64_t *strides;
  check(aoti_torch_get_strides(input, &strides));
  return {in[0], in[1], in[2], in[3], strides[1] == 1, taps[0], taps[2], stride, relu};
}

template <class F>
AOTITorchError with_convolution(const Shape &shape, F f) {
  if (shape.kernel == 2 * shape.stride)
    f(Convolution<3>(shape));
  else
    f(Convolution<2>(shape));
  return AOTI_TORCH_SUCCESS;
}

}  // namespace

// ppo1_lightning::winograd_convolution, see winograd.py
extern "C" AOTITorchError aoti_torch_cpu_winograd_convolution(
    AtenTensorHandle input, AtenTensorHandle weight, AtenTensorHandle bias, int64_t stride,
    bool relu, AtenTensorHandle *output) try {
  return with_convolution(shape_of(input, weight, stride, relu), [&](const auto &c) {
    *output = empty_channels_last(c.images, c.outputs, c.out_height, c.out_width);
    const auto run = [&](const auto *pixels) {
      c.forward(pixels, data_of<float>(weight), data_of<float>(bias), data_of<float>(*output));
    };
    is_uint8(input) ? run(data_of<uint8_t>(input)) : run(data_of<float>(input));
  });
} catch (...) {
  return AOTI_TORCH_FAILURE;
}

// ppo1_lightning::winograd_convolution_backward, see winograd.py
extern "C" AOTITorchError aoti_torch_cpu_winograd_convolution_backward(
    AtenTensorHandle gradient, AtenTensorHandle output, AtenTensorHandle input,
    AtenTensorHandle weight, int64_t stride, bool relu, bool of_input,
    AtenTensorHandle *input_gradient, AtenTensorHandle *weight_gradient,
    AtenTensorHandle *bias_gradient) try {
  return with_convolution(shape_of(input, weight, stride, relu), [&](const auto &c) {
    *input_gradient = of_input ? empty_channels_last(c.images, c.channels, c.height, c.width)
                               : empty({0}, {1});
    *weight_gradient = empty({c.outputs, c.channels, c.kernel, c.kernel},
                             {c.channels * c.kernel * c.kernel, c.kernel * c.kernel, c.kernel, 1});
    *bias_gradient = empty({c.outputs}, {1});
    const auto run = [&](const auto *pixels) {
      c.backward(data_of<float>(gradient), data_of<float>(output), pixels, data_of<float>(weight),
                 of_input ? data_of<float>(*input_gradient) : nullptr,
                 data_of<float>(*weight_gradient), data_of<float>(*bias_gradient));
    };
    is_uint8(input) ? run(data_of<uint8_t>(input)) : run(data_of<float>(input));
  });
} catch (...) {
  return AOTI_TORCH_FAILURE;
}
