"""Adam and RMSprop with the originals' places for epsilon."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch


class TensorFlowAdam(torch.optim.Adam):
    """Adam whose epsilon is added to the *uncorrected* sqrt(v) (``common/mpi_adam.py``).

        p -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)

    That is the "epsilon hat" form of Kingma & Ba 2015, section 2. In PyTorch's parametrisation its
    epsilon is ``eps / sqrt(1 - beta2^t)``, which is all that this class changes.

    Args:
        params, lr, betas: as `torch.optim.Adam`.
        eps: the original's ``adam_epsilon``.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-5,
    ) -> None:
        super().__init__(params, lr=lr, betas=betas, eps=eps)

    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        """Take one step."""
        given = [group["eps"] for group in self.param_groups]
        for group in self.param_groups:
            first = self.state.get(group["params"][0], {})
            t = 1 + int(first.get("step", 0))
            group["eps"] /= math.sqrt(1 - group["betas"][1] ** t)
        try:
            return super().step(closure)
        finally:  # a checkpoint holds the epsilon that was asked for
            for group, eps in zip(self.param_groups, given, strict=True):
                group["eps"] = eps


class TensorFlowRMSprop(torch.optim.Optimizer):
    """RMSprop as a2c used it, TensorFlow's ``tf.train.RMSPropOptimizer`` (``a2c/a2c.py``).

        v = alpha * v + (1 - alpha) * g^2,  v = 1 at first
        p -= lr * g / sqrt(v + eps)

    `torch.optim.RMSprop` starts from v = 0, where its first steps are longer, and adds epsilon to
    the root.

    Args:
        params, lr: as `torch.optim.RMSprop`.
        alpha: decay of the mean square.
        eps: added inside of the root.
    """

    def __init__(
        self, params: Any, lr: float = 7e-4, alpha: float = 0.99, eps: float = 1e-5
    ) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "eps": eps})

    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        """Take one step."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step(parameter, parameter.grad, group)
        return loss

    @torch.no_grad()
    def _step(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict[str, Any]) -> None:
        square = self.state[parameter].setdefault("square_avg", torch.ones_like(parameter))
        square.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
        parameter.addcdiv_(gradient, (square + group["eps"]).sqrt(), value=-group["lr"])
