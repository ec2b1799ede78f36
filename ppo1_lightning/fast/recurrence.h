// A GRU or LSTM over units of rows, forward and backward, for float32 on the CPU.
//
// What comes in has been multiplied for all rows at once; here is what goes step by step. Each
// thread takes some units, which know nothing of each other. Numbers are padded to whole vectors.
#pragma once

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#include "products.h"

namespace {

typedef int32_t Integers __attribute__((vector_size(4 * LANES)));

// Cephes' expf (Moshier 1989): one unit in the last place.
Vector exp(Vector x) {
  x = x < -87.0f ? Vector{} - 87.0f : x > 87.0f ? Vector{} + 87.0f : x;
  const Vector shifted = x * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const Vector n = shifted - 12582912.0f;
  x = x - n * 0.693359375f + n * 2.12194440e-4f;
  Vector y = Vector{} + 1.9875691500e-4f;
  y = y * x + 1.3981999507e-3f;
  y = y * x + 8.3334519073e-3f;
  y = y * x + 4.1665795894e-2f;
  y = y * x + 1.6666665459e-1f;
  y = y * x + 5.0000001201e-1f;
  y = y * x * x + x + 1.0f;
  const Integers power = (__builtin_convertvector(n, Integers) + 127) << 23;
  return y * reinterpret_cast<const Vector &>(power);
}

Vector sigmoid(Vector x) { return 1.0f / (1.0f + exp(-x)); }

// Cephes' tanhf: a polynomial near 0, where the quotient would cancel.
Vector tanh(Vector x) {
  const Vector s = x * x;
  Vector p = s * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  const Vector near = p * s * x + x, far = 1.0f - 2.0f / (exp(2.0f * x) + 1.0f);
  return s < 0.390625f ? near : far;
}

struct Recurrence {
  const int64_t length, units, hidden;  // L, U, H
  const bool gru;
  const int64_t gates = gru ? 3 : 4, parts = gru ? 1 : 2;
  const int64_t padded = (hidden + LANES - 1) / LANES * LANES;
  const int64_t width = gates * padded + LANES;  // no power of two: those share a place in a cache
  const int64_t threads = std::min<int64_t>(omp_get_max_threads(), units);

  // [count, hidden] from or to [count, padded], of which the rest is 0
  void pad(const float *from, float *to, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * padded, from + i * hidden, 4 * hidden);
  }
  void unpad(const float *from, float *to, int64_t count) const {
    for (int64_t i = 0; i < count; ++i) std::memcpy(to + i * hidden, from + i * padded, 4 * hidden);
  }

  // Calls f(first, count) for some units on each thread.
  template <class F>
  void on_threads(F f) const {
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t k = 0; k < threads; ++k) {
      const int64_t first = units * k / threads;
      f(first, units * (k + 1) / threads - first);
    }
  }

  // gates [L, U, gates * H], weight [gates * H, H], bias, state [U, parts * H], starts [L, U]
  // -> states after each row [L, U, parts * H], activations [L, U, 4 * H] for the gradient
  void forward(const float *input, const float *weight, const float *bias, const float *state,
               const bool *starts, float *states, float *activations) const {
    const Floats transposed = zeros(hidden * width), padded_bias = zeros(width);
    for (int64_t g = 0; g < gates; ++g)
      for (int64_t j = 0; j < hidden; ++j) {
        padded_bias[g * padded + j] = bias[g * hidden + j];
        for (int64_t k = 0; k < hidden; ++k)
          transposed[k * width + g * padded + j] = weight[(g * hidden + j) * hidden + k];
      }
    on_threads([&](int64_t first, int64_t count) {
      const Floats now = zeros(count * parts * padded), sums = zeros(count * width);
      const Floats in = zeros(gates * padded), activated = zeros(4 * padded);
      for (int64_t u = 0; u < count; ++u)
        pad(state + (first + u) * parts * hidden, now.get() + u * parts * padded, parts);
      for (int64_t t = 0; t < length; ++t) {
        const int64_t row = t * units + first;
        for (int64_t u = 0; u < count; ++u) {
          std::copy_n(padded_bias.get(), width, sums.get() + u * width);
          if (starts[row + u])
            std::fill_n(now.get() + u * parts * padded, parts * padded, 0.0f);
        }
        multiply<true>(now.get(), parts * padded, 1, transposed.get(), sums.get(), count, hidden,
                       width);
        for (int64_t u = 0; u < count; ++u) {
          float *its_state = now.get() + u * parts * padded;
          pad(input + (row + u) * gates * hidden, in.get(), gates);
          step(in.get(), sums.get() + u * width, its_state, activated.get());
          unpad(its_state, states + (row + u) * parts * hidden, parts);
          unpad(activated.get(), activations + (row + u) * 4 * hidden, 4);
        }
      }
    });
  }

  // What a row adds, and the state's part of the gates, bring a state to the next one.
  void step(const float *in, const float *sums, float *state, float *activated) const {
    for (int64_t j = 0; j < padded; j += LANES) {
      const auto from_input = [&](int g) { return load(in + g * padded + j); };
      const auto from_state = [&](int g) { return load(sums + g * padded + j); };
      const auto both = [&](int g) { return from_input(g) + from_state(g); };
      const auto keep = [&](int g, Vector value) { store(activated + g * padded + j, value); };
      if (gru) {
        const Vector reset = sigmoid(both(0)), update = sigmoid(both(1));
        const Vector candidate = tanh(from_input(2) + reset * from_state(2));
        keep(0, reset), keep(1, update), keep(2, candidate), keep(3, from_state(2));
        store(state + j, candidate + update * (load(state + j) - candidate));
      } else {
        const Vector let_in = sigmoid(both(0)), remember = sigmoid(both(1));
        const Vector candidate = tanh(both(2)), let_out = sigmoid(both(3));
        keep(0, let_in), keep(1, remember), keep(2, candidate), keep(3, let_out);
        const Vector cell = remember * load(state + padded + j) + let_in * candidate;
        store(state + padded + j, cell);
        store(state + j, let_out * tanh(cell));
      }
    }
  }

  // gradient [L, U, parts * H] of the states -> those of the gates and of the first state
  void backward(const float *gradient, const float *states, const float *activations,
                const float *weight, const float *state, const bool *starts, float *of_gates,
                float *of_state) const {
    const int64_t rows = padded + LANES;
    const Floats padded_weight = zeros(gates * padded * rows);
    for (int64_t g = 0; g < gates; ++g)
      for (int64_t j = 0; j < hidden; ++j)
        std::memcpy(padded_weight.get() + (g * padded + j) * rows,
                    weight + (g * hidden + j) * hidden, 4 * hidden);
    on_threads([&](int64_t first, int64_t count) {
      const int64_t size = parts * padded;
      const Floats carried = zeros(count * size), back = zeros(count * rows);
      const Floats of_hidden = zeros(count * gates * padded), of_input = zeros(gates * padded);
      const Floats activated = zeros(4 * padded), before = zeros(size), after = zeros(size);
      const Floats slope = zeros(size);
      for (int64_t t = length - 1; t >= 0; --t) {
        const int64_t row = t * units + first;
        for (int64_t u = 0; u < count; ++u) {
          const int64_t place = (row + u) * parts * hidden;
          const float *earlier = t ? states + place - units * parts * hidden
                                   : state + (first + u) * parts * hidden;
          pad(gradient + place, slope.get(), parts);
          pad(states + place, after.get(), parts);
          pad(activations + (row + u) * 4 * hidden, activated.get(), 4);
          if (starts[row + u])
            std::fill_n(before.get(), size, 0.0f);
          else
            pad(earlier, before.get(), parts);
          step_back(slope.get(), activated.get(), before.get(), after.get(),
                    carried.get() + u * size, of_input.get(), of_hidden.get() + u * gates * padded);
          unpad(of_input.get(), of_gates + (row + u) * gates * hidden, gates);
        }
        multiply<false>(of_hidden.get(), gates * padded, 1, padded_weight.get(), back.get(), count,
                        gates * padded, rows);
        for (int64_t u = 0; u < count; ++u) {
          float *its = carried.get() + u * size;
          if (starts[row + u])
            std::fill_n(its, size, 0.0f);
          else
            for (int64_t j = 0; j < padded; ++j) its[j] += back[u * rows + j];
        }
      }
      for (int64_t u = 0; u < count; ++u)
        unpad(carried.get() + u * size, of_state + (first + u) * parts * hidden, parts);
    });
  }

  // From the gradient of a row's state, and of what came after it in `carried`, to those of the
  // gates' two parts, and of the state before it in `carried`, without what goes through the gates.
  void step_back(const float *slope, const float *activated, const float *before,
                 const float *after, float *carried, float *of_input, float *of_hidden) const {
    for (int64_t j = 0; j < padded; j += LANES) {
      const auto a = [&](int g) { return load(activated + g * padded + j); };
      const auto put = [&](int g, Vector input, Vector state) {
        store(of_input + g * padded + j, input);
        store(of_hidden + g * padded + j, state);
      };
      const Vector dh = load(slope + j) + load(carried + j);
      if (gru) {
        const Vector reset = a(0), update = a(1), candidate = a(2), from_state = a(3);
        const Vector dn = dh * (1.0f - update) * (1.0f - candidate * candidate);
        const Vector dr = dn * from_state * reset * (1.0f - reset);
        const Vector dz = dh * (load(before + j) - candidate) * update * (1.0f - update);
        put(0, dr, dr), put(1, dz, dz), put(2, dn, dn * reset);
        store(carried + j, dh * update);
      } else {
        const Vector let_in = a(0), remember = a(1), candidate = a(2), let_out = a(3);
        const Vector cell = tanh(load(after + padded + j));
        const Vector dc = load(slope + padded + j) + load(carried + padded + j) +
                          dh * let_out * (1.0f - cell * cell);
        const Vector di = dc * candidate * let_in * (1.0f - let_in);
        const Vector df = dc * load(before + padded + j) * remember * (1.0f - remember);
        const Vector dg = dc * let_in * (1.0f - candidate * candidate);
        const Vector dout = dh * cell * let_out * (1.0f - let_out);
        put(0, di, di), put(1, df, df), put(2, dg, dg), put(3, dout, dout);
        store(carried + padded + j, dc * remember);
        store(carried + j, Vector{});
      }
    }
  }
};

}  // namespace
