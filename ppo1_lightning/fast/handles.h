// Tensors as PyTorch's stable C functions give them to an operator of a compiled graph.
#pragma once

#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <cstdint>
#include <stdexcept>
#include <vector>

namespace {

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

AtenTensorHandle empty(std::vector<int64_t> sizes, std::vector<int64_t> strides,
                       int32_t dtype = aoti_torch_dtype_float32()) {
  AtenTensorHandle made;
  check(aoti_torch_empty_strided(sizes.size(), sizes.data(), strides.data(), dtype,
                                 aoti_torch_device_type_cpu(), 0, &made));
  return made;
}

}  // namespace
