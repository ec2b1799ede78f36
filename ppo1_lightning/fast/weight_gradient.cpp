// The gradient of a convolution's weights in bfloat16, for processors with tiles (AMX).
//
// Over cells of stride x stride pixels, each a vector of all their channels ("depth"), a
// convolution has few taps, and for each of them the gradient is one product of matrices:
//
//     of_weight[tap] = sum over n of output_gradient[n]^T cells[n + shift of the tap]
//
// where n goes over the cells of several images, one after the other, and the output's gradient is
// 0 where a cell has no output. A tile's product adds pairs of n at once, so that pairs must lie
// together: once with the first of each pair even, once odd, for shifts of either kind.
//
// An infinity or NaN times that 0 is NaN: it spoils the gradient of its neighbours' weights, too.

#include "handles.h"

#if defined(__AMX_BF16__) && defined(__AVX512BW__)

#include <immintrin.h>
#include <omp.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>

namespace {

constexpr int64_t SIDE = 16;  // of a tile, in rows and in pairs or numbers of float32
constexpr int64_t CHUNK = 2 * SIDE;  // numbers that a product adds at once
constexpr int64_t CELLS_AT_ONCE = 448;  // about as many stay in the second cache

bool may_use_tiles() {
  static const bool granted = [] {
    constexpr int request_permission = 0x1023, tile_data = 18;  // of Linux's asm/prctl.h
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
  }();
  return granted;
}

struct TileConfiguration {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

template <class T>
struct Aligned {
  struct Free {
    void operator()(T *memory) const { std::free(memory); }
  };
  std::unique_ptr<T, Free> memory;

  explicit Aligned(int64_t count)
      : memory(static_cast<T *>(std::aligned_alloc(64, (count * sizeof(T) + 63) / 64 * 64))) {
    if (!memory) throw std::bad_alloc();
    std::memset(memory.get(), 0, count * sizeof(T));
  }
  T *get() const { return memory.get(); }
};

__m512i widened(const uint16_t *numbers) {
  return _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(numbers)));
}

__m512i paired(__m512i first, __m512i second) {
  return _mm512_or_si512(first, _mm512_slli_epi32(second, 16));
}

__m512 as_float(__m512i widened) { return _mm512_castsi512_ps(_mm512_slli_epi32(widened, 16)); }

// accumulator [2 x 16][2 x 16] += a [2 x 16][n] b [n][2 x 16], or one tile of either
template <bool second_a, bool second_b>
void multiply(const uint16_t *a, int64_t a_row, const uint32_t *b, int64_t b_tile, int64_t chunks,
              float *accumulator, int64_t row) {
  const auto bytes = row * sizeof(float), a_bytes = a_row * sizeof(uint16_t);
  float *below = accumulator + SIDE * row;
  asm volatile("" ::: "memory");  // the compiler does not know what tiles are loaded from
  _tile_loadd(0, accumulator, bytes);
  if constexpr (second_b) _tile_loadd(1, accumulator + SIDE, bytes);
  if constexpr (second_a) _tile_loadd(2, below, bytes);
  if constexpr (second_a && second_b) _tile_loadd(3, below + SIDE, bytes);
  for (int64_t i = 0; i < chunks; ++i) {
    _tile_loadd(4, a + i * CHUNK, a_bytes);
    _tile_loadd(6, b + i * SIDE * SIDE, 64);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (second_b) {
      _tile_loadd(7, b + b_tile + i * SIDE * SIDE, 64);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (second_a) {
      _tile_loadd(5, a + SIDE * a_row + i * CHUNK, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (second_b) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, accumulator, bytes);
  if constexpr (second_b) _tile_stored(1, accumulator + SIDE, bytes);
  if constexpr (second_a) _tile_stored(2, below, bytes);
  if constexpr (second_a && second_b) _tile_stored(3, below + SIDE, bytes);
}

struct Gradient {
  const int64_t images, channels, height, width;  // of the input
  const int64_t outputs, out_height, out_width;
  const int64_t taps_down, taps_across, stride;  // kernels are taps * stride wide
  const int64_t line = stride * channels, depth = stride * line;  // of a cell: side by side, all
  const int64_t down = out_height + taps_down - 1, across = out_width + taps_across - 1;
  const int64_t cells = down * across, largest_shift = (taps_down - 1) * across + taps_across - 1;
  const int64_t group = std::max<int64_t>(1, CELLS_AT_ONCE / cells);  // images
  const int64_t chunks = (group * cells + CHUNK - 1) / CHUNK;
  const int64_t pairs = chunks * SIDE + largest_shift / 2 + 1;  // that a shifted product reads
  const int64_t size = taps_down * taps_across * outputs * depth;

  struct Scratch {
    Aligned<uint32_t> cell_pairs[2], output_pairs;
    Aligned<uint16_t> of_outputs;
    Aligned<float> of_weight, of_bias;

    explicit Scratch(const Gradient &g)
        : cell_pairs{Aligned<uint32_t>(g.pairs * g.depth), Aligned<uint32_t>(g.pairs * g.depth)},
          output_pairs(g.chunks * SIDE * g.outputs),
          of_outputs(g.chunks * CHUNK * g.outputs),
          of_weight(g.size),
          of_bias(g.outputs) {}
  };

  // Cells of some images -> [even or odd][depth / 16][pairs][16]
  void pair_cells(const uint16_t *image, int64_t count, const Scratch &own) const {
    const int64_t end = count * cells;
    for (int64_t block = 0; block < depth / SIDE; ++block) {
      const int64_t within = block * SIDE / line * width * channels + block * SIDE % line;
      __m512i before = _mm512_setzero_si512();
      int64_t n = 0;
      const auto put = [&](__m512i cell) {  // the pair of cells n - 1 and n
        if (n) {
          uint32_t *pairs_of = own.cell_pairs[(n - 1) % 2].get() + block * pairs * SIDE;
          _mm512_store_si512(pairs_of + (n - 1) / 2 * SIDE, paired(before, cell));
        }
        before = cell;
        ++n;
      };
      for (int64_t i = 0; i < count; ++i)
        for (int64_t y = 0; y < down; ++y) {
          const uint16_t *cell = image + (i * height + y * stride) * width * channels + within;
          for (int64_t x = 0; x < across; ++x, cell += line) put(widened(cell));
        }
      while (n <= std::min(end + 2, 2 * pairs - 1)) put(_mm512_setzero_si512());
    }
  }

  // Gradients of some images' outputs -> [outputs][cells], and their sums
  void transpose_outputs(const uint16_t *gradient, int64_t count, const Scratch &own) const {
    const int64_t length = chunks * CHUNK;
    uint32_t *paired_rows = own.output_pairs.get();
    std::memset(paired_rows, 0, chunks * SIDE * outputs * sizeof(uint32_t));
    for (int64_t block = 0; block < outputs; block += SIDE) {
      __m512 sum = _mm512_load_ps(own.of_bias.get() + block);
      for (int64_t i = 0; i < count; ++i)
        for (int64_t y = 0; y < out_height; ++y) {
          const uint16_t *row = gradient + (i * out_height + y) * out_width * outputs + block;
          int64_t n = i * cells + y * across;
          for (int64_t x = 0; x < out_width; ++x, ++n) {
            const __m512i numbers = widened(row + x * outputs);
            uint32_t *pair = paired_rows + n / 2 * outputs + block;
            const __m512i there = _mm512_loadu_si512(pair);
            const __m512i both = n % 2 ? paired(there, numbers) : numbers;
            _mm512_storeu_si512(pair, both);
            sum = _mm512_add_ps(sum, as_float(numbers));
          }
        }
      _mm512_store_ps(own.of_bias.get() + block, sum);
    }
    const __m512i lanes = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    const __m512i rows = _mm512_mullo_epi32(lanes, _mm512_set1_epi32(outputs));
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      for (int64_t output = 0; output < outputs; ++output)
        _mm512_store_si512(
            own.of_outputs.get() + output * length + chunk * CHUNK,
            _mm512_i32gather_epi32(rows, paired_rows + chunk * SIDE * outputs + output, 4));
  }

  void add_products(const Scratch &own) const {
    constexpr decltype(&multiply<true, true>) products[2][2] = {
        {multiply<false, false>, multiply<false, true>},
        {multiply<true, false>, multiply<true, true>}};
    for (int64_t tap = 0; tap < taps_down * taps_across; ++tap) {
      const int64_t shift = tap / taps_across * across + tap % taps_across;
      const uint32_t *shifted = own.cell_pairs[shift % 2].get() + shift / 2 * SIDE;
      for (int64_t i = 0; i < outputs; i += 2 * SIDE)
        for (int64_t j = 0; j < depth; j += 2 * SIDE) {
          const auto function = products[outputs - i > SIDE][depth - j > SIDE];
          function(own.of_outputs.get() + i * chunks * CHUNK, chunks * CHUNK,
                   shifted + j * pairs, SIDE * pairs, chunks,
                   own.of_weight.get() + (tap * outputs + i) * depth + j, depth);
        }
    }
  }

  // Over all images, on all threads
  void run(const uint16_t *gradient, const uint16_t *image, float *of_weight,
           float *of_bias) const {
    const int64_t groups = (images + group - 1) / group;
    const int64_t threads = std::min<int64_t>(omp_get_max_threads(), groups);
    std::vector<std::unique_ptr<Scratch>> scratch(threads);
    for (auto &own : scratch) own = std::make_unique<Scratch>(*this);
#pragma omp parallel num_threads(threads)
    {
      const Scratch &own = *scratch[omp_get_thread_num()];
      const TileConfiguration configuration;
      asm volatile("" ::: "memory");
      _tile_loadconfig(&configuration);
#pragma omp for schedule(static)
      for (int64_t i = 0; i < groups; ++i) {
        const int64_t first = i * group, count = std::min(group, images - first);
        pair_cells(image + first * height * width * channels, count, own);
        transpose_outputs(gradient + first * out_height * out_width * outputs, count, own);
        add_products(own);
      }
      _tile_release();
    }
#pragma omp parallel for schedule(static)
    for (int64_t output = 0; output < outputs; ++output) {
      of_bias[output] = 0;
      for (const auto &own : scratch) of_bias[output] += own->of_bias.get()[output];
      write_kernel(scratch, output, of_weight + output * channels * kernel_size());
    }
  }

  int64_t kernel_size() const { return taps_down * taps_across * stride * stride; }

  // The sum over threads, from [taps][outputs][y, x, channels] to [channels][y][x] of a kernel
  void write_kernel(const std::vector<std::unique_ptr<Scratch>> &scratch, int64_t output,
                    float *kernel) const {
    for (int64_t tap = 0; tap < taps_down * taps_across; ++tap)
      for (int64_t k = 0; k < depth; ++k) {
        float sum = 0;
        const int64_t from = (tap * outputs + output) * depth + k;
        for (const auto &own : scratch) sum += own->of_weight.get()[from];
        const int64_t y = tap / taps_across * stride + k / line;
        const int64_t x = tap % taps_across * stride + k % line / channels;
        kernel[k % channels * kernel_size() + y * taps_across * stride + x] = sum;
      }
  }
};

}  // namespace

extern "C" int has_tiles() { return may_use_tiles(); }

// ppo1_lightning::weight_gradient, see weight_gradient.py
extern "C" AOTITorchError aoti_torch_cpu_weight_gradient(
    AtenTensorHandle gradient, AtenTensorHandle image, int64_t height, int64_t width,
    int64_t stride, AtenTensorHandle *of_weight, AtenTensorHandle *of_bias) try {
  const int64_t *in = sizes_of(image), *out = sizes_of(gradient);
  const Gradient g{in[0],  in[1],  in[2],           in[3],          out[1],
                   out[2], out[3], height / stride, width / stride, stride};
  *of_weight = empty({g.outputs, g.channels, height, width},
                     {g.channels * height * width, height * width, width, 1});
  *of_bias = empty({g.outputs}, {1});
  g.run(data_of<uint16_t>(gradient), data_of<uint16_t>(image), data_of<float>(*of_weight),
        data_of<float>(*of_bias));
  return AOTI_TORCH_SUCCESS;
} catch (...) {
  return AOTI_TORCH_FAILURE;
}

#else

extern "C" int has_tiles() { return 0; }

#endif
