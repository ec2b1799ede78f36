"""The package as a library: a plain Trainer, a user's own parts, checkpoints; no Hydra."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.spaces import Box, Discrete
from lightning import Callback, LightningModule, Trainer
from torch import Tensor, nn

import ppo1_lightning
from ppo1_lightning import PPO, ConfigurationError, MlpPolicy, RolloutDataModule
from ppo1_lightning.rollouts.segment import Minibatch

pytestmark = pytest.mark.heavy

NUM_ENVS, NUM_STEPS, ROWS = 4, 32, 128
STEPS_AN_ITERATION = 8  # optimizer steps: 128 rows / 32 in a minibatch, 2 epochs
SmallMlp = partial(MlpPolicy, hidden_size=8)


class OwnPolicy(nn.Module):
    """A user's policy: no base class of ours, and a plain tuple from ``forward``."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        super().__init__()
        self.actor = nn.Linear(observation_space.shape[0], int(action_space.n))
        self.critic = nn.Linear(observation_space.shape[0], 1)

    def forward(self, observation: Tensor, state: Any) -> tuple[Tensor, Tensor, Any]:
        return self.actor(observation), self.critic(observation).squeeze(-1), state


class Observer(Callback):
    """Counts iterations, keeps the optimizer's state at the start, saves in the middle."""

    def __init__(self, save_at: int = 0, path: Path | None = None) -> None:
        self.save_at, self.path = save_at, path
        self.iterations = 0
        self.initial: list[dict[str, Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        states = trainer.optimizers[0].state.values()
        self.initial = [{name: torch.as_tensor(v).clone() for name, v in s.items()} for s in states]

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.iterations += 1
        if self.iterations == self.save_at and self.path is not None:
            trainer.save_checkpoint(self.path)


def make_ppo(policy: Any = SmallMlp, kind: type[PPO] = PPO, **options: Any) -> PPO:
    return kind(policy, minibatch_size=32, update_epochs=2, learning_rate=1e-2, **options)


def fit(
    ppo: PPO,
    *,
    env: str = "CartPole-v1",
    iterations: int = 4,
    max_epochs: int = 1,
    ckpt_path: Path | None = None,
    observer: Observer | None = None,
) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=max_epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[] if observer is None else [observer],
    )
    data = RolloutDataModule(
        env, num_envs=NUM_ENVS, num_steps=NUM_STEPS, total_iterations=iterations
    )
    trainer.fit(ppo, data, ckpt_path=ckpt_path)
    return trainer


class Saved:
    """A finished run and its checkpoints: after 2 of 4 iterations, and at the end."""

    def __init__(self, folder: Path, policy: Any) -> None:
        self.middle, self.end = folder / "middle.ckpt", folder / "end.ckpt"
        self.ppo = make_ppo(policy, gamma=0.9)
        self.observer = Observer(save_at=2, path=self.middle)
        self.trainer = fit(self.ppo, observer=self.observer)
        self.trainer.save_checkpoint(self.end)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("built_in"), SmallMlp)


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Saved:
    return Saved(tmp_path_factory.mktemp("own"), OwnPolicy)


def parameters(ppo: PPO) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in ppo.policy.named_parameters()}


def initial_policy(policy: Any) -> PPO:
    """Return a PPO with the weights that every run of seed 0 starts from."""
    spaces = {"observation_space": Box(-1, 1, (4,)), "action_space": Discrete(2)}
    ppo = make_ppo(policy, **spaces)
    ppo.configure_model()
    return ppo


# -------------------------------------------------------------------- importing


def test_importing_the_library_imports_no_simulator_no_hydra_and_no_plotting():
    code = """
import sys, lightning  # imports matplotlib by itself where that is installed
before = set(sys.modules)
from ppo1_lightning import *
print(*{name.partition(".")[0] for name in set(sys.modules) - before})
assert not {"hydra", "envpool"} & set(sys.modules)
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    imported = result.stdout.split()
    assert "ppo1_lightning" in imported
    assert {"hydra", "envpool", "matplotlib"}.isdisjoint(imported)


@pytest.mark.slow
def test_a_public_name_is_imported_when_it_is_asked_for():
    code = """
import sys, ppo1_lightning
assert set(ppo1_lightning.__all__) <= set(dir(ppo1_lightning))
assert "torch" not in sys.modules
for name in ppo1_lightning.__all__:
    assert getattr(ppo1_lightning, name).__name__ == name
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    with pytest.raises(AttributeError, match="'ppo1_lightning' has no attribute 'PP0'"):
        ppo1_lightning.PP0  # noqa: B018


# -------------------------------------------------------------------- a user's own parts


def test_own_policy_with_a_plain_trainer(own: Saved):
    counters = own.ppo.counters
    assert (counters.iterations, counters.env_steps) == (4, 4 * ROWS)
    assert own.observer.iterations == own.trainer.global_step == 4
    assert 0 < counters.transitions <= counters.env_steps
    assert counters.episodes > 0
    assert own.ppo.metrics["env_steps"] == 4 * ROWS
    assert 8 < own.ppo.metrics["episode_return_mean"] < 100
    assert own.trainer.callback_metrics["episode_return_mean"] > 8
    before = parameters(initial_policy(OwnPolicy))
    for name, parameter in parameters(own.ppo).items():
        assert parameter.isfinite().all()
        assert (parameter != before[name]).any(), name


def test_normalizer_saw_every_transition_once(saved: Saved):
    assert isinstance(saved.ppo.policy, MlpPolicy)
    normalizer = saved.ppo.policy.observation_normalizer
    assert normalizer is not None
    assert normalizer.count.item() == pytest.approx(saved.ppo.counters.transitions + 1e-2)
    assert saved.ppo.counters.transitions < 4 * ROWS  # there were resets


class ValueOnly(PPO):
    def loss(self, batch: Minibatch) -> Tensor:
        _, values = self.outputs(batch)
        return (batch.weights * (values - 7).square()).sum()


def test_overridden_loss_is_what_is_minimised():
    ppo = make_ppo(OwnPolicy, ValueOnly)
    fit(ppo, iterations=2)
    before, after = parameters(initial_policy(OwnPolicy)), parameters(ppo)
    for name in before:
        assert torch.equal(before[name], after[name]) is name.startswith("actor"), name
    assert after["critic.bias"] > before["critic.bias"]


class PartlyFrozenPolicy(OwnPolicy):
    def __init__(self, observation_space: Any, action_space: Any) -> None:
        super().__init__(observation_space, action_space)
        self.actor.bias.requires_grad_(False)


def test_frozen_parameters_stay_as_they_are():
    ppo = make_ppo(PartlyFrozenPolicy)
    fit(ppo, iterations=1)
    before, after = parameters(initial_policy(OwnPolicy)), parameters(ppo)
    assert torch.equal(before["actor.bias"], after["actor.bias"])
    assert not torch.equal(before["actor.weight"], after["actor.weight"])


@pytest.mark.parametrize(
    "options",
    [
        {"max_grad_norm": 0},
        {"value_clip": 0.0},
        {"target_kl": 0},
        {"target_kl": -0.1},
        {"compile": "False"},
        {"compile": None},
        {"learning_rate": float("nan")},
        {"gamma": 1.5},
        {"clip_coef": "0.2"},
        {"anneal": "learning_rate"},
        {"normalize_advantages": True},
        {"bootstrap_truncation": 1},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused_in_one_line(options: dict[str, Any]):
    ((name, value),) = options.items()
    with pytest.raises(ConfigurationError, match=f"^{name}={value!r} ") as error:
        PPO(MlpPolicy, **options)
    assert "\n" not in str(error.value)


# -------------------------------------------------------------------- checkpoints


def assert_same_outputs(ours: PPO, theirs: PPO) -> None:
    observations = 3 * torch.randn(20, 4, generator=torch.Generator().manual_seed(0))
    for one, other in zip(ours(observations)[:2], theirs(observations)[:2], strict=True):
        assert torch.equal(one, other)


def test_checkpoint_gives_back_policy_counters_and_options(saved: Saved):
    loaded = PPO.load_from_checkpoint(saved.end, weights_only=True)
    assert_same_outputs(loaded, saved.ppo)
    assert loaded.counters == saved.ppo.counters
    assert loaded.episodes.state_dict() == saved.ppo.episodes.state_dict()
    assert loaded.gamma == 0.9
    assert loaded.hparams == saved.ppo.hparams
    middle = PPO.load_from_checkpoint(saved.middle, weights_only=True)
    assert middle.counters.iterations == 2


def test_own_policy_has_to_be_passed(own: Saved):
    with pytest.raises(ConfigurationError, match=r"class OwnPolicy.*policy=OwnPolicy\)$") as error:
        PPO.load_from_checkpoint(own.end, weights_only=True)
    assert "\n" not in str(error.value)
    loaded = PPO.load_from_checkpoint(own.end, policy=OwnPolicy, weights_only=True)
    assert_same_outputs(loaded, own.ppo)
    assert loaded.counters == own.ppo.counters


PLAIN = (dict, OrderedDict, list, tuple, str, int, float, bool, type(None), Tensor)


def unusual_parts(value: Any, path: str = "checkpoint") -> list[str]:
    found = [] if type(value) in PLAIN else [f"{path}: {type(value)}"]
    if isinstance(value, dict):
        items = [*value.items()]
    elif isinstance(value, list | tuple):
        items = [*enumerate(value)]
    else:
        return found
    return found + [part for key, v in items for part in unusual_parts(v, f"{path}[{key!r}]")]


@pytest.mark.parametrize("which", ["saved", "own"])
def test_checkpoint_holds_plain_containers_only(which: str, request: pytest.FixtureRequest):
    run: Saved = request.getfixturevalue(which)
    for path in (run.middle, run.end):
        assert unusual_parts(torch.load(path, weights_only=True)) == []
        assert unusual_parts(torch.load(path, weights_only=False)) == []


@pytest.mark.parametrize(
    ("which", "total", "max_epochs"),
    [("middle", 4, 1), ("middle", 4, -1), ("end", 6, -1)],
    ids=["interrupted", "interrupted, any epochs", "finished, larger budget"],
)
def test_resumed_run_goes_on(saved: Saved, which: str, total: int, max_epochs: int):
    path: Path = getattr(saved, which)
    done = {"middle": 2, "end": 4}[which]
    checkpoint = torch.load(path, weights_only=True)
    ppo, observer = make_ppo(gamma=0.9), Observer()
    trainer = fit(ppo, iterations=total, max_epochs=max_epochs, ckpt_path=path, observer=observer)

    started_from = checkpoint["optimizer_states"][0]["state"].values()
    assert len(observer.initial) == len(list(ppo.policy.parameters()))
    for ours, theirs in zip(observer.initial, started_from, strict=True):
        assert ours["step"] == done * STEPS_AN_ITERATION
        for name, tensor in theirs.items():
            assert torch.equal(ours[name], torch.as_tensor(tensor)), name

    assert observer.iterations == total - done
    assert ppo.counters.iterations == trainer.global_step == total
    assert ppo.counters.env_steps == ppo.metrics["env_steps"] == total * ROWS
    counters = checkpoint["ppo1_lightning"]["counters"]
    assert ppo.counters.transitions > counters["transitions"]
    assert ppo.counters.seconds > counters["seconds"]
    assert ppo.counters.episodes >= counters["episodes"] > 0
    steps = {int(state["step"]) for state in trainer.optimizers[0].state.values()}
    assert steps == {total * STEPS_AN_ITERATION}


def test_finished_run_has_nothing_left(saved: Saved):
    ppo, observer = make_ppo(gamma=0.9), Observer()
    fit(ppo, iterations=4, max_epochs=-1, ckpt_path=saved.end, observer=observer)
    assert observer.iterations == 0
    assert_same_outputs(ppo, saved.ppo)


def test_linear_schedule_follows_the_whole_run(saved: Saved):
    ppo = make_ppo(anneal=["learning_rate"], gamma=0.9)
    fit(ppo, ckpt_path=saved.middle)
    assert ppo.metrics["learning_rate"] == pytest.approx(1e-2 / 4)  # of the last of 4 iterations


@pytest.mark.parametrize(
    ("env", "policy", "message"),
    [
        ("Acrobot-v1", SmallMlp, "from another environment: .*CartPole-v1.*Acrobot-v1"),
        ("CartPole-v0", SmallMlp, "from another environment: .*CartPole-v1.*CartPole-v0"),
        ("CartPole-v1", MlpPolicy, "from another policy: .*'hidden_size': 8.*'hidden_size': 64"),
        ("CartPole-v1", OwnPolicy, "from another policy: .*MlpPolicy.*OwnPolicy"),
    ],
    ids=["environment and spaces", "environment", "policy's size", "policy's class"],
)
def test_resuming_from_another_run_is_refused(saved: Saved, env: str, policy: Any, message: str):
    with pytest.raises(ConfigurationError, match=message) as error:
        fit(make_ppo(policy), env=env, ckpt_path=saved.end)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"policy": partial(MlpPolicy, num_layers=1)}, "from another policy"),
        (
            {"observation_space": Box(-1, 1, (3,)), "action_space": Discrete(2)},
            r"from another space: .*\[4\].*\[3\]",
        ),
        (
            {"observation_space": Box(-1, 1, (4,)), "action_space": Discrete(5)},
            "from another space: .*'n': 2.*'n': 5",
        ),
    ],
    ids=["policy", "observation space", "action space"],
)
def test_loading_as_something_else_is_refused(
    saved: Saved, arguments: dict[str, Any], message: str
):
    with pytest.raises(ConfigurationError, match=message) as error:
        PPO.load_from_checkpoint(saved.end, weights_only=True, **arguments)
    assert "\n" not in str(error.value)


def test_checkpoint_of_something_else_is_refused(saved: Saved, tmp_path: Path):
    checkpoint = torch.load(saved.end, weights_only=True)
    del checkpoint["ppo1_lightning"]
    torch.save(checkpoint, tmp_path / "foreign.ckpt")
    with pytest.raises(ConfigurationError, match="not written by ppo1_lightning") as error:
        PPO.load_from_checkpoint(tmp_path / "foreign.ckpt", weights_only=True)
    assert "\n" not in str(error.value)
