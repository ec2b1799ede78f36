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

#include "convolution.h"
#include "handles.h"

namespace {

bool is_uint8(AtenTensorHandle tensor) {
  int32_t dtype;
  check(aoti_torch_get_dtype(tensor, &dtype));
  return dtype == aoti_torch_dtype_uint8();
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
