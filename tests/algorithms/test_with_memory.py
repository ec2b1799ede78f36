"""Policies with memory through both algorithms: ratio 1, the same on every path, and they learn."""

from __future__ import annotations

import copy
from functools import partial
from typing import Any

import pytest
import t_maze  # noqa: F401  registers TMaze-v0
import torch
from gymnasium.spaces import Box, Discrete
from lightning import Trainer
from torch import Tensor, nn

from examples.recurrent_policy import LinearMemory
from ppo1_lightning import PPO, TRPO, CnnPolicy, ConfigurationError, MlpPolicy, RolloutDataModule
from ppo1_lightning.algorithms.on_policy import OnPolicyModule
from ppo1_lightning.policies import auto_policy, by_time
from ppo1_lightning.policies.base import evaluate
from ppo1_lightning.rollouts.collector import Rollout
from ppo1_lightning.rollouts.evaluation import Evaluation
from ppo1_lightning.rollouts.segment import Minibatch, Segment
from ppo1_lightning.simulators import EnvironmentSpec


def maze(corridor: int) -> EnvironmentSpec:
    return EnvironmentSpec("TMaze-v0", options={"corridor": corridor})


MLP: Any = partial(MlpPolicy, memory_size=8, normalize_observations=False)
POLICIES: dict[str, tuple[Any, Any]] = {
    "gru": (partial(MlpPolicy, memory="gru", memory_size=8), "CartPole-v1"),
    "lstm": (partial(MlpPolicy, memory="lstm", memory_size=8), "Pendulum-v1"),
    "layers": (partial(MLP, memory="gru", memory_layers=2), "CartPole-v1"),
    "unnormalised": (partial(MLP, memory="lstm"), maze(3)),
    "box": (partial(MLP, memory="gru"), "Pendulum-v1"),
    "masked": (
        partial(MLP, memory="lstm"),
        EnvironmentSpec("MaskedTMaze-v0", options={"corridor": 3}),
    ),
    "own": (LinearMemory, maze(3)),
}
SHARED = {
    **POLICIES,
    "shared": (partial(MLP, memory="gru", shared_trunk=True), "CartPole-v1"),
    "pictures": (partial(auto_policy, memory="gru", memory_size=8), "MiniGrid-Empty-5x5-v0"),
}
"""Of those with a normaliser of their own, the ratio starts from what they say after it has seen
the rollout; of the others, from what they said in it, step by step."""
GRU: Any = partial(MlpPolicy, memory="gru")
SIZES: dict[str, Any] = {"sequence_length": 16, "minibatch_size": 64, "seed": 0, "compile": False}


def fit(module: OnPolicyModule, env: Any, iterations: int, **data: Any) -> OnPolicyModule:
    num_envs, num_steps = data.pop("num_envs", 8), data.pop("num_steps", 32)
    precision = data.pop("precision", "32-true")
    budget = data or {"total_iterations": iterations}
    validation: dict[str, Any] = {"val_check_interval": 1} if "evaluation" in data else {}
    rollouts = RolloutDataModule(env, num_envs=num_envs, num_steps=num_steps, seed=0, **budget)
    Trainer(
        accelerator="cpu",
        precision=precision,
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **validation,
    ).fit(module, rollouts)
    return module


class Watched:
    """Compares the old policy with what the rollout said, and notes each first ratio and KL."""

    def begin(self: Any, rollout: Rollout) -> Segment:
        segment = super().begin(rollout)  # type: ignore[misc]
        batch = segment.first_minibatch()
        with torch.no_grad():
            dist_params, _ = self.outputs(batch)
        log_probs = self.distribution.log_prob(dist_params, batch.actions)
        self.ratios = [*getattr(self, "ratios", []), (log_probs - batch.old_log_probs).exp()]
        whole = segment.whole()
        again, _ = evaluate(self.policy, whole.observations, whole.state, whole.starts)
        self.kls = [*getattr(self, "kls", []), self.distribution.kl(segment.old_dist_params, again)]
        return segment


class WatchedPPO(Watched, PPO):
    pass


class WatchedTRPO(Watched, TRPO):
    pass


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("algorithm", [WatchedPPO, WatchedTRPO])
def test_the_ratio_starts_at_1(name: str, algorithm: type[OnPolicyModule]) -> None:
    if algorithm is WatchedTRPO and name in ("shared", "own", "pictures"):
        pytest.skip("TRPO refuses parameters that choose actions and estimate values")
    policy, env = SHARED[name]
    module: Any = fit(algorithm(policy, **SIZES), env, 4)
    for ratio, kl in zip(module.ratios, module.kls, strict=True):
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-6)
        assert kl.abs().max() < 1e-6
    assert module.metrics["kl"] > 0  # it has learned


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("name", "path"),
    [
        pytest.param("gru", "trace", marks=pytest.mark.slow),
        ("unnormalised", "trace"),
        pytest.param("own", "trace", marks=pytest.mark.slow),
        ("unnormalised", True),
        pytest.param("shared", True, marks=pytest.mark.slow),
        pytest.param("layers", True, marks=pytest.mark.slow),
        pytest.param("lstm", True, marks=pytest.mark.slow),
    ],
)
def test_graphs_learn_as_without_them(name: str, path: Any) -> None:
    """Acting too: what an unnormalised policy said in the rollout is what the ratio starts from."""
    policy, env = SHARED[name]
    eager, graphs = (
        fit(WatchedPPO(policy, **{**SIZES, "compile": compiled}, update_epochs=2), env, 3)
        for compiled in (False, path)
    )
    ratios: list[Tensor] = graphs.ratios  # type: ignore[assignment]
    for ratio in ratios:
        torch.testing.assert_close(ratio, torch.ones_like(ratio), rtol=0, atol=1e-6)
    for (key, ours), theirs in zip(
        graphs.policy.state_dict().items(), eager.policy.state_dict().values(), strict=True
    ):
        if isinstance(ours, Tensor):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-5, msg=lambda m, k=key: k + m)


@pytest.mark.heavy
def test_trpo_fits_values_by_graphs_and_steps_eagerly(caplog: pytest.LogCaptureFixture) -> None:
    policy, env = POLICIES["gru"]
    with caplog.at_level("INFO", "ppo1_lightning"):
        eager, graphs = (
            fit(WatchedTRPO(policy, **{**SIZES, "compile": path}), env, 3)
            for path in (False, "trace")
        )
    assert "policy step: eager (a memory's operator has no second derivative)" in caplog.text
    for ours, theirs in zip(graphs.parameters(), eager.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def test_an_evaluation_leaves_the_state_of_training_alone() -> None:
    policy, env = POLICIES["gru"]
    alone, watched = (
        fit(PPO(policy, **SIZES), env, 0, total_iterations=3, **options)
        for options in ({}, {"evaluation": Evaluation(episodes=3, num_envs=2)})
    )
    assert watched.evaluated is not None
    for ours, theirs in zip(alone.parameters(), watched.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_act_carries_the_state() -> None:
    module = PPO(
        partial(MlpPolicy, memory="gru"),
        observation_space=Box(-1, 1, (3,)),
        action_space=Discrete(2),
    )
    rows, noise = torch.randn(4, 5, 3), module.distribution.noise(5)
    state, starts = module.initial_state(5), torch.ones(5, dtype=torch.bool)
    for row in rows:
        *_, state = module.act(row, noise, state, starts)
        starts = torch.zeros_like(starts)
    whole = module(rows.flatten(0, 1), module.initial_state(5), torch.zeros(20, dtype=torch.bool))
    torch.testing.assert_close(state, whole[2], rtol=0, atol=1e-6)
    fresh = module.act(rows[0], noise)
    first = module.act(rows[0], noise, state, torch.ones(5, dtype=torch.bool))
    for ours, theirs in zip(fresh, first, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert module(rows[0])[0].shape == (5, 2)


# -------------------------------------------------------------------- it learns

LEARNS: dict[str, Any] = {
    "minibatch_size": 512,  # eight units, of as many environments
    "update_epochs": 6,
    "learning_rate": 3e-3,
    "gamma": 1.0,
    "seed": 0,
    "compile": "trace",
}


def solved(policy: Any, corridor: int, steps: int) -> float:
    sizes: dict[str, Any] = {"num_envs": 32, "num_steps": 64, "total_steps": steps}
    module = fit(PPO(policy, **LEARNS), maze(corridor), 0, **sizes)
    return module.metrics["episode_return_mean"]


small = partial(MlpPolicy, hidden_size=32, num_layers=1, normalize_observations=False)
MAZES = pytest.mark.parametrize(("corridor", "steps"), [(10, 60_000), (30, 200_000)])


@pytest.mark.heavy
@pytest.mark.parametrize("kind", ["gru", "lstm"])
@MAZES
def test_memory_finds_the_goal(kind: str, corridor: int, steps: int) -> None:
    assert solved(partial(small, memory=kind, memory_size=32), corridor, steps) >= 0.95


@pytest.mark.heavy
@MAZES
def test_nobody_finds_the_goal_without_memory(corridor: int, steps: int) -> None:
    assert 0.3 < solved(small, corridor, steps) < 0.7


@pytest.mark.heavy
def test_a_users_own_memory_learns() -> None:
    assert solved(LinearMemory, 2, 40_000) >= 0.95


# -------------------------------------------------------------------- bad input


class Careless(LinearMemory):
    """Makes one mistake, of those that a policy of one's own can make."""

    def __init__(self, *spaces: Any, mistake: str) -> None:
        super().__init__(*spaces)
        self.mistake = mistake

    def forward(self, observations: Tensor, state: Tensor, starts: Tensor) -> Any:
        if self.mistake == "starts":
            starts = torch.zeros_like(starts)
        if self.mistake == "first_row":
            starts = starts.masked_fill(torch.arange(len(starts)) < len(state), False)
        if self.mistake == "in_place":
            state.add_(1)
        if self.mistake == "mixed":
            rows = by_time(observations, state)
            observations = (rows + rows.mean(1, keepdim=True)).flatten(0, 1)
        if self.mistake == "mixed_states":
            state = state + state.mean(0, keepdim=True)
        if self.mistake == "all_begin" and starts.any():
            state = torch.zeros_like(state)
        if self.mistake == "transposed":
            starts = starts.view(len(state), -1).T.reshape(-1)
        if self.mistake == "later_rows":
            starts = starts.masked_fill(torch.arange(len(starts)) >= 2 * len(state), False)
        if self.mistake == "zeroed":
            state[starts[: len(state)]] = 0
        if self.mistake == "begins":
            state, starts = torch.where(starts[: len(state), None], 1, state), starts & False
        dist_params, values, state = super().forward(observations, state, starts)
        if self.mistake == "squeezed":
            return dist_params, values.squeeze(), state
        changed: dict[str, Any] = {
            "tuple": (state,) if len(state) == 1 else state,
            "shape": state[:, 1:],
            "dtype": state.double(),
            "none": None,
            "nan": torch.full_like(state, torch.nan),
        }
        if self.mistake == "alias":
            kept = self.__dict__.setdefault("kept", {}).setdefault(len(state), state.detach())
            kept.copy_(state.detach())
            return dist_params, values, kept
        if self.mistake == "order" and len(observations) > 2:
            rows = observations.unflatten(0, (2, -1)).transpose(0, 1).flatten(0, 1)
            dist_params, values, _ = super().forward(rows, state, starts)
        return dist_params, values, changed.get(self.mistake, state)


@pytest.mark.parametrize(
    ("mistake", "told"),
    [
        ("starts", "forgets its state there"),
        ("shape", r"returns a state of torch.float32 \[2, 31\]"),
        ("dtype", "returns a state of torch.float64"),
        ("none", "returns a state of NoneType"),
        ("nan", "returns a state that is not finite"),
        ("order", "in the order of time"),
        ("in_place", "changes a state that it was given"),
        ("alias", "changes a state that it was given or has returned"),
        ("zeroed", "changes a state that it was given"),
        ("mixed", "of an environment beside another one than alone"),
        ("mixed_states", "of an environment beside another one than alone"),
        ("all_begin", "forgets its state there"),
        ("transposed", "forgets its state there"),
        ("later_rows", "forgets its state there"),
        ("squeezed", r"returns values of the shape \[\] for 1 observations"),
        ("tuple", "returns a state of tuple for one of torch.float32"),
        ("first_row", "forgets its state there"),
        ("begins", "than after a state of zeros"),
    ],
)
def test_a_careless_policy(mistake: str, told: str) -> None:
    spaces = {"observation_space": Box(-1, 1, (3,)), "action_space": Discrete(2)}
    with pytest.raises(ConfigurationError, match=told) as error:
        PPO(partial(Careless, mistake=mistake), **spaces)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"state_size": -1}, "takes starts and has state_size=-1, expected how many numbers"),
        ({"state_size": 4.0}, r"takes starts and has state_size=4\.0, expected how many numbers"),
        ({"state_size": None}, "takes starts and has state_size=None, expected how many numbers"),
        ({"state_dtype": "float32"}, "state_dtype='float32', expected one such as torch.float32"),
        (
            {"forward": lambda self, observations, *, starts: None},
            r"cannot be called as forward\(observations, state\)",
        ),
    ],
)
def test_a_memory_that_is_not_declared_as_one(wrong: dict[str, Any], told: str) -> None:
    class Wrong(LinearMemory):
        def __init__(self, *spaces: Any) -> None:
            super().__init__(*spaces)
            for name, value in wrong.items():
                setattr(self, name, value)

    if "forward" in wrong:
        Wrong.forward = wrong.pop("forward")
    spaces = {"observation_space": Box(-1, 1, (3,)), "action_space": Discrete(2)}
    with pytest.raises(ConfigurationError, match=told) as error:
        PPO(Wrong, **spaces)  # type: ignore[arg-type]
    assert "\n" not in str(error.value)


def test_a_memory_that_autocast_makes_shorter_trains() -> None:
    class Elman(LinearMemory):
        def __init__(self, *spaces: Any) -> None:
            super().__init__(*spaces)
            self.recurrent = nn.Linear(self.state_size, self.state_size)

        def forward(self, observations: Tensor, state: Tensor, starts: Tensor) -> Any:
            features, states = by_time(self.encoder(observations), state), []
            for row, begins in zip(features, by_time(starts, state), strict=True):
                state = state.masked_fill(begins.unsqueeze(-1), 0)
                state = (self.recurrent(state) + row).tanh()
                states.append(state)
            both = torch.cat([features.flatten(0, 1), torch.cat(states)], -1)
            return self.action_head(both), self.value_head(both).squeeze(-1), state

    module = fit(PPO(Elman, **SIZES), maze(3), 2, precision="bf16-mixed")
    assert module.metrics["kl"] > 0


def test_a_policy_that_takes_anything_has_no_memory_without_a_size() -> None:
    class Anything(MlpPolicy):
        state_size = None  # type: ignore[assignment]

        def forward(self, *inputs: Any) -> Any:  # type: ignore[override]
            return super().forward(inputs[0], None)

    assert fit(PPO(Anything, minibatch_size=64, compile=False), "CartPole-v1", 1).metrics


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda state: state.double(), "returns a state of torch.float64"),
        (lambda state: state[:, :2], r"returns a state of torch.float32 \[8, 2\]"),
        (lambda state: state.to("meta"), "on meta for one of"),
        (lambda state: None, "returns a state of NoneType"),
    ],
)
def test_a_state_that_changes_in_mid_run(change: Any, told: str) -> None:
    class Changing(LinearMemory):
        def forward(self, observations: Tensor, state: Tensor, starts: Tensor) -> Any:
            dist_params, values, after = super().forward(observations, state, starts)
            at_the_end = len(state) == 8 and bool((observations[:, 1] == 1).any())
            return dist_params, values, change(after) if at_the_end else after

    with pytest.raises(ConfigurationError, match=told):
        fit(PPO(Changing, **SIZES), maze(40), 3)


class Spoiled(LinearMemory):
    def forward(self, observations: Tensor, state: Tensor, starts: Tensor) -> Any:
        dist_params, values, state = super().forward(observations, state, starts)
        spoilt = torch.where(observations[-1:, 1:] > 0, torch.inf, state)  # at the junction
        return dist_params, values, spoilt if len(state) > 2 else state


def test_a_state_that_becomes_infinite_is_told() -> None:
    module = PPO(Spoiled, **SIZES)
    with pytest.raises(Exception, match=r"its state is (inf|nan)|chose the action") as error:
        fit(module, maze(31), 3)
    assert "iteration 1" in str(error.value)


@pytest.mark.parametrize(
    ("policy", "options", "told"),
    [
        (
            GRU,
            {"sequence_length": 10},
            "sequence_length=10 does not divide num_steps=32; .*=8 or 16",
        ),
        (GRU, {"sequence_length": 16, "minibatch_size": 40}, "minibatch_size=32 or 48; .*length=8"),
        (
            GRU,
            {"sequence_length": 16, "mpi_workers": 8, "minibatch_size": 64},
            "minibatch_size=128",
        ),
        (GRU, {"sequence_length": 0}, "sequence_length=0"),
        (MlpPolicy, {"sequence_length": 8}, "for policies with memory, such as policy=mlp_gru"),
    ],
)
def test_sizes_that_do_not_fit(policy: Any, options: dict[str, Any], told: str) -> None:
    module = PPO(policy, **{**SIZES, "sequence_length": None, **options})
    with pytest.raises(ConfigurationError, match=told):
        fit(module, "CartPole-v1", 1)


def test_a_rollout_of_one_step_teaches_no_memory() -> None:
    data = RolloutDataModule("CartPole-v1", num_envs=8, num_steps=1, total_iterations=1)
    with pytest.raises(ConfigurationError, match=r"num_steps=1 .* expected at least 2"):
        Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit(
            PPO(GRU, minibatch_size=8), data
        )


def test_a_policy_without_memory_sees_no_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither an argument nor a row of the minibatches is another than without this feature."""
    seen: list[tuple[Any, ...]] = []

    class Plain(MlpPolicy):
        def forward(self, observation: Tensor, state: Any = None) -> Any:  # type: ignore[override]
            seen.append((state,))
            return super().forward(observation, state)

    class Noted(PPO):
        def loss(self, batch: Minibatch) -> Tensor:
            assert batch.state.shape == (64, 0)
            return super().loss(batch)

    fit(Noted(Plain, minibatch_size=64, compile=False), "CartPole-v1", 1)
    assert set(seen) == {(None,)}


def test_a_number_called_state_size_is_no_memory(caplog: pytest.LogCaptureFixture) -> None:
    class Plain(MlpPolicy):
        def __init__(self, *spaces: Any) -> None:
            super().__init__(*spaces)
            self.state_size = 4  # of the observation, say: told

        def forward(self, observation: Tensor, state: Any = None) -> Any:  # type: ignore[override]
            return super().forward(observation, state)

    assert fit(PPO(Plain, minibatch_size=64, compile=False), "CartPole-v1", 1).metrics
    assert "Plain has state_size=4, and its forward takes no starts: it has no mem" in caplog.text


def test_images_and_memory() -> None:
    spaces = Box(0, 255, (2, 36, 36)), Discrete(3)
    module: nn.Module = CnnPolicy(*spaces, size="tiny", memory="lstm", memory_size=8)
    assert copy.deepcopy(module).state_size == 16
