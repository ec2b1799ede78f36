"""Every config composes, its defaults are the code's, and a preset can be chosen at each place."""

from __future__ import annotations

import dataclasses
import inspect
import itertools
from typing import Any

import hydra
import pytest
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from tiny_runs import ANY_ID

from ppo1_lightning import (
    PPO,
    TRPO,
    CnnPolicy,
    EnvironmentSpec,
    MlpPolicy,
    TensorFlowAdam,
    simulators,
)
from ppo1_lightning.algorithms.on_policy import OnPolicyModule
from ppo1_lightning.commands import config as cli
from ppo1_lightning.commands import train
from ppo1_lightning.rollouts.budget import Budget
from ppo1_lightning.rollouts.sizes import Sizes

pytestmark = pytest.mark.heavy

CONF = cli.config_directory()
ATARI = ["atari", "pong", "breakout", "beamrider", "enduro", "mspacman", "qbert", "seaquest"]
ATARI += ["spaceinvaders", "atari_gymnasium"]
MUJOCO = ["mujoco", "halfcheetah", "hopper", "walker2d", "invertedpendulum", "reacher", "swimmer"]
MUJOCO += ["inverteddoublependulum", "ant"]
CLASSIC = ["mountaincarcontinuous"]
VECTORS = ["envpool", "gymnasium", "acrobot", "bipedalwalker"]
TUNED = [
    "cartpole",
    "mountaincar",
    "pendulum",
    "lunarlander",
    "taxi",
    "toy_text",
    "dm_control",
    "minigrid",
    "procgen",
]
PRESETS = (
    dict.fromkeys(ATARI, "atari")
    | dict.fromkeys(MUJOCO, "ppo1_mujoco_vectorized")
    | dict.fromkeys(CLASSIC, "classic")
    | dict.fromkeys(VECTORS, "vectors")
    | {name: f"tuned/{name}" for name in TUNED}
    | {"humanoid": "ppo1_humanoid", "fetchreach": "ppo1_robotics"}
)
DEVICES = (2, 3, 5)
RUN_FOLDER = "trainer.default_root_dir=unused"  # otherwise known only while Hydra runs


def compose(*overrides: str) -> DictConfig:
    cli.register_resolvers()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        return hydra.compose("train", [*overrides, RUN_FOLDER])


def its_id(name: str) -> list[str]:
    return [f"env.id={ANY_ID[name]}"] if name in ANY_ID else []


def compose_env(name: str, *overrides: str) -> DictConfig:
    return compose(f"env={name}", *its_id(name), *overrides)


def names(group: str) -> list[str]:
    return sorted(file.stem for file in (CONF / group).glob("*.yaml"))


def parameters(function: Any, leave_out: set[str]) -> dict[str, Any]:
    arguments = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in arguments if p.name not in leave_out}


def values(node: DictConfig) -> dict[Any, Any]:
    container = OmegaConf.to_container(node, resolve=True)
    assert isinstance(container, dict)
    return {k: v for k, v in container.items() if not str(k).startswith("_")}


def test_every_environment_has_a_preset_here() -> None:
    assert sorted(PRESETS) == [name for name in names("env") if name != "default"]


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_environment(name: str) -> None:
    """``env=NAME`` picks its preset; spaces, policy and sizes fit each other."""
    if name == "atari_gymnasium":
        pytest.importorskip("ale_py")
        pytest.importorskip("cv2")
    config = compose_env(name)
    preset = compose(f"algo={PRESETS[name]}")
    assert values(config.algo) == values(preset.algo)
    assert values(config.policy) == values(preset.policy)
    assert (config.num_envs, config.num_steps) == (preset.num_envs, preset.num_steps)

    spec = instantiate(config.env, _convert_="all")
    assert isinstance(spec, EnvironmentSpec)
    policy = instantiate(config.policy, _convert_="all")
    policy(*simulators.spaces(spec))
    assert isinstance(instantiate(config.algo, policy=policy, _convert_="all"), PPO)
    for devices in (1, *DEVICES):
        sizes = sizes_on(devices, f"env={name}", *its_id(name))
        if PRESETS[name] != "classic":  # as in the original, a worker is one environment
            assert sizes.mpi_workers == (config.mpi_workers or config.num_envs)
    Budget(total_steps=config.total_steps)


def sizes_on(devices: int, *words: str) -> Sizes:
    """Return the sizes of a run, of which everything is made but its ranks and environments."""
    on = [f"trainer.devices={devices}", "trainer.accelerator=cpu"]
    sizes = train.build(compose(*words, *on)).plan
    assert sizes.devices == devices
    return sizes


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize("name", [n for n in names("algo") if n != "default"])
def test_algo_on_any_number_of_devices(name: str, devices: int) -> None:
    policy = str(compose(f"algo={name}").policy._target_)
    env = "pong" if policy.endswith("CnnPolicy") or name == "images" else "hopper"
    sizes_on(devices, f"env={env}", f"algo={name}", "total_steps=100_000")


@pytest.mark.parametrize("devices", DEVICES)
@pytest.mark.parametrize(
    "words",
    [
        ["env=halfcheetah", "algo=ppo1_mujoco", "policy=mlp_gru", "algo.sequence_length=64"],
        ["env=cartpole", "policy=mlp_lstm"],
        ["env=cartpole", "algo=trpo_classic", "policy=mlp_gru"],
        ["env=pong", "policy=cnn_lstm", "frame_stack=1"],
        ["env=cartpole", "num_envs=1", "algo.minibatch_size=1"],
    ],
    ids=" ".join,
)
def test_units_and_rows_that_are_fewer_than_devices(words: list[str], devices: int) -> None:
    sizes_on(devices, *words)  # which raises nothing


@pytest.mark.parametrize(
    "override", [f"{g}={n}" for g in ("trainer", "logger", "callbacks", "debug") for n in names(g)]
)
def test_groups_compose(override: str) -> None:
    group, name = override.split("=")
    config = compose(override)
    OmegaConf.resolve(config)
    if name == "none":
        assert config[group] == {}


@pytest.mark.parametrize("name", names("experiment"))
def test_experiments_compose(name: str) -> None:
    config = compose(f"experiment={name}")
    OmegaConf.resolve(config)
    Budget(**{key: config[key] for key in parameters(Budget, set())})
    Sizes.create(
        num_envs=config.num_envs,
        num_steps=config.num_steps,
        minibatch_size=config.algo.minibatch_size,
        mpi_workers=config.mpi_workers,
        devices=config.trainer.devices,
    )


@pytest.mark.parametrize(("name", "algorithm"), [("default", PPO), ("trpo", TRPO)])
def test_algo_defaults_are_the_constructors(name: str, algorithm: type[OnPolicyModule]) -> None:
    config = OmegaConf.merge(
        OmegaConf.masked_copy(compose(), ["compile", "seed", "mpi_workers"]),
        {"algo": OmegaConf.load(CONF / "algo" / f"{name}.yaml")},
    )
    assert isinstance(config, DictConfig)
    left_out = {"self", "policy", "options", "observation_space", "action_space"}
    constructors = (OnPolicyModule.__init__, algorithm.__init__)
    expected = {k: v for c in constructors for k, v in parameters(c, left_out).items()}
    optimizer = expected.pop("optimizer")
    expected["seed"] = config.seed  # a library's may come from seed_everything
    eps = inspect.signature(optimizer).parameters["eps"].default
    assert values(config.algo) == {
        **{k: list(v) if isinstance(v, tuple) else v for k, v in expected.items()},
        "optimizer": {
            "_target_": "ppo1_lightning.TensorFlowAdam",
            "_partial_": True,
            "eps": eps,
        },
    }
    assert getattr(optimizer, "func", optimizer) is TensorFlowAdam
    raw = OmegaConf.to_container(OmegaConf.load(CONF / "algo" / f"{name}.yaml"))
    assert isinstance(raw, dict)
    for key in ("compile", "seed", "mpi_workers"):
        assert raw[key] == f"${{{key}}}"


@pytest.mark.parametrize("order", [1, -1])
def test_trpo_mujoco(order: int) -> None:
    """Baselines' ``trpo_mpi/run_mujoco.py``."""
    config = compose(*["env=halfcheetah", "algo=trpo_mujoco"][::order])
    assert (config.num_envs, config.num_steps, config.total_steps) == (1, 1024, 1_000_000)
    assert (config.policy.hidden_size, config.policy.num_layers) == (32, 2)
    assert config.policy.normalize_observations
    algo = config.algo
    assert (algo.max_kl, algo.cg_iters, algo.cg_damping, algo.ent_coef) == (0.01, 10, 0.1, 0)
    assert (algo.vf_iters, algo.learning_rate, algo.minibatch_size) == (5, 1e-3, 64)
    assert (algo.gamma, algo.gae_lambda) == (0.99, 0.98)
    instantiate(algo, policy=MlpPolicy, _convert_="all")


def test_env_defaults_are_the_spec_s() -> None:
    node = OmegaConf.load(CONF / "env" / "default.yaml")
    assert isinstance(node, DictConfig)
    expected = {
        f.name: {"options": {}, "wrappers": []}.get(f.name, f.default)
        for f in dataclasses.fields(EnvironmentSpec)
        if f.name != "id"
    }
    assert {k: v for k, v in values(node).items() if k != "id"} == expected


@pytest.mark.parametrize(("name", "policy"), [("mlp", MlpPolicy), ("cnn_small", CnnPolicy)])
def test_policy_defaults_are_the_constructors(name: str, policy: type) -> None:
    expected = parameters(policy, {"observation_space", "action_space"})
    memory = {key: expected.pop(key) for key in ("memory", "memory_size", "memory_layers")}
    assert values(compose(f"policy={name}").policy) == expected
    # A policy of somebody's own that takes a preset's place is not given what it may not know.
    family = name.partition("_")[0]
    for preset, kind in itertools.product((family, "auto"), ("gru", "lstm")):
        config = values(compose(f"policy={preset}_{kind}").policy)
        assert {key: config[key] for key in memory} == memory | {"memory": kind}


def test_paper_atari() -> None:
    config = compose("env=pong", "algo=paper_atari")
    assert (config.num_envs, config.num_steps, config.total_steps) == (8, 128, 10_000_000)
    assert config.policy.size == "small"
    assert config.env.options.stack_num == 4
    assert config.env.options.episodic_life
    assert config.env.options.reward_clip
    algo = config.algo
    assert (algo.minibatch_size, algo.update_epochs, algo.learning_rate) == (256, 3, 2.5e-4)
    assert (algo.clip_coef, algo.anneal) == (0.1, ["learning_rate", "clip_coef"])


def test_preset_on_the_command_line_brings_its_policy_and_frames() -> None:
    config = compose("env=pong", "algo=ppo1_atari")
    assert (config.num_envs, config.num_steps, config.total_steps) == (8, 256, 11_000_000)
    assert config.policy.size == "large"
    assert config.env.options.stack_num == 1
    algo = config.algo
    assert (algo.minibatch_size, algo.update_epochs, algo.learning_rate) == (512, 4, 1e-3)
    assert (algo.clip_coef, algo.anneal) == (0.2, ["learning_rate"])
    assert simulators.spaces(instantiate(config.env, _convert_="all"))[0].shape == (1, 84, 84)


def test_humanoid_reward_scale_is_the_preset_s() -> None:
    assert compose("env=humanoid").env.reward_scale == 0.1
    assert compose("env=humanoid", "algo=ppo1_mujoco").env.reward_scale == 1.0
    assert compose("env=ant", "algo=ppo1_humanoid").env.reward_scale == 0.1
    assert compose("env=humanoid", "env.reward_scale=1").env.reward_scale == 1


@pytest.mark.parametrize("order", [1, -1])
def test_command_line_has_the_last_word(order: int) -> None:
    """Whatever a preset chooses, in whatever order the words come."""
    words = ["env=pong", "algo=ppo1_atari", "policy=cnn_separate", "num_envs=4"]
    words += ["total_steps=null", "total_episodes=7", "algo.target_kl=0.01", "seed=5"]
    words += ["env.options.stack_num=2", "compile=false", "mpi_workers=2"]
    config = compose(*words[::order])
    assert (config.policy.size, config.policy.shared_trunk) == ("tiny", False)
    assert (config.num_envs, config.num_steps) == (4, 256)
    assert (config.total_steps, config.total_episodes) == (None, 7)
    assert (config.algo.target_kl, config.algo.seed) == (0.01, 5)
    assert (config.algo.compile, config.algo.mpi_workers) == (False, 2)
    assert config.env.options.stack_num == 2


def test_policy_of_another_size() -> None:
    config = compose("env=halfcheetah", "policy=mlp_robotics", "policy.num_layers=2")
    assert (config.policy.hidden_size, config.policy.num_layers) == (256, 2)


def test_experiment_overrides_groups_and_is_overridden() -> None:
    config = compose("experiment=pong_paper_2x", "trainer=cpu", "num_envs=16")
    assert (config.env.id, config.policy.size) == ("Pong-v5", "large")
    assert (config.trainer.devices, config.trainer.accelerator) == (1, "cpu")
    assert config.num_envs == 16


@pytest.mark.parametrize(
    ("name", "clips"),
    [("halfcheetah", False), ("humanoid", False), ("mujoco", False)]
    + [(n, True) for n in ("pendulum", "bipedalwalker", "fetchreach", "envpool", "gymnasium")],
)
def test_clip_actions(name: str, clips: bool) -> None:
    assert compose_env(name).env.clip_actions is clips


def test_fetchreach_leaves_the_achieved_goal_out() -> None:
    config = compose("env=fetchreach")
    assert config.env.observation_keys == ["observation", "desired_goal"]
    assert (config.policy.hidden_size, config.policy.num_layers) == (256, 3)
