"""Memory between a policy's trunk and its heads: a GRU or an LSTM over units of rows.

The products with what comes in are taken for all rows at once; only the state's part goes step by
step. Formulas and weights are those of `torch.nn.GRU` and `torch.nn.LSTM`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ppo1_lightning.errors import LARGEST_INTEGER, check_choice, check_integer, check_memory
from ppo1_lightning.policies.state import by_time

TRAINED = 16
"""Bytes of a weight that learns: itself, its gradient and two moments."""

MOST_LAYERS = 1000
"""Of a network, at most; far more of them take minutes to make."""

Scan = Callable[[str, Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""`unrolled`, or what computes the same."""


def gru_step(gates: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the state ``[B, H]`` after a row (Cho et al. 2014, as cuDNN has it).

    Args:
        gates: ``[B, 3 H]``, what the row's input adds to reset gate, update gate and candidate.
        weight, bias: ``[3 H, H]`` and ``[3 H]`` of the state's part.
    """
    from_input, from_state = gates.chunk(3, -1), F.linear(state, weight, bias).chunk(3, -1)
    reset, update = ((i + s).sigmoid() for i, s in zip(from_input[:2], from_state[:2], strict=True))
    candidate = (from_input[2] + reset * from_state[2]).tanh()
    return candidate + update * (state - candidate)


def lstm_step(gates: Tensor, state: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return the state ``[B, 2 H]``, output and cell, after a row (Gers et al. 2000).

    Args:
        gates: ``[B, 4 H]``, what the row's input adds to input and forget gate, candidate and
            output gate.
        weight, bias: ``[4 H, H]`` and ``[4 H]`` of the state's part.
    """
    output, cell = state.chunk(2, -1)
    let_in, keep, candidate, let_out = (gates + F.linear(output, weight, bias)).chunk(4, -1)
    cell = keep.sigmoid() * cell + let_in.sigmoid() * candidate.tanh()
    return torch.cat([let_out.sigmoid() * cell.tanh(), cell], -1)


@dataclass(frozen=True)
class Cell:
    """A kind of memory: what makes its weights, its step, and the size of its state in units."""

    weights: Callable[[int, int], nn.RNNBase]
    step: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
    parts: int  # of the state, H numbers each; the first one is the output


CELLS = {"gru": Cell(nn.GRU, gru_step, 1), "lstm": Cell(nn.LSTM, lstm_step, 2)}
"""Kinds of memory by name."""


def unrolled(
    kind: str, gates: Tensor, weight: Tensor, bias: Tensor, state: Tensor, starts: Tensor
) -> Tensor:
    """Return the states ``[L, B, S]`` after each of L rows.

    Args:
        kind: one of `CELLS`.
        gates: ``[L, B, G]``, see the cell's step.
        state: ``[B, S]`` before the first row.
        starts: ``[L, B]`` bool: a row begins an episode, what was before is forgotten.
    """
    states = []
    for row, begins in zip(gates, starts.unsqueeze(-1), strict=True):
        state = CELLS[kind].step(row, state.masked_fill(begins, 0.0), weight, bias)
        states.append(state)
    return torch.stack(states)


scan: Scan = unrolled
"""How all rows of a unit are gone through; `fast.recurrence` puts an operator in its place."""


class Memory(nn.Module):
    """Layers of one kind of memory.

    Args:
        kind: ``"gru"`` or ``"lstm"``.
        num_features: of what comes in.
        hidden_size: of each layer, and of what comes out.
        num_layers: one upon the other.

    Attributes:
        state_size: numbers of the state, S: those of each layer behind one another.
    """

    def __init__(self, kind: str, num_features: int, hidden_size: int, num_layers: int) -> None:
        super().__init__()
        self.kind, self.hidden_size = kind, hidden_size
        cell = CELLS[kind]
        self.layer_state_size = cell.parts * hidden_size
        self.state_size = num_layers * self.layer_state_size
        sizes = [num_features, *[hidden_size] * (num_layers - 1)]
        self.layers = nn.ModuleList(cell.weights(size, hidden_size) for size in sizes)
        for name, parameter in self.named_parameters():
            if "weight" in name:
                nn.init.orthogonal_(parameter)
            else:
                nn.init.zeros_(parameter)
        for layer in self.layers:
            # Remember at first (Gers et al. 2000; Jozefowicz et al. 2015): update or forget gate.
            bias: Any = layer.bias_ih_l0
            nn.init.ones_(bias[hidden_size : 2 * hidden_size])

    def forward(self, features: Tensor, state: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        """Return outputs ``[L * B, hidden_size]`` and the state ``[B, S]`` after the last row.

        Args:
            features: ``[L * B, num_features]``, rows in the order of time.
            state: ``[B, S]`` before the first.
            starts: ``[L * B]`` bool, see `unrolled`.
        """
        starts = by_time(starts, state)
        after = []
        for layer, before in zip(self.layers, state.split(self.layer_state_size, -1), strict=True):
            weights: Any = layer
            gates = F.linear(features, weights.weight_ih_l0, weights.bias_ih_l0)
            hidden = weights.weight_hh_l0, weights.bias_hh_l0
            # In one precision throughout: a state that is rounded at every step goes astray.
            with torch.autocast(features.device.type, enabled=False):
                gates = by_time(gates.to(before.dtype), state)
                states = scan(self.kind, gates, *hidden, before, starts)
            after.append(states[-1])
            features = states[..., : self.hidden_size].flatten(0, 1)
        return features, torch.cat(after, -1)


@dataclass(frozen=True)
class MemoryOptions:
    """Which memory a policy has.

    Args:
        memory: ``"gru"``, ``"lstm"`` or None for none.
        memory_size: units of each layer.
        memory_layers: one upon the other.

    Raises:
        ConfigurationError: another word, or a size below 1.
    """

    memory: str | None = None
    memory_size: int = 128
    memory_layers: int = 1

    def __post_init__(self) -> None:
        if self.memory is not None:
            check_choice("policy.memory", self.memory, CELLS)
        for name, most in {"memory_size": LARGEST_INTEGER, "memory_layers": MOST_LAYERS}.items():
            value = getattr(self, name)
            size = check_integer(f"policy.{name}", value, at_least=1, at_most=most)
            object.__setattr__(self, name, size)  # 1e2 is one

    def make(self, num_features: int) -> Memory | None:
        """Return a memory for ``[..., num_features]``."""
        if self.memory is None:
            return None
        weights = 4 * self.memory_size * (num_features + 2 * self.memory_size * self.memory_layers)
        check_memory(f"policy.memory_size={self.memory_size}", weights * TRAINED)
        return Memory(self.memory, num_features, self.memory_size, self.memory_layers)

    @property
    def arguments(self) -> dict[str, Any]:
        """What makes a policy with this memory again; nothing where there is none."""
        return {} if self.memory is None else vars(self).copy()


NO_MEMORY = MemoryOptions()
