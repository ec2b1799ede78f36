"""Adam and RMSprop with the originals' places for epsilon, and what a gradient is clipped by."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ppo1_lightning.errors import ConfigurationError, check_flag, check_number, one_line


def make_optimizer(
    factory: Callable[..., torch.optim.Optimizer],
    parameters: Sequence[tuple[str, torch.nn.Parameter]],
    learning_rate: float,
) -> torch.optim.Optimizer:
    """Return ``factory(parameters, lr=learning_rate)``, after a step of copies that moves nothing.

    Some arguments are looked at in the first step only, and some optimizers need more than
    gradients for it.

    Raises:
        ConfigurationError: the factory or the step fails, or what is made is no optimizer.
    """
    made = getattr(factory, "func", factory)  # of a partial
    name = getattr(made, "__name__", type(made).__name__)
    try:
        optimizer = factory(parameters, lr=learning_rate)
    except Exception as error:  # whichever an optimizer has for its arguments
        raise ConfigurationError(f"optimizer: {name} cannot be made: {one_line(error)}") from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigurationError(
            f"optimizer: {name} returns a {type(optimizer).__name__}, expected a "
            "torch.optim.Optimizer; schedulers come from a configure_optimizers of your own"
        )
    try:
        _take_a_step_without_gradient(optimizer)
    except Exception as error:
        raise ConfigurationError(f"optimizer: {name} takes no step: {one_line(error)}") from error
    return optimizer


def _take_a_step_without_gradient(optimizer: torch.optim.Optimizer) -> None:
    """Let a copy of an optimizer, and of its parameters, take a step."""
    try:
        copied = copy.deepcopy(optimizer)
    except Exception:  # of what cannot be copied the run's first step has to tell
        return
    for group in copied.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.zeros_like(parameter)
    copied.step()


class TensorFlowAdam(torch.optim.Adam):
    """Adam whose epsilon is added to the *uncorrected* sqrt(v) (``common/mpi_adam.py``).

        p -= lr * sqrt(1 - beta2^t) / (1 - beta1^t) * m / (sqrt(v) + eps)

    That is the "epsilon hat" form of Kingma & Ba 2015, section 2. In PyTorch's parametrisation its
    epsilon is ``eps / sqrt(1 - beta2^t)``, which is all that this class changes.

    Args:
        params, lr, betas: as `torch.optim.Adam`.
        eps: the original's ``adam_epsilon``.
        float32_constants: keep betas and their powers in float32, as ``tf.train.AdamOptimizer``
            does (``ppo2/model.py``), where 1 - 0.999 is 0.00099998713.

    Raises:
        ConfigurationError: a value out of range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 3e-4,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-5,
        float32_constants: bool = False,
    ) -> None:
        check_flag("float32_constants", float32_constants)
        check_number("eps", eps, at_least=0)
        if not isinstance(betas, Sequence) or len(betas) != 2:
            raise ConfigurationError(f"betas={betas} is not two numbers")
        for beta in decay_rates({"betas": betas, "float32_constants": float32_constants}):
            if not 0 <= beta < 1:
                raise ConfigurationError(f"betas={betas} is out of range, expected 0 to below 1")
        super().__init__(params, lr=lr, betas=betas, eps=eps)
        self.defaults["float32_constants"] = float32_constants
        for group in self.param_groups:
            group.setdefault("float32_constants", float32_constants)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take the state of a checkpoint, also of one from before ``float32_constants``."""
        super().__setstate__(state)
        for group in self.param_groups:
            group.setdefault("float32_constants", False)

    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        """Take one step."""
        given = [{name: g[name] for name in ("lr", "betas", "eps")} for g in self.param_groups]
        for group in self.param_groups:
            first = self.state.get(group["params"][0], {})
            t = 1 + int(first.get("step", 0))
            beta1, beta2 = group["betas"] = decay_rates(group)
            correction = math.sqrt(1 - beta2**t)
            group["eps"] /= correction
            if group.get("float32_constants"):
                (step_size,) = step_sizes(group, np.array([t]))
                group["lr"] = float(step_size) * (1 - beta1**t) / correction
        try:
            return super().step(closure)
        finally:  # a checkpoint holds what was asked for
            for group, settings in zip(self.param_groups, given, strict=True):
                group.update(settings)


def decay_rates(group: Mapping[str, Any]) -> tuple[float, float]:
    """Return the betas of a group of parameters, rounded where its constants are float32."""
    beta1, beta2 = group["betas"]
    if group.get("float32_constants"):
        return float(np.float32(beta1)), float(np.float32(beta2))
    return beta1, beta2


def step_sizes(group: Mapping[str, Any], t: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return lr * sqrt(1 - beta2^t) / (1 - beta1^t) of Adam for the steps ``t``, from 1."""
    beta1, beta2 = decay_rates(group)
    if not group.get("float32_constants"):
        return group["lr"] * np.sqrt(1 - beta2**t) / (1 - beta1**t)
    first, second = (
        corrections[np.minimum(t, len(corrections)) - 1]
        for corrections in map(_float32_corrections, (beta1, beta2))
    )
    return (np.float32(group["lr"]) * np.sqrt(second) / first).astype(np.float64)


@cache
def _float32_corrections(beta: float) -> NDArray[np.float32]:
    """Return 1 - beta^t for t = 1, 2, ..., until it is 1: powers as TensorFlow multiplies them."""
    steps = 1 if beta == 0 else math.ceil(math.log(2.0**-30) / math.log(beta))
    return np.float32(1) - np.cumprod(np.full(steps, beta, np.float32), dtype=np.float32)


def clip_factor(gradients: Sequence[torch.Tensor], max_norm: float) -> torch.Tensor:
    """Return min(1, max_norm / norm) for the norm of all gradients together, a scalar.

    It is summed in float64: `torch.linalg.vector_norm` of a million float32 numbers is off by some
    1e-5, TensorFlow's ``tf.global_norm`` is not.
    """
    squares = [gradient.double().square().sum() for gradient in gradients]
    norm = torch.stack(squares).sum().sqrt()
    return (max_norm / (norm + 1e-6)).clamp(max=1.0).float()


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

    Raises:
        ConfigurationError: a value out of range.
    """

    def __init__(
        self, params: Any, lr: float = 7e-4, alpha: float = 0.99, eps: float = 1e-5
    ) -> None:
        for name, value in {"lr": lr, "alpha": alpha, "eps": eps}.items():
            check_number(name, value, at_least=0)
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
