"""What the algorithm asks of a policy, and the shape that the built-in ones share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from gymnasium import Space
from torch import Tensor, nn

from ppo1_lightning.errors import ConfigurationError, check_choice
from ppo1_lightning.functional.distributions import DiagonalGaussian, Distribution
from ppo1_lightning.policies.initialization import linear, orthogonal
from ppo1_lightning.policies.memory import NO_MEMORY, MemoryOptions
from ppo1_lightning.policies.normalization import ObservationNormalizer
from ppo1_lightning.policies.spaces import Part, distribution_for, name_of
from ppo1_lightning.policies.state import ask, initial_state, laid_out

PolicyFactory = Callable[[Space[Any], Space[Any]], nn.Module]
"""Makes a policy from (observation_space, action_space): a class, or a partial of one."""


FORBIDDEN = -1e5
"""Logit of a choice that is not allowed: its probability is 0, and no entropy becomes NaN.

Beside a lower one, float32 would lose the noise of sampling where nothing is allowed, and all
choices are equally likely.
"""


class PolicyOutput(NamedTuple):
    """What a policy returns, see `ActorCritic`; a plain tuple will do."""

    dist_params: Tensor  # [B, distribution.num_parameters], see `functional.distributions`
    values: Tensor  # [B]
    state: Any  # after the last row of a policy with memory, else what was given


class ActionOutputs(NamedTuple):
    """What a policy does in N environments."""

    actions: Tensor  # [N, ...]
    dist_params: Tensor  # [N, P] float32
    values: Tensor  # [N] float32
    state: Any  # [N, S] after it, None where none was given


def choose_actions(
    policy: Callable[..., Any],
    distribution: Distribution,
    observations: Tensor,
    noise: Tensor | None,
    state: Tensor | None = None,
    starts: Tensor | None = None,
) -> ActionOutputs:
    """Choose actions for ``[N, *observation_shape]``.

    Args:
        noise: ``[N, noise_size]``, of sampling; None takes the most likely ones.
        state, starts: ``[N, S]`` and ``[N]``, see `ask`.
    """
    dist_params, values, after = ask(policy, observations, state, starts)
    if state is not None and state.shape[-1]:
        after = laid_out(policy, after, state)
    dist_params = dist_params.float()
    mode, sample = distribution.mode, distribution.sample
    actions = mode(dist_params) if noise is None else sample(dist_params, noise)
    return ActionOutputs(actions, dist_params, values.float(), after)


EVALUATION_BATCH = 2048
"""Rows that the policy evaluates at once outside of the minibatch steps."""


@torch.no_grad()
def evaluate(
    policy: nn.Module, observations: Tensor, state: Tensor, starts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return distribution parameters ``[L * U, P]`` and values ``[L * U]``, in large batches.

    Args:
        observations, starts: L rows of each of U units, in the order of time.
        state: ``[U, S]`` before the first.
    """
    length = len(observations) // len(state)
    at_once = max(1, EVALUATION_BATCH // length)
    units = (field.unflatten(0, (length, -1)) for field in (observations, starts))
    parts = zip(*(field.split(at_once, 1) for field in units), state.split(at_once), strict=True)
    outputs = [ask(policy, o.flatten(0, 1), its_state, s.flatten()) for o, s, its_state in parts]
    dist_params, values = (
        torch.cat([output[i].unflatten(0, (length, -1)) for output in outputs], 1).flatten(0, 1)
        for i in (0, 1)
    )
    return dist_params.float(), values.float()


def separate_parameters(
    policy: nn.Module, observations: Tensor
) -> tuple[list[str], list[str]] | None:
    """Return the names of the parameters that choose actions, and of those that estimate values.

    None where a parameter does both, or neither: then they cannot be taken apart. Frozen ones are
    left out.
    """
    learning = {name: p for name, p in policy.named_parameters() if p.requires_grad}
    names, tensors = list(learning), list(learning.values())

    def used_by(output: Tensor) -> list[str]:
        gradients = torch.autograd.grad(output.sum(), tensors, allow_unused=True, retain_graph=True)
        pairs = zip(names, gradients, strict=True)
        return [name for name, gradient in pairs if gradient is not None]

    with torch.inference_mode(False), torch.enable_grad():
        state = initial_state(policy, len(observations))
        starts = torch.zeros(len(observations), dtype=torch.bool, device=state.device)
        dist_params, values, _ = ask(policy, observations.clone(), state, starts)
        if not (dist_params.requires_grad and values.requires_grad):
            return None
        acting, valuing = used_by(dist_params), used_by(values)
    return (acting, valuing) if sorted(acting + valuing) == sorted(names) else None


class ActorCritic(nn.Module):
    """Trunk(s), perhaps with memory, an action head and a value head.

    Any ``nn.Module`` whose ``forward(observation [B, ...], state)`` returns
    ``(dist_params, values, state)`` can take its place. An ``observation_normalizer`` attribute, if
    it has one, is updated by the algorithm with every rollout, before the policy learns from it.

    One with memory has a ``state_size`` S above 0 and ``forward(observations [L * B, ...], state
    [B, S], starts [L * B])``: L rows of each of B environments in the order of time, the state
    before the first, and where an episode begins and the state is to be forgotten. It returns the
    state after the last row. Episodes begin with zeros; ``state_dtype`` is float32 unless it says
    otherwise.

    Args:
        action_space: Box, Discrete, MultiDiscrete or MultiBinary.
        trunk: from preprocessed observations to features ``[B, num_features]``.
        value_trunk: the value function's own trunk; None shares ``trunk``.
        num_features: of each trunk.
        memory: of each trunk, behind it.
        observation_normalizer: None where observations are taken as they are.
        action_mask: the part of the observations that says, for each distribution parameter of a
            discrete action space, whether it stands for an allowed choice (1) or not (0).

    Raises:
        ConfigurationError: a mask that does not fit the action space.
    """

    arguments: dict[str, Any]
    """Keyword arguments that rebuild this policy, plain values: what a checkpoint stores."""

    def __init__(
        self,
        action_space: Space[Any],
        trunk: nn.Module,
        value_trunk: nn.Module | None,
        num_features: int,
        observation_normalizer: ObservationNormalizer | None = None,
        action_mask: Part | None = None,
        memory: MemoryOptions = NO_MEMORY,
    ) -> None:
        super().__init__()
        distribution = distribution_for(action_space)
        gaussian = isinstance(distribution, DiagonalGaussian)
        if action_mask is not None:
            _check_mask(action_mask, action_space)
        self.action_mask = action_mask
        self.observation_normalizer = observation_normalizer
        self.trunk = trunk
        self.value_trunk = value_trunk
        self.memory = memory.make(num_features)
        self.value_memory = memory.make(num_features) if value_trunk is not None else None
        memories = [part for part in (self.memory, self.value_memory) if part is not None]
        self.state_sizes = [part.state_size for part in memories]
        self.state_size = sum(self.state_sizes)
        num_features = memory.memory_size if memories else num_features
        outputs = distribution.size if gaussian else distribution.num_parameters
        self.action_head = linear(num_features, outputs, scale=0.01)
        self.value_head = linear(num_features, 1, scale=1.0)
        # One log std per action, whatever the observation (``gaussian_fixed_var`` in the original).
        self.log_std = nn.Parameter(torch.zeros(outputs)) if gaussian else None

    def initialize(self, initialization: str) -> None:
        """Start from other weights than the ``"original"`` ones.

        Args:
            initialization: ``"orthogonal"`` as in ppo2: trunks times √2, the action head times
                0.01, the value head times 1.

        Raises:
            ConfigurationError: another word.
        """
        check_choice("policy.initialization", initialization, ("original", "orthogonal"))
        if initialization == "orthogonal":
            for trunk in filter(None, (self.trunk, self.value_trunk)):
                orthogonal(trunk)
            orthogonal(self.action_head, 0.01)
            orthogonal(self.value_head, 1.0)

    def preprocess(self, observation: Tensor) -> Any:
        """Prepare observations ``[B, ...]`` for the trunks."""
        if self.observation_normalizer is None:
            return observation
        return self.observation_normalizer(observation)

    def forward(
        self, observation: Tensor, state: Tensor | None = None, starts: Tensor | None = None
    ) -> PolicyOutput:
        """Evaluate observations ``[L * B, ...]``; without memory, ``[B, ...]``."""
        inputs = self.preprocess(observation)
        features = self.trunk(inputs)
        value_features = None if self.value_trunk is None else self.value_trunk(inputs)
        if self.memory is not None:
            features, value_features, state = self._remember(
                features, value_features, state, starts
            )
        if value_features is None:
            value_features = features
        dist_params = self.action_head(features)
        if self.log_std is not None:
            dist_params = torch.cat([dist_params, self.log_std.expand_as(dist_params)], -1)
        if self.action_mask is not None:
            forbidden = observation[:, self.action_mask.columns] == 0
            dist_params = dist_params.float().masked_fill(forbidden, FORBIDDEN)
        return PolicyOutput(dist_params, self.value_head(value_features).squeeze(-1), state)

    def _remember(
        self, features: Tensor, value_features: Tensor | None, state: Any, starts: Any
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """Return what each memory makes of its trunk's features, and their states after it."""
        assert self.memory is not None
        own, *other = state.split(self.state_sizes, -1)
        features, after = self.memory(features, own, starts)
        if self.value_memory is None or value_features is None:
            return features, None, after
        value_features, value_after = self.value_memory(value_features, other[0], starts)
        return features, value_features, torch.cat([after, value_after], -1)


def _check_mask(mask: Part, action_space: Space[Any]) -> None:
    distribution = distribution_for(action_space)
    (size,) = mask.space.shape
    if isinstance(distribution, DiagonalGaussian) or size != distribution.num_parameters:
        raise ConfigurationError(
            f"the observation's action_mask has {size} numbers and cannot mask "
            f"{name_of(action_space)}, expected one for each choice; env.observation_keys can "
            "leave it out"
        )
