"""What a user changes in the middle of a run, or brings along, holds on each path."""

from __future__ import annotations

import copy
import pickle
import re
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from golden_replay import path_of
from lightning import Callback, Trainer
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.nn.utils.parametrizations import weight_norm

from ppo1_lightning import PPO, TRPO, MlpPolicy, RolloutDataModule
from ppo1_lightning.algorithms.coefficients import Coefficients
from ppo1_lightning.algorithms.on_policy import OnPolicyModule
from ppo1_lightning.fast import check
from ppo1_lightning.fast.reads import Reads
from ppo1_lightning.rollouts.segment import Minibatch

pytestmark = pytest.mark.heavy

Small = partial(MlpPolicy, hidden_size=8)
PATHS = pytest.mark.parametrize("path", [False, "trace"])


class After(Callback):
    """Calls a function with the module and the number of iterations, after each of them."""

    def __init__(self, change: Callable[[Any, int], None]) -> None:
        self.change = change

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        self.change(pl_module, pl_module.counters.iterations)


def fit(module: OnPolicyModule, change: Callable[[Any, int], None], iterations: int = 4) -> Any:
    data = RolloutDataModule("CartPole-v1", num_envs=4, num_steps=16, total_iterations=iterations)
    options: Any = {"logger": False, "enable_checkpointing": False, "max_epochs": -1}
    Trainer(accelerator="cpu", callbacks=[After(change)], **options).fit(module, data)
    return module


def ppo(kind: type[PPO] = PPO, **options: Any) -> PPO:
    return kind(**{"policy": Small, "minibatch_size": 32, "update_epochs": 1, **options})


def nothing(module: Any, iteration: int) -> None:
    """Change nothing."""


def test_a_coefficient_that_begins_as_a_whole_number_changes_to_any() -> None:
    now = Coefficients(ent_coef=0)
    now.put("ent_coef", 0.5)
    assert now.ent_coef == 0.5


class OfItsCounters(PPO):
    def loss(self, batch: Minibatch) -> Tensor:
        return super().loss(batch) * (self.counters.iterations == 0)


@pytest.mark.slow
def test_counters_that_a_loss_reads_are_followed() -> None:
    ours = [fit(ppo(OfItsCounters, compile=path), nothing) for path in (False, "trace")]
    eager, traced = (m.policy.state_dict() for m in ours)
    for name, parameter in eager.items():
        torch.testing.assert_close(traced[name], parameter, rtol=1e-5, atol=1e-6)


class OfTheHead(PPO):
    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.policy.value_head.parameters())  # type: ignore[union-attr]


@PATHS
def test_a_group_that_joins_the_optimizer_learns(path: Any) -> None:
    def join(module: Any, iteration: int) -> None:
        head = module.policy.action_head
        if iteration == 2:
            optimizer = module.optimizers(use_pl_optimizer=False)
            optimizer.add_param_group({"params": list(head.parameters())})
            module.was = head.weight.detach().clone()

    module = fit(ppo(OfTheHead, compile=path), join)
    assert not torch.equal(module.policy.action_head.weight, module.was)


def test_parameters_freeze_and_thaw() -> None:
    kept: list[Tensor] = []

    def change(module: Any, iteration: int) -> None:
        module.policy.action_head.weight.requires_grad_(iteration != 2)
        kept.append(module.policy.action_head.weight.detach().clone())

    fit(ppo(compile=False), change)
    learned = [not torch.equal(a, b) for a, b in pairwise(kept)]
    assert learned == [True, False, True]


class Tempered(MlpPolicy):
    temperature = 1.0

    def forward(self, observation: Tensor, state: Any = None) -> Any:  # type: ignore[override]
        dist_params, values, state = super().forward(observation, state)
        return dist_params + self.temperature, values, state


def test_a_policy_acts_by_what_it_reads_now() -> None:
    acted: list[bool] = []

    class Watched(PPO):
        def begin(self, rollout: Any) -> Any:
            acted.append(bool(rollout.dist_params.mean() > 10))
            return super().begin(rollout)

    def heat(module: Any, iteration: int) -> None:
        module.policy.temperature = 20.0

    fit(ppo(Watched, policy=Tempered, compile="trace"), heat)
    assert acted[2:] == [True, True]


def decayed(named: Any, lr: float) -> torch.optim.Optimizer:
    parameters = [parameter for _, parameter in named]
    groups: Any = [
        {"params": parameters[::2], "weight_decay": 0.1},
        {"params": parameters[1::2], "weight_decay": 0.0, "lr": lr / 10},
    ]
    return torch.optim.AdamW(groups, lr=lr)


def prune_in_the_second(module: Any, iteration: int) -> None:
    layer = next(part for part in module.policy.modules() if isinstance(part, nn.Linear))
    if iteration == 2:
        prune.l1_unstructured(layer, "weight", amount=0.5)


@pytest.mark.parametrize(
    "make", [ppo, lambda **options: TRPO(Small, minibatch_size=32, **options)], ids=["ppo", "trpo"]
)
def test_what_is_pruned_stays_so(make: Callable[..., Any]) -> None:
    """It leaves another parameter behind, and a plain tensor under the old name."""
    ours = [fit(make(compile=path), prune_in_the_second) for path in (False, "trace")]
    eager, traced = (m.policy.state_dict() for m in ours)
    assert any(name.endswith("weight_mask") for name in eager)
    for name, parameter in eager.items():
        torch.testing.assert_close(traced[name], parameter, rtol=1e-5, atol=1e-6)


class Parametrized(MlpPolicy):
    """Its action head's weight is made of a direction and a length."""

    def __init__(self, *spaces: Any) -> None:
        super().__init__(*spaces, hidden_size=8)
        weight_norm(self.action_head)


@pytest.mark.parametrize("kind", [PPO, partial(TRPO, vf_iters=1)])
def test_a_parametrized_policy_learns_and_acts_as_graphs(
    kind: Any, caplog: pytest.LogCaptureFixture
) -> None:
    options: Any = {"policy": Parametrized, "minibatch_size": 32}
    ours = [fit(kind(compile=path, **options), nothing, 2) for path in (False, "trace")]
    for eager, traced in zip(*(m.policy.parameters() for m in ours), strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-6)
    assert not [r for r in caplog.records if "from here on" in r.getMessage()]


def test_it_is_told_that_the_policy_acts_as_a_module_from_here_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Scaled(MlpPolicy):
        scale = 1.0

        def preprocess(self, observation: Tensor) -> Tensor:
            return super().preprocess(observation) * self.scale

    def change(module: Any, iteration: int) -> None:
        module.policy.scale = 1.0 if iteration < 2 else 2.0

    fit(ppo(policy=Scaled, compile="trace"), change)
    told = [r.getMessage() for r in caplog.records if r.getMessage().startswith("acting:")]
    assert told == ["acting: as a module from here on, for Scaled.scale has changed"]


def test_the_entropy_bonus_of_trpo_is_annealed() -> None:
    options: Any = {"minibatch_size": 32, "ent_coef": 0.5, "anneal": ["ent_coef"]}
    options["cg_iters"] = 3  # the last steps of ten make much of a float32's rounding
    ours = [fit(TRPO(Small, compile=path, **options), nothing) for path in (False, "trace")]
    assert ours[0].now.ent_coef == ours[1].now.ent_coef == 0.125  # 4 iterations, begun with 3/4
    for eager, traced in zip(*(m.policy.parameters() for m in ours), strict=True):
        torch.testing.assert_close(traced, eager, rtol=1e-5, atol=1e-6)


def test_weights_that_are_no_longer_shared_are_seen() -> None:
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight, tied = first.weight, nn.Sequential(first, second)
    reads = Reads()
    with reads.recorded(tied):
        tied(torch.zeros(2))
    assert reads.changed() is None
    second.weight = nn.Parameter(first.weight.detach().clone())
    assert reads.changed() == "the parameters of Sequential"


def test_several_groups_keep_their_settings() -> None:
    groups = fit(ppo(optimizer=decayed), nothing).own_optimizer.param_groups
    found = [(group["weight_decay"], group["lr"]) for group in groups]
    assert found == [(0.1, 3e-4), (0.0, pytest.approx(3e-5))]


def test_returns_that_do_not_vary_are_no_divergence() -> None:
    assert fit(ppo(gamma=0.0), nothing).counters.iterations == 4


def test_copies_leave_the_trainer_behind() -> None:
    copies: list[Any] = []

    def duplicate(module: Any, iteration: int) -> None:
        copies[:] = copy.deepcopy(module), pickle.loads(pickle.dumps(module))

    module = TRPO(Small, minibatch_size=32, vf_iters=1, compile="trace")
    fit(module, duplicate, iterations=2)
    for other in copies:
        own = set(map(id, other.policy.parameters()))
        assert {id(p) for p in other.acting_parameters.parameters} <= own
        assert other._trainer is None


def test_trpo_leaves_frozen_parameters_and_takes_an_optimizer_of_the_users() -> None:
    class Frozen(MlpPolicy):
        def __init__(self, *spaces: Any) -> None:
            super().__init__(*spaces, hidden_size=8)
            self.action_head.bias.requires_grad_(False)

    class Own(TRPO):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.policy.value_head.parameters())  # type: ignore[union-attr]

    module = fit(Own(Frozen, minibatch_size=32, vf_iters=1), nothing)
    assert module.policy.action_head.bias.eq(0).all()
    assert module.metrics["step_size"] > 0


def test_a_checkpoint_names_the_optimizer_where_it_is_a_class() -> None:
    assert TRPO(Small).optimizer_name == "TensorFlowAdam"
    assert PPO(Small, optimizer=partial(torch.optim.Adam, eps=1.0)).optimizer_name == "Adam"
    assert PPO(Small, optimizer=decayed).optimizer_name is None


class OfAGlobal(PPO):
    """A loss that reads what no graph sees and no attribute holds."""

    def loss(self, batch: Minibatch) -> Tensor:
        return super().loss(batch) * FACTOR["now"]


FACTOR = {"now": 1.0}


def test_what_no_graph_sees_is_found_by_comparing_gradients_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The run goes on eagerly from before the step that was compared."""
    monkeypatch.setattr(check, "COMPARED_AGAIN_AFTER", 4)  # two iterations
    paths = []

    def change(module: Any, iteration: int) -> None:
        paths.append(path_of(module))
        FACTOR["now"] = 1.0 if iteration < 2 else 30.0

    ours = []
    for path in (False, "trace"):
        monkeypatch.setitem(FACTOR, "now", 1.0)
        ours.append(fit(ppo(OfAGlobal, compile=path, ent_coef=0.1), change).policy.state_dict())
    eager, traced = ours
    for name, parameter in eager.items():
        torch.testing.assert_close(traced[name], parameter, rtol=1e-5, atol=1e-6)
    assert paths == ["eager"] * 4 + ["traced"] * 2 + ["eager"] * 2
    (record,) = [r for r in caplog.records if "eager from here on" in r.getMessage()]
    assert re.search(r"the gradient of policy\.\S+ differs from the eager one", record.getMessage())
    assert record.getMessage().endswith("(after 4 steps)")


def test_a_gradient_that_is_the_eager_one_is_compared_once_more_and_no_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(check, "COMPARED_AGAIN_AFTER", 3)
    compared = []
    monkeypatch.setattr(check, "compare_gradients", lambda *_: compared.append(steps[-1]))
    steps = [0]
    module = fit(ppo(compile="trace"), lambda module, iteration: steps.append(2 * iteration))
    assert compared == [0, 4]
    assert module.counters.iterations == 4
