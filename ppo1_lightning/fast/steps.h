// What Inductor's function of a graph asks for, in the place of its classes for packages of models.
#pragma once

#include <iostream>

#include <torch/csrc/inductor/aoti_runtime/scalar_to_tensor.h>
#include <torch/csrc/inductor/aoti_runtime/thread_local.h>
#include <torch/csrc/inductor/aoti_runtime/utils.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_aten.h>
#include <torch/csrc/inductor/aoti_torch/generated/c_shim_cpu.h>

// Layouts are checked where tensors are bound to a graph.
#define _check_aoti_runtime_check_inputs_env() false
#define assert_size_stride(...)
#define __check_inputs_outputs(...)

using DeviceStreamType = void *;

namespace torch::aot_inductor {

struct AOTInductorModelKernels {};

struct AOTInductorModel {
  struct Kernels {
    AOTInductorModelKernels none;
    AOTInductorModelKernels *get() { return &none; }
  } kernels_;
  int32_t device_idx_ = -1;

  void run_impl(AtenTensorHandle *inputs, AtenTensorHandle *outputs, DeviceStreamType stream,
                AOTIProxyExecutorHandle proxy_executor);
};

}  // namespace torch::aot_inductor

// Takes the inputs' handles over. Returns 0, or 1 for an error that it has told.
extern "C" int32_t run_graph(AtenTensorHandle *inputs) {
  const bool before = aoti_torch_grad_mode_is_enabled();
  aoti_torch_grad_mode_set_enabled(false);
  int32_t error = 0;
  try {
    torch::aot_inductor::AOTInductorModel().run_impl(inputs, nullptr, nullptr, nullptr);
  } catch (const std::exception &e) {
    std::cerr << "Error: " << e.what() << std::endl;
    error = 1;
  }
  aoti_torch_grad_mode_set_enabled(before);
  return error;
}
