// The operator of space_to_depth.py, for compiled graphs.

#include <omp.h>

#include <cstring>

#include "handles.h"

namespace {

struct Images {
  const int64_t count, channels, height, width, stride;
  const int64_t down = height / stride, across = width / stride;
  const int64_t depth = channels * stride * stride;

  // One row of cells: each takes, from every channel and row of pixels, `stride` that lie together.
  template <int64_t known>
  void read_row(const uint8_t *image, int64_t row, uint8_t *cells) const {
    const int64_t run = known ? known : stride;
    for (int64_t channel = 0; channel < channels; ++channel)
      for (int64_t y = 0; y < stride; ++y) {
        const uint8_t *line = image + (channel * height + row * stride + y) * width;
        uint8_t *target = cells + (channel * stride + y) * run;
        for (int64_t j = 0; j < across; ++j)
          std::memcpy(target + j * depth, line + j * run, run);
      }
  }

  // bytes [count, channels, height, width] -> bfloat16 [count, down, across, depth]
  void to_cells(const uint8_t *pixels, uint16_t *cells) const {
    const int64_t row_size = across * depth;
    std::vector<uint8_t> rows(omp_get_max_threads() * row_size);
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count * down; ++i) {
      const uint8_t *image = pixels + i / down * channels * height * width;
      uint8_t *row = rows.data() + omp_get_thread_num() * row_size;
      if (stride == 4)  // known in advance a run is one move
        read_row<4>(image, i % down, row);
      else
        read_row<0>(image, i % down, row);
      for (int64_t k = 0; k < row_size; ++k) cells[i * row_size + k] = bfloat16(row[k]);
    }
  }

  // Whole numbers below 257 are exact: what is cut off of their float32 is zero.
  static uint16_t bfloat16(uint8_t number) {
    const float value = number;
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof(bits));
    return bits >> 16;
  }
};

}  // namespace

// ppo1_lightning::space_to_depth, see space_to_depth.py
extern "C" AOTITorchError aoti_torch_cpu_space_to_depth(AtenTensorHandle pixels, int64_t stride,
                                                        AtenTensorHandle *cells) try {
  const int64_t *sizes = sizes_of(pixels);
  const Images images{sizes[0], sizes[1], sizes[2], sizes[3], stride};
  const int64_t row_size = images.across * images.depth;
  *cells = empty({images.count, images.depth, images.down, images.across},
                 {images.down * row_size, 1, row_size, images.depth},
                 aoti_torch_dtype_bfloat16());
  images.to_cells(data_of<uint8_t>(pixels), data_of<uint16_t>(*cells));
  return AOTI_TORCH_SUCCESS;
} catch (...) {
  return AOTI_TORCH_FAILURE;
}
