"""What a graph does with a gradient: an optimizer's step on flat vectors."""

from __future__ import annotations

from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppo1_lightning.optimizers import TensorFlowAdam, TensorFlowRMSprop, decay_rates, step_sizes


class Step(Protocol):
    """A kind of optimizer, whose state lies in flat vectors ``[P]``.

    Attributes:
        settings: names of what a graph has in it of a parameter group, and so would not see change.
        moments: names of the state's vectors and the number that they hold at first.
    """

    settings: ClassVar[tuple[str, ...]]
    moments: ClassVar[dict[str, float]]

    def scales(self, group: dict[str, Any], t: NDArray[np.int64]) -> NDArray[np.float64]:
        """Return the two numbers that change from step to step, ``[len(t), 2]``; t is from 1."""
        ...

    def take(
        self, group: dict[str, Any], flat: Tensor, moments: Any, gradient: Tensor, scale: Tensor
    ) -> None:
        """Take a step in place."""
        ...

    def gradient(self, group: dict[str, Any], moved: Tensor, moments: Any, scale: Tensor) -> Tensor:
        """Return the gradient of a first step, which has ``moved`` the parameters."""
        ...


class AdamStep:
    """Both styles as p -= a * m / (sqrt(v) + eps), see `TensorFlowAdam`; a scale is (a, eps)."""

    settings: ClassVar[tuple[str, ...]] = (
        "betas",
        "float32_constants",
        "weight_decay",
        "amsgrad",
        "maximize",
    )
    moments: ClassVar[dict[str, float]] = {"exp_avg": 0.0, "exp_avg_sq": 0.0}

    def __init__(self, *, is_hat: bool) -> None:
        self.is_hat = is_hat

    def scales(self, group: dict[str, Any], t: NDArray[np.int64]) -> NDArray[np.float64]:
        correction = np.ones(len(t)) if self.is_hat else np.sqrt(1 - group["betas"][1] ** t)
        return np.stack([step_sizes(group, t), group["eps"] * correction], -1)

    def take(
        self, group: dict[str, Any], flat: Tensor, moments: Any, gradient: Tensor, scale: Tensor
    ) -> None:
        (mean, square), (beta1, beta2) = moments, decay_rates(group)
        step_size, epsilon = scale.unbind()
        mean.lerp_(gradient, 1 - beta1)
        square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        flat.sub_(step_size * mean / (square.sqrt() + epsilon))

    def gradient(self, group: dict[str, Any], moved: Tensor, moments: Any, scale: Tensor) -> Tensor:
        return moments[0] / (1 - decay_rates(group)[0])


class RMSpropStep:
    """`TensorFlowRMSprop`: p -= lr * g / sqrt(v + eps); a scale is (lr, eps)."""

    settings: ClassVar[tuple[str, ...]] = ("alpha",)
    moments: ClassVar[dict[str, float]] = {"square_avg": 1.0}

    def scales(self, group: dict[str, Any], t: NDArray[np.int64]) -> NDArray[np.float64]:
        return np.tile([group["lr"], group["eps"]], (len(t), 1))

    def take(
        self, group: dict[str, Any], flat: Tensor, moments: Any, gradient: Tensor, scale: Tensor
    ) -> None:
        (square,), (step_size, epsilon) = moments, scale.unbind()
        square.mul_(group["alpha"]).addcmul_(gradient, gradient, value=1 - group["alpha"])
        flat.sub_(step_size * gradient / (square + epsilon).sqrt())

    def gradient(self, group: dict[str, Any], moved: Tensor, moments: Any, scale: Tensor) -> Tensor:
        return moved * (moments[0] + scale[1]).sqrt() / scale[0]


def step_of(optimizer: torch.optim.Optimizer) -> Step | None:
    """Return an optimizer's step, None where no graph can take it."""
    kinds: dict[type, Step] = {
        torch.optim.Adam: AdamStep(is_hat=False),
        TensorFlowAdam: AdamStep(is_hat=True),
        TensorFlowRMSprop: RMSpropStep(),
    }
    return kinds.get(type(optimizer))
