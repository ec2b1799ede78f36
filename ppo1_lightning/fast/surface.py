"""What a trust region step asks of gain and KL divergence, as graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import grad, grad_and_value

from ppo1_lightning.fast import check
from ppo1_lightning.fast.compiler import Compiled, Run
from ppo1_lightning.fast.graphs import Graph, ModuleCall
from ppo1_lightning.fast.reads import Reads


class SurfaceGraphs:
    """Makes a `algorithms.surface.Surface` of graphs for each two minibatches.

    Args:
        objective: a module; called with a minibatch's tensors it returns this rank's shares of
            gain and KL, scalars.
        parameters: with respect to which, in the order in which the module names them.
        batches: the first minibatch and the one of the Fisher matrix, see `algorithms.trpo`.
        compiled: see `Graph`.
    """

    def __init__(
        self,
        objective: nn.Module,
        parameters: Sequence[nn.Parameter],
        batches: Sequence[Sequence[Tensor]],
        *,
        compiled: Compiled,
    ) -> None:
        self._call, self._reads = ModuleCall(objective, parameters), Reads()
        assert all(a is b for a, b in zip(parameters, self._call.learning.values(), strict=True))
        self.parameters, self.names = parameters, [*self._call.learning]
        flat = torch.cat([p.detach().flatten() for p in parameters])
        vector, gradient, product = (torch.empty_like(flat) for _ in range(3))
        # Where graphs read and write them: they stay where they are.
        self._inputs = flat, vector
        self._results = flat.new_empty(()), gradient, product, flat.new_empty(2)
        self._graphs = [
            Graph(function, module=self._call, compiled=compiled, sums_in_double=True)
            for function in (self._write_gradient, self._write_product, self._write_value)
        ]
        with check.buffers_unchanged(self._call), self._reads.recorded(objective):
            self(*batches)

    def outdated(self) -> str | None:
        """Return the name of what has changed since the graphs were traced, None for nothing."""
        return self._reads.changed()

    def __call__(self, batch: Sequence[Tensor], fisher_batch: Sequence[Tensor]) -> GraphSurface:
        """Return the graphs for two minibatches that are laid out as the first ones.

        There is one surface at a time: they share what their results are written into.
        """
        others = self._call.others()
        (flat, vector), (gain, gradient, product, both) = self._inputs, self._results
        fixed = (flat, gain, gradient), (flat, vector, product), (flat, both)
        given = batch, fisher_batch, batch
        with torch.inference_mode():
            runs = [
                graph.bind((*its_own, *others), [tensor[None] for tensor in minibatch])
                for graph, its_own, minibatch in zip(self._graphs, fixed, given, strict=True)
            ]
        return GraphSurface(self.parameters, runs, self._inputs, self._results)

    # ---------------------------------------------------------------- what the graphs hold

    def _write_gradient(self, flat: Tensor, gain: Tensor, gradient: Tensor, *given: Tensor) -> None:
        slope, reached = grad_and_value(lambda flat: self._gain_and_kl(flat, given)[0])(flat)
        gain.copy_(reached)
        gradient.copy_(slope)

    def _write_product(self, flat: Tensor, vector: Tensor, product: Tensor, *given: Tensor) -> None:
        slope = grad(lambda flat: self._gain_and_kl(flat, given)[1])
        product.copy_(grad(lambda flat: slope(flat) @ vector)(flat))

    def _write_value(self, flat: Tensor, both: Tensor, *given: Tensor) -> None:
        both.copy_(torch.stack(self._gain_and_kl(flat, given)))

    def _gain_and_kl(self, flat: Tensor, given: Sequence[Tensor]) -> Any:
        count, shapes = self._call.num_others, self._call.learning.values()
        pieces = flat.split([shape.numel() for shape in shapes])
        views = [piece.view(shape.shape) for piece, shape in zip(pieces, shapes, strict=True)]
        return self._call(views, given[:count], *given[count:])


class GraphSurface:
    """Gain and KL of two minibatches as graphs.

    Args:
        parameters: which the graphs are to see as they are when asked.
        runs: gain and gradient, a product, gain and KL.
        inputs: parameters and a vector, ``[P]`` each, that the graphs read.
        results: gain, gradient ``[P]``, product ``[P]`` and both ``[2]``, that they write.
    """

    def __init__(
        self,
        parameters: Sequence[nn.Parameter],
        runs: Sequence[Run],
        inputs: tuple[Tensor, Tensor],
        results: tuple[Tensor, Tensor, Tensor, Tensor],
    ) -> None:
        self._parameters, self._runs = parameters, runs
        self._flat, self._vector = inputs
        self._gain, self._gradient, self._product, self._both = results

    def gain_and_gradient(self) -> tuple[Tensor, Tensor]:
        """Return the gain, a scalar, and its gradient ``[P]``."""
        self._run(0)
        return self._gain.clone(), self._gradient.clone()

    def hessian(self) -> Callable[[Tensor], Tensor]:
        """Return what multiplies a vector ``[P]`` by the KL's Hessian at the parameters."""
        self._look()

        def product(vector: Tensor) -> Tensor:
            with torch.inference_mode():
                self._vector.copy_(vector)
                self._runs[1](0, 1)
            return self._product.clone()

        return product

    def gain_and_kl(self) -> Tensor:
        """Return both: ``[2]``."""
        self._run(2)
        return self._both.clone()

    def _run(self, number: int) -> None:
        self._look()
        with torch.inference_mode():
            self._runs[number](0, 1)

    @torch.no_grad()
    def _look(self) -> None:
        torch.cat([parameter.flatten() for parameter in self._parameters], out=self._flat)
