"""Action distributions as pure functions of a flat parameter tensor.

The counterpart of baselines' ``common/distributions.py``. A distribution here holds only sizes;
parameters ``[..., num_parameters]``, noise and actions are arguments. Sampling is a deterministic
function of given noise, so that it can be compiled, captured and repeated on any device count.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


class Distribution(ABC):
    """A family of action distributions.

    Attributes:
        num_parameters: size of the last dimension of ``parameters``.
        noise_size: size of the last dimension of ``noise``.
    """

    @property
    @abstractmethod
    def num_parameters(self) -> int: ...

    @property
    @abstractmethod
    def noise_size(self) -> int: ...

    @abstractmethod
    def noise(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw the noise of ``shape`` actions: ``[*shape, noise_size]`` float32 on the CPU."""

    @abstractmethod
    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        """Map noise to actions ``[..., *action_shape]``."""

    @abstractmethod
    def mode(self, parameters: Tensor) -> Tensor:
        """Return the most likely actions ``[..., *action_shape]``."""

    @abstractmethod
    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        """Return log p(actions): ``[...]``."""

    @abstractmethod
    def entropy(self, parameters: Tensor) -> Tensor:
        """Return the exact entropy in nats: ``[...]``."""

    @abstractmethod
    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        """Return the exact KL(parameters || other) in nats: ``[...]``."""


@dataclass(frozen=True)
class DiagonalGaussian(Distribution):
    """Box actions ``[..., size]`` float32; parameters are the means, then the log stds."""

    size: int

    @property
    def num_parameters(self) -> int:
        return 2 * self.size

    @property
    def noise_size(self) -> int:
        return self.size

    def noise(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        return torch.randn(*shape, self.size, generator=generator)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        return mean + log_std.exp() * noise

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.chunk(2, -1)[0]

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        z = (actions - mean) / log_std.exp()
        return -(0.5 * z.square() + log_std).sum(-1) - 0.5 * math.log(2 * math.pi) * self.size

    def entropy(self, parameters: Tensor) -> Tensor:
        log_std = parameters.chunk(2, -1)[1]
        return log_std.sum(-1) + 0.5 * math.log(2 * math.pi * math.e) * self.size

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        mean, log_std = parameters.chunk(2, -1)
        other_mean, other_log_std = other.chunk(2, -1)
        spread = (2 * log_std).exp() + (mean - other_mean).square()
        return (other_log_std - log_std + 0.5 * spread / (2 * other_log_std).exp() - 0.5).sum(-1)


@dataclass(frozen=True)
class Categorical(Distribution):
    """Discrete actions ``[...]`` int64 in 0..n-1; parameters are unnormalised logits."""

    n: int

    @property
    def num_parameters(self) -> int:
        return self.n

    @property
    def noise_size(self) -> int:
        return self.n

    def noise(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        return -_exponential(*shape, self.n, generator=generator).log()  # Gumbel(0, 1)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        return (parameters + noise).argmax(-1)  # the Gumbel-max trick

    def mode(self, parameters: Tensor) -> Tensor:
        return parameters.argmax(-1)

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        log_p = F.log_softmax(parameters, -1)
        return log_p.gather(-1, actions.long().unsqueeze(-1)).squeeze(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        log_p = F.log_softmax(parameters, -1)
        return -(log_p.exp() * log_p).sum(-1)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        log_p, log_q = F.log_softmax(parameters, -1), F.log_softmax(other, -1)
        return (log_p.exp() * (log_p - log_q)).sum(-1)


@dataclass(frozen=True)
class MultiCategorical(Distribution):
    """MultiDiscrete actions ``[..., len(nvec)]`` int64; parameters are the logits, end to end."""

    nvec: tuple[int, ...]

    @property
    def num_parameters(self) -> int:
        return sum(self.nvec)

    @property
    def noise_size(self) -> int:
        return sum(self.nvec)

    def _parts(self, tensor: Tensor) -> list[tuple[Categorical, Tensor]]:
        parts = tensor.split(self.nvec, -1)
        return [(Categorical(n), part) for n, part in zip(self.nvec, parts, strict=True)]

    def noise(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        return Categorical(self.noise_size).noise(*shape, generator=generator)

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        pairs = zip(self._parts(parameters), noise.split(self.nvec, -1), strict=True)
        return torch.stack([c.sample(part, its_noise) for (c, part), its_noise in pairs], -1)

    def mode(self, parameters: Tensor) -> Tensor:
        return torch.stack([c.mode(part) for c, part in self._parts(parameters)], -1)

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        pairs = zip(self._parts(parameters), actions.unbind(-1), strict=True)
        return torch.stack([c.log_prob(part, action) for (c, part), action in pairs]).sum(0)

    def entropy(self, parameters: Tensor) -> Tensor:
        return torch.stack([c.entropy(part) for c, part in self._parts(parameters)]).sum(0)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        pairs = zip(self._parts(parameters), other.split(self.nvec, -1), strict=True)
        return torch.stack([c.kl(part, other_part) for (c, part), other_part in pairs]).sum(0)


@dataclass(frozen=True)
class Bernoulli(Distribution):
    """MultiBinary actions ``[..., n]`` int8 of 0 and 1; parameters are the logits of 1."""

    n: int

    @property
    def num_parameters(self) -> int:
        return self.n

    @property
    def noise_size(self) -> int:
        return self.n

    def noise(self, *shape: int, generator: torch.Generator | None = None) -> Tensor:
        # The difference of two Gumbel variables is logistic.
        first = _exponential(*shape, self.n, generator=generator).log()
        return first - _exponential(*shape, self.n, generator=generator).log()

    def sample(self, parameters: Tensor, noise: Tensor) -> Tensor:
        return (parameters + noise > 0).to(torch.int8)

    def mode(self, parameters: Tensor) -> Tensor:
        return (parameters > 0).to(torch.int8)

    def log_prob(self, parameters: Tensor, actions: Tensor) -> Tensor:
        return -_cross_entropy(parameters, actions.to(parameters.dtype)).sum(-1)

    def entropy(self, parameters: Tensor) -> Tensor:
        return _cross_entropy(parameters, parameters.sigmoid()).sum(-1)

    def kl(self, parameters: Tensor, other: Tensor) -> Tensor:
        p = parameters.sigmoid()
        return (_cross_entropy(other, p) - _cross_entropy(parameters, p)).sum(-1)


def _exponential(*shape: int, generator: torch.Generator | None) -> Tensor:
    """Draw from Exp(1); ``exponential_`` never returns 0, so its logarithm is finite."""
    return torch.empty(*shape).exponential_(generator=generator)


def _cross_entropy(logits: Tensor, probabilities: Tensor) -> Tensor:
    return F.softplus(logits) - probabilities * logits
