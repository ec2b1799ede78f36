// The operators of recurrence.py, for compiled graphs and for Python.

#include "handles.h"
#include "recurrence.h"

namespace {

Recurrence recurrence_of(AtenTensorHandle starts, AtenTensorHandle weight) {
  const int64_t *rows = sizes_of(starts), *weights = sizes_of(weight);
  return {rows[0], rows[1], weights[1], weights[0] == 3 * weights[1]};
}

AtenTensorHandle empty_rows(std::vector<int64_t> sizes) {
  std::vector<int64_t> strides(sizes.size(), 1);
  for (size_t i = sizes.size() - 1; i > 0; --i) strides[i - 1] = strides[i] * sizes[i];
  return empty(sizes, strides);
}

}  // namespace

// ppo1_lightning::recurrence
extern "C" AOTITorchError aoti_torch_cpu_recurrence(
    AtenTensorHandle gates, AtenTensorHandle weight, AtenTensorHandle bias, AtenTensorHandle state,
    AtenTensorHandle starts, AtenTensorHandle *states, AtenTensorHandle *activations) try {
  const Recurrence r = recurrence_of(starts, weight);
  *states = empty_rows({r.length, r.units, r.parts * r.hidden});
  *activations = empty_rows({r.length, r.units, 4 * r.hidden});
  r.forward(data_of<float>(gates), data_of<float>(weight), data_of<float>(bias),
            data_of<float>(state), data_of<bool>(starts), data_of<float>(*states),
            data_of<float>(*activations));
  return AOTI_TORCH_SUCCESS;
} catch (...) {
  return AOTI_TORCH_FAILURE;
}

// ppo1_lightning::recurrence_backward
extern "C" AOTITorchError aoti_torch_cpu_recurrence_backward(
    AtenTensorHandle gradient, AtenTensorHandle states, AtenTensorHandle activations,
    AtenTensorHandle weight, AtenTensorHandle state, AtenTensorHandle starts,
    AtenTensorHandle *of_gates, AtenTensorHandle *of_state) try {
  const Recurrence r = recurrence_of(starts, weight);
  *of_gates = empty_rows({r.length, r.units, r.gates * r.hidden});
  *of_state = empty_rows({r.units, r.parts * r.hidden});
  r.backward(data_of<float>(gradient), data_of<float>(states), data_of<float>(activations),
             data_of<float>(weight), data_of<float>(state), data_of<bool>(starts),
             data_of<float>(*of_gates), data_of<float>(*of_state));
  return AOTI_TORCH_SUCCESS;
} catch (...) {
  return AOTI_TORCH_FAILURE;
}

// The same for memory that Python has: sizes are rows of a unit, units and numbers of a state.
extern "C" void recurrence_forward(int64_t length, int64_t units, int64_t hidden, bool gru,
                                   const float *gates, const float *weight, const float *bias,
                                   const float *state, const bool *starts, float *states,
                                   float *activations) {
  Recurrence{length, units, hidden, gru}.forward(gates, weight, bias, state, starts, states,
                                                 activations);
}

extern "C" void recurrence_backward(int64_t length, int64_t units, int64_t hidden, bool gru,
                                    const float *gradient, const float *states,
                                    const float *activations, const float *weight,
                                    const float *state, const bool *starts, float *of_gates,
                                    float *of_state) {
  Recurrence{length, units, hidden, gru}.backward(gradient, states, activations, weight, state,
                                                  starts, of_gates, of_state);
}
