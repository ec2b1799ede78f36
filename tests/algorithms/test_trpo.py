"""How `TRPO` behaves as a LightningModule; that it is the original's, the recordings tell."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gymnasium.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete
from lightning import Trainer
from ranks import run_on_ranks
from torch import Tensor

from ppo1_lightning import (
    TRPO,
    CnnPolicy,
    ConfigurationError,
    EnvironmentSpec,
    MlpPolicy,
    RolloutDataModule,
)
from ppo1_lightning.algorithms.flat import acting_and_valuing
from ppo1_lightning.callbacks import RunCheckpoint
from ppo1_lightning.rollouts.segment import Minibatch

Small = partial(MlpPolicy, hidden_size=8)


def trpo(kind: type[TRPO] = TRPO, policy: Any = Small, **options: Any) -> TRPO:
    return kind(policy, **{"minibatch_size": 16, "compile": False, **options})


def fit(
    module: TRPO,
    env: str | EnvironmentSpec = "CartPole-v1",
    iterations: int = 3,
    ckpt_path: Path | None = None,
    **trainer: Any,
) -> TRPO:
    data = RolloutDataModule(env, num_envs=4, num_steps=16, total_iterations=iterations)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    Trainer(accelerator="cpu", max_epochs=-1, **(options | trainer)).fit(  # type: ignore[arg-type]
        module, data, ckpt_path=ckpt_path, weights_only=True
    )
    return module


def weights(module: TRPO) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Return copies of the parameters that choose actions, and of those that estimate values."""
    acting, valuing = acting_and_valuing(module.policy, module.spaces[0])
    copies = [{n: p.detach().clone() for n, p in part.items()} for part in (acting, valuing)]
    return copies[0], copies[1]


def equal(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    return all(torch.equal(ours[name], theirs[name]) for name in ours | theirs)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("max_kl", 0),
        ("max_kl", math.nan),
        ("cg_iters", 0),
        ("cg_damping", -0.1),
        ("fisher_every", 0),
        ("line_search_steps", 0),
        ("vf_iters", 0),
        ("ent_coef", math.inf),
        ("normalize_advantages", "minibatch"),
    ],
)
def test_bad_input_is_told_in_one_line(option: str, value: Any) -> None:
    with pytest.raises(ConfigurationError, match=f"^{option}=") as error:
        trpo(**{option: value})
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("policy", "space"),
    [(MlpPolicy, Box(-1, 1, (3,))), (CnnPolicy, Box(0, 255, (4, 84, 84), dtype="uint8"))],  # type: ignore[arg-type]
)
def test_a_shared_trunk_is_refused_in_one_line(policy: Any, space: Any) -> None:
    module = trpo(
        policy=partial(policy, shared_trunk=True), observation_space=space, action_space=Discrete(2)
    )
    module.configure_model()
    with pytest.raises(ConfigurationError, match=r"share.*policy\.shared_trunk=false") as error:
        module.configure_optimizers()
    assert "\n" not in str(error.value)


IMAGE = Box(0, 255, (4, 36, 36), dtype="uint8")  # type: ignore[arg-type]
MASKED = Dict(action_mask=Box(0, 1, (3,)), vector=Box(-1, 1, (3,)))


@pytest.mark.parametrize(
    ("observation_space", "action_space"),
    [
        (Box(-1, 1, (3,)), Box(-1, 1, (2,))),
        (Box(-1, 1, (3,)), Discrete(3)),
        (Box(-1, 1, (3,)), MultiDiscrete([2, 3])),
        (Box(-1, 1, (3,)), MultiBinary(3)),
        (MASKED, Discrete(3)),
        (IMAGE, Discrete(3)),
    ],
    ids=["box", "discrete", "multidiscrete", "multibinary", "mask", "image"],
)
def test_a_step_gains_within_the_trust_region(observation_space: Any, action_space: Any) -> None:
    """On all action spaces, with a mask and with images; the value function is left alone."""
    image = observation_space is IMAGE
    policy: Any = partial(CnnPolicy, size="tiny", shared_trunk=False) if image else Small
    module = trpo(policy=policy, observation_space=observation_space, action_space=action_space)
    module.configure_model()
    module.configure_optimizers()
    batch = rows(module)
    acting, valuing = weights(module)
    module.improve_policy(batch, batch)
    gain, kl = (share.item() for share in module.gain_and_kl(batch))
    assert module.step_size > 0
    assert gain > 0  # it was 0: advantages are standardised
    assert 0.001 < kl <= 1.5 * module.max_kl
    after, still = weights(module)
    assert equal(valuing, still)
    assert not any(torch.equal(acting[name], after[name]) for name in acting)


def rows(module: TRPO) -> Minibatch:
    """Return 64 rows of the policy's own, of which the last is not valid."""
    torch.manual_seed(0)
    space = module.spaces[0]
    if space is IMAGE:
        observations = torch.randint(0, 255, (64, *IMAGE.shape), dtype=torch.uint8)
    else:
        observations = torch.randn(64, 6 if space is MASKED else 3)
        observations[:, :3] = observations[:, :3] if space is not MASKED else torch.ones(3)
        if space is MASKED:
            observations[::2, 1] = 0
    with torch.no_grad():
        dist_params, values, _ = module.policy(observations, None)
    actions = module.distribution.sample(dist_params, module.distribution.noise(64))
    advantages = torch.randn(64)
    advantages[:63] = (advantages[:63] - advantages[:63].mean()) / advantages[:63].std()
    advantages[63] = math.nan
    return Minibatch(
        observations=observations,
        actions=actions,
        advantages=advantages,
        returns=values + 1,
        old_values=values,
        old_dist_params=dist_params,
        old_log_probs=module.distribution.log_prob(dist_params, actions),
        weights=torch.where(torch.arange(64) < 63, 1 / 63, 0.0),
        starts=torch.zeros(64, dtype=torch.bool),
        state=torch.zeros(64, 0),
    )


def test_both_parts_learn_and_metrics_tell_the_step() -> None:
    at_start: list[Any] = []

    class Before(TRPO):
        def on_train_start(self) -> None:
            super().on_train_start()
            at_start.append(weights(self))

    module = fit(trpo(Before))
    for before, after in zip(at_start[0], weights(module), strict=True):
        assert not equal(before, after)
    assert module.metrics["step_size"] in [0.5**k for k in range(10)]
    assert 0 < module.metrics["kl"] <= 1.5 * module.max_kl
    assert module.metrics["rejected_steps"] == 0


class Unstable(TRPO):
    """Its KL is no number wherever the policy has moved."""

    number = math.nan

    def gain_and_kl(self, batch: Minibatch) -> tuple[Tensor, Tensor]:
        gain, kl = super().gain_and_kl(batch)
        moved = not torch.is_grad_enabled()  # in the line search
        return gain, kl * self.number if moved else kl


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_step_whose_kl_is_not_finite_is_undone_and_counted(number: float, tmp_path: Path) -> None:
    kind = type("Unstable", (Unstable,), {"number": number})
    module = fit(trpo(kind), callbacks=[RunCheckpoint(tmp_path)], enable_checkpointing=True)
    assert module.counters.iterations == 3
    assert (module.metrics["step_size"], module.metrics["rejected_steps"]) == (0, 3)
    assert module.metrics["kl"] < 1e-6
    again = TRPO.load_from_checkpoint(tmp_path / "last.ckpt", policy=Small, weights_only=True)
    assert again.rejected_steps == 3


def test_without_a_gradient_the_policy_stays() -> None:
    module = trpo(observation_space=Box(-1, 1, (3,)), action_space=Discrete(3))
    module.configure_model()
    module.configure_optimizers()
    batch = rows(module)
    acting, _ = weights(module)
    module.improve_policy(batch._replace(advantages=torch.zeros(64)), batch)
    assert equal(acting, weights(module)[0])
    assert (module.step_size, module.rejected_steps) == (0, 0)


def test_entropy_bonus_is_part_of_the_gain() -> None:
    module = trpo(observation_space=Box(-1, 1, (3,)), action_space=Discrete(3), ent_coef=0.5)
    module.configure_model()
    module.configure_optimizers()
    batch = rows(module)
    entropy = module.distribution.entropy(batch.old_dist_params)[:63].mean()
    advantage = batch.advantages[:63].mean()  # at a ratio of 1
    gain, kl = module.gain_and_kl(batch)
    torch.testing.assert_close(gain, advantage + 0.5 * entropy)
    assert abs(kl.item()) < 1e-6


@pytest.mark.parametrize("every", [1, 5])
def test_the_fisher_matrix_is_that_of_every_nth_row(every: int) -> None:
    seen: list[int] = []

    class Watched(TRPO):
        def improve_policy(self, batch: Minibatch, fisher_batch: Minibatch) -> None:
            seen.append(len(fisher_batch.weights))
            super().improve_policy(batch, fisher_batch)

    fit(trpo(Watched, fisher_every=every), iterations=1)
    assert seen == [4 * -(-16 // every)]  # of each of four workers


@pytest.mark.heavy
def test_a_resumed_run_is_one_that_never_stopped(tmp_path: Path) -> None:
    def run(folder: Path, iterations: int, ckpt_path: Path | None = None) -> TRPO:
        checkpoints = RunCheckpoint(folder, every_n_iterations=3, exact_resume=True)
        options = {"callbacks": [checkpoints], "enable_checkpointing": True}
        return fit(trpo(compile="trace"), iterations=iterations, ckpt_path=ckpt_path, **options)

    whole = run(tmp_path / "whole", 6)
    run(tmp_path / "part", 3)
    resumed = run(tmp_path / "part", 6, tmp_path / "part" / "last.ckpt")
    for ours, theirs in zip(weights(resumed), weights(whole), strict=True):
        assert equal(ours, theirs)


def test_half_precision_takes_steps_too() -> None:
    module = fit(trpo(), precision="bf16-mixed", iterations=5)
    assert module.rejected_steps < 5
    assert 0 < module.metrics["kl"] < 2 * module.max_kl


def on_rank(rank: int, ranks: int) -> tuple[dict[str, Tensor], dict[str, float]]:
    strategy = "ddp" if ranks > 1 else "auto"
    module = fit(trpo(ent_coef=0.01), devices=ranks, strategy=strategy)
    parameters = {n: p.detach().clone() for n, p in module.policy.named_parameters()}
    metrics = {k: v for k, v in module.metrics.items() if k != "steps_per_second"}
    return parameters, metrics


@pytest.mark.heavy
@pytest.mark.slow
def test_two_devices_are_the_same_experiment() -> None:
    parameters, metrics = on_rank(0, 1)
    for its_parameters, its_metrics in run_on_ranks(on_rank, 2, 2):
        torch.testing.assert_close(its_parameters, parameters, atol=1e-5, rtol=0)
        assert its_metrics == pytest.approx(metrics, rel=1e-4, abs=1e-5, nan_ok=True)
