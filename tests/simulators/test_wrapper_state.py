"""What wrappers have counted goes on in evaluations and resumed runs."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from lightning import Trainer
from torch import nn

from ppo1_lightning import PPO, ConfigurationError, MlpPolicy, RolloutDataModule
from ppo1_lightning.rollouts.datamodule import EvaluationDataModule
from ppo1_lightning.rollouts.evaluation import Evaluation
from ppo1_lightning.simulators import EnvironmentSpec, make_simulator
from ppo1_lightning.simulators.wrapper_state import WrapperState


class Moments:
    """A user's running mean."""

    def __init__(self) -> None:
        self.count, self.mean = 0, np.zeros(4)


class Everything(gymnasium.Wrapper):
    """Keeps what a wrapper may keep."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.moments, self.level, self.seen = Moments(), np.float32(0), deque(maxlen=3)
        self.visits: Any = defaultdict(int)
        self.words, self.kinds, self.lazy = ["a"], Counter(), None
        self.network, self.torch = nn.Linear(2, 2), torch.zeros(2)
        self.generator, self.constant = np.random.default_rng(0), np.arange(1000)
        self.function, self.steps = print, 0

    def reset(self, **arguments: Any) -> Any:
        self.steps = 0
        return self.env.reset(**arguments)

    def learn(self) -> None:
        self.moments.count, self.moments.mean = 7, np.full(4, 0.5)
        self.level, self.lazy = np.float32(2.5), np.eye(2)
        self.seen.extend([1, 2, 3, 4])
        self.visits[1, "left"] += 3
        self.kinds["x"] += 1
        self.words.append("b")
        self.torch += 1
        nn.init.ones_(self.network.weight)
        self.steps = 9


class Speaks(gymnasium.Wrapper):
    """Says for itself what is kept."""

    level, other = 0, 0

    def state_dict(self) -> dict[str, int]:
        return {"level": self.level}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.level = state["level"]


def made() -> Any:
    return Everything(Speaks(Everything(gymnasium.make("CartPole-v1"))))


def test_all_that_has_changed_is_carried(tmp_path: Path) -> None:
    env, again = made(), made()
    kept, of_the_other = WrapperState(env), WrapperState(again)
    assert kept.get() == {}
    env.learn()
    env.env.level, env.env.other = 3, 4
    torch.save(kept.get(), tmp_path / "state")
    state = torch.load(tmp_path / "state", weights_only=True)
    assert set(state) == {"Everything", "Speaks"}  # the inner one has learned nothing
    assert not {"constant", "generator", "function"} & set(state["Everything"])
    of_the_other.put(state)
    assert (again.moments.count, again.moments.mean.tolist()) == (7, [0.5] * 4)
    assert (again.level, type(again.level)) == (2.5, np.float32)
    assert again.lazy.tolist() == [[1, 0], [0, 1]]
    assert (list(again.seen), again.seen.maxlen) == ([2, 3, 4], 3)
    assert again.visits == {(1, "left"): 3}
    assert again.visits["new"] == 0
    assert again.kinds.most_common() == [("x", 1)]
    assert again.words == ["a", "b"]
    assert again.torch.tolist() == [1, 1]
    assert again.network.weight.tolist() == [[1, 1], [1, 1]]
    assert (again.env.level, again.env.other) == (3, 0)
    again.reset()
    assert again.steps == 0


class Level(Enum):
    EASY, HARD = 1, 2


@dataclass(frozen=True)
class Course:
    length: int


COURSES = [Course(1), Course(2)]


class Agent:
    def __init__(self) -> None:
        self.others: list[Agent] = []
        self.score = 0


class Curriculum(gymnasium.Wrapper):
    """Holds what is not its own, and objects that hold each other."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.level, self.course = Level.EASY, COURSES[0]
        self.agents = [Agent() for _ in range(20)]
        self.best = self.agents[0]
        for agent in self.agents:
            agent.others = self.agents


def test_what_others_hold_too_is_left_alone() -> None:
    env, again = (Curriculum(gymnasium.make("CartPole-v1")) for _ in range(2))
    kept, of_the_other = WrapperState(env), WrapperState(again)
    env.level, env.course, env.best.score = Level.HARD, COURSES[1], 3
    of_the_other.put(kept.get())
    assert [course.length for course in COURSES] == [1, 2]
    assert again.course.length == 2
    assert (Level.EASY.value, again.level) == (1, Level.HARD)
    assert again.best is again.agents[0]
    assert again.best.score == 3


class Late(gymnasium.Wrapper):
    """Can say nothing before its first reset, and then what no checkpoint holds."""

    def reset(self, **arguments: Any) -> Any:
        self.count = np.random.default_rng(0)
        return self.env.reset(**arguments)

    def state_dict(self) -> dict[str, Any]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.count = state["count"]


def test_a_state_that_cannot_be_kept_is_told() -> None:
    env = Late(gymnasium.make("CartPole-v1"))
    kept = WrapperState(env)
    env.reset()
    with pytest.raises(ConfigurationError, match=r"^the state_dict\(\) of Late .* no plain data$"):
        kept.get()


def test_gymnasiums_own_wrappers_say_nothing() -> None:
    env = gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("CartPole-v1"))
    kept = WrapperState(env)
    env.reset()
    for _ in range(100):
        if env.step(env.action_space.sample())[2]:
            env.reset()
    assert kept.get() == {}


def test_an_object_that_is_made_later_is_told(caplog: pytest.LogCaptureFixture) -> None:
    env, again = made(), made()
    kept, of_the_other = WrapperState(env), WrapperState(again)
    env.lazy = Moments()
    of_the_other.put(kept.get())
    assert again.lazy is None
    assert "Everything.lazy starts anew" in caplog.text


class Shop(gymnasium.Wrapper):
    """Keeps what no checkpoint can."""

    @cached_property
    def discount(self) -> Fraction:
        return Fraction(1, 10)

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.price, self.prices, self.fixed = Fraction(1, 2), {"a": Fraction(1)}, Fraction(1, 3)
        self.rng, self.sold, self.till = np.random.default_rng(0), 0, Moments()
        self.till.best = Fraction(0)  # type: ignore[attr-defined]

    def reset(self, **arguments: Any) -> Any:
        self.rng, self.sold, self.round = np.random.default_rng(1), 0, self.close
        assert self.spec is not None
        assert self.discount == Fraction(1, 10)
        return self.env.reset(**arguments)


def test_what_no_checkpoint_can_hold_is_told_where_it_has_changed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    envs = [Shop(gymnasium.make("CartPole-v1")) for _ in range(2)]
    states = [WrapperState(env) for env in envs]
    for env, state in zip(envs, states, strict=True):
        env.reset()
        assert state.get() == {}
    assert not caplog.messages
    for env, state in zip(envs, states, strict=True):
        env.price, env.prices["b"], env.sold = Fraction(3, 4), Fraction(2), 1
        env.till.best = Fraction(5)  # type: ignore[attr-defined]
        assert state.get() == {"Shop": {"sold": 1}}
    told = [message.partition("; ")[0] for message in caplog.messages]
    assert told == [
        f"env.wrappers: Shop.{name} starts anew in evaluations and resumed runs, "
        f"for a {kind} cannot be kept"
        for name, kind in (("price", "Fraction"), ("prices", "Fraction"), ("till.best", "Fraction"))
    ]


class Goal(gymnasium.Env):
    """What is observed is 100 or 101 and tells which of two actions is paid."""

    observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.t, self.goal = 0, int(self.np_random.integers(2))
        return np.array([100.0 + self.goal], np.float32), {}

    def step(self, action: Any) -> Any:
        self.t += 1
        paid = float(action == self.goal)
        return np.array([100.0 + self.goal], np.float32), paid, self.t >= 20, False, {}


class Centered(gymnasium.ObservationWrapper):
    """A user's own running mean of observations."""

    def __init__(self, env: Any) -> None:
        super().__init__(env)
        self.total, self.count = 0.0, 0

    def observation(self, observation: Any) -> Any:
        self.total, self.count = self.total + float(observation[0]), self.count + 1
        return np.float32(4 * (observation - self.total / self.count))


@pytest.fixture
def goal() -> Any:
    gymnasium.register("Goal-v0", entry_point=lambda **_: Goal())
    yield
    del gymnasium.registry["Goal-v0"]


@pytest.mark.parametrize("mode", ["sync", pytest.param("async", marks=pytest.mark.heavy)])
def test_states_of_each_environment(mode: str, goal: Any) -> None:
    spec = EnvironmentSpec(
        "Goal-v0", options={"vectorization_mode": mode}, wrappers=[Centered], num_pools=2
    )
    given = [{"Centered": {"count": 10 * i, "total": 1.0 * i}} for i in range(4)]
    simulator = make_simulator(spec, [1, 2, 3, 4], wrapper_states=given)
    simulator.reset()
    found = simulator.wrapper_states() or []
    assert [state["Centered"]["count"] for state in found] == [1, 11, 21, 31]
    simulator.close()
    assert simulator.wrapper_states() is None


@pytest.mark.heavy
def test_a_run_its_evaluations_and_its_continuation_see_one_state(
    goal: Any, tmp_path: Path
) -> None:
    def fit(ckpt: Path | None, steps: int, **options: Any) -> tuple[PPO, Trainer, Any]:
        spec = EnvironmentSpec("Goal-v0", wrappers=[Centered])
        data = RolloutDataModule(
            spec, num_envs=8, num_steps=64, total_steps=steps, evaluation=Evaluation(40, 4)
        )
        small = partial(MlpPolicy, hidden_size=8, normalize_observations=False)
        module = PPO(small, minibatch_size=256, compile=False, **options)
        trainer = Trainer(accelerator="cpu", max_epochs=-1, logger=False, default_root_dir=tmp_path)
        trainer.fit(module, data, ckpt_path=ckpt)
        return module, trainer, data

    module, trainer, data = fit(None, 6144, learning_rate=0.01)
    trained = module.episodes.return_mean
    assert trained > 15
    assert module.evaluated is not None
    assert module.evaluated.returns.mean() > trained - 3  # the one while training
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again, _, _ = fit(tmp_path / "a.ckpt", 7168, learning_rate=0.0)
    assert np.mean(again.episodes.returns[-16:]) > trained - 3
    loaded = PPO.load_from_checkpoint(tmp_path / "a.ckpt")
    its_own = EvaluationDataModule(data.env, Evaluation(40, 4))
    (result,) = trainer.test(loaded, its_own, verbose=False)
    assert result["evaluation/return_mean"] > trained - 3
