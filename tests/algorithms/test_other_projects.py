"""What a subclass, a callback or another project's script may do with the module."""

from __future__ import annotations

import copy
import functools
import logging
import pickle
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import MethodType
from typing import Any

import lightning
import numpy as np
import pytest
import torch
from gymnasium.spaces import Box, Discrete
from lightning import Callback, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    EarlyStopping,
    ModelCheckpoint,
    WeightAveraging,
)
from torch import Tensor, nn

from ppo1_lightning import PPO, TRPO, MlpPolicy, RolloutDataModule
from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.rollouts.evaluation import Evaluation
from ppo1_lightning.rollouts.segment import Minibatch
from ppo1_lightning.runs.csv_logger import CSVLogger

pytestmark = pytest.mark.heavy

Small = functools.partial(MlpPolicy, hidden_size=8)
SPACES: dict[str, Any] = {
    "observation_space": Box(-np.inf, np.inf, (4,), np.float32),
    "action_space": Discrete(2),
}


def ppo(kind: type[PPO] = PPO, policy: Any = Small, **options: Any) -> Any:
    return kind(policy, **{"minibatch_size": 64, "update_epochs": 2, "compile": False, **options})


def fit(module: Any, *callbacks: Callback, iterations: int = 4, **options: Any) -> Trainer:
    data = RolloutDataModule("CartPole-v1", num_envs=4, num_steps=32, total_iterations=iterations)
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "max_epochs": -1}
    trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), **{**quiet, **options})
    trainer.fit(module, data)
    return trainer


def weights(module: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in module.parameters()])


# -------------------------------------------------------------------- hooks without super()


class NoHooks(PPO):
    """Overrides what we fill, as Lightning's documentation shows it."""

    def setup(self, stage: str) -> None: ...
    def configure_model(self) -> None: ...
    def configure_callbacks(self) -> list[Any]:
        return []

    def on_train_start(self) -> None: ...
    def on_train_batch_end(self, *args: Any) -> None: ...
    def on_train_end(self) -> None: ...
    def on_validation_start(self) -> None: ...
    def on_validation_end(self) -> None: ...
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["mine"] = 1

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loaded = checkpoint["mine"]


class Mixin:
    def on_train_start(self) -> None: ...


class WithMixin(Mixin, PPO):
    """A hook from beside the class."""


class WithSuper(PPO):
    def on_train_start(self) -> None:
        super().on_train_start()
        self.starts = self.hooks_run["on_train_start"]


def test_hooks_without_super_change_nothing(tmp_path: Path) -> None:
    ours, theirs = ppo(), ppo(NoHooks)
    fit(ours)
    trainer = fit(theirs)
    assert torch.equal(weights(ours), weights(theirs))
    assert 0 < theirs.counters.seconds < 60
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = NoHooks.load_from_checkpoint(tmp_path / "a.ckpt")
    assert again.loaded == 1
    assert again.counters == theirs.counters
    assert torch.equal(weights(again), weights(theirs))
    with pytest.raises(ConfigurationError, match="precision"):
        fit(ppo(NoHooks), precision="64-true")


def test_hooks_of_a_mixin_and_those_with_super() -> None:
    mixed, polite = ppo(WithMixin), ppo(WithSuper)
    fit(mixed)
    fit(polite)
    assert 0 < mixed.counters.seconds < 60
    assert polite.starts == 1


# -------------------------------------------------------------------- optimizers, schedulers


class OwnScheduler(PPO):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.policy.parameters(), lr=1e-2)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]


class OnPlateau(PPO):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.policy.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": "kl"}}


@pytest.mark.parametrize("path", [False, "trace"])
def test_a_scheduler_is_stepped_each_iteration(path: Any) -> None:
    module = ppo(OwnScheduler, compile=path)
    fit(module)
    assert module.optimizers().param_groups[0]["lr"] == 1e-2 * 0.5**4
    assert module.metrics["learning_rate"] == 1e-2 * 0.5**3  # of the last update


def test_a_scheduler_that_needs_a_metric_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="ReduceLROnPlateau"):
        fit(ppo(OnPlateau))


def test_an_optimizer_that_lightning_cli_puts_in_is_not_ours() -> None:
    module = ppo(**SPACES)
    assert module.optimizer_name == "TensorFlowAdam"
    module.configure_optimizers = MethodType(
        lambda self: torch.optim.SGD(self.parameters()), module
    )
    assert module.optimizer_name is None


def test_several_optimizers_are_refused() -> None:
    class Two(PPO):
        def configure_optimizers(self) -> Any:
            return [super().configure_optimizers(), torch.optim.SGD(self.parameters(), 0.1)]

    with pytest.raises(ConfigurationError, match="configure_optimizers returned 2 optimizers"):
        fit(ppo(Two))


@pytest.mark.parametrize(
    ("change", "message"),
    [(lambda m: m.freeze(), "all parameters are frozen"), (lambda m: m.half(), "float16")],
)
def test_parameters_that_cannot_learn_are_told(change: Any, message: str) -> None:
    module = ppo(**SPACES)
    change(module)
    with pytest.raises(ConfigurationError, match=message):
        fit(module)


def test_a_module_by_torch_compile_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="compile=True compiles its minibatch steps"):
        fit(torch.compile(ppo()))


# -------------------------------------------------------------------- what a loss reads


class Holder:
    """An object of the user's with a number in it."""

    def __init__(self) -> None:
        self.factor = 0.0


class Reader(PPO):
    """Adds a term whose weight is somewhere; a callback changes it."""

    def __init__(self, *args: Any, where: str = "number", **options: Any) -> None:
        super().__init__(*args, **options)
        self.where, self.number, self.holder = where, 0.0, Holder()
        self.listed, self.tensors = [0.0], {"a": torch.zeros(())}
        self.module_dict = nn.ModuleDict({"scale": nn.Identity()})
        self.register_buffer("buffered", torch.zeros(()))

    def loss(self, batch: Minibatch) -> Tensor:
        logits, _ = self.outputs(batch)
        term = self.module_dict["scale"](logits.square()).mean()
        factor = {
            "number": lambda: self.number,
            "object": lambda: self.holder.factor,
            "list": lambda: self.listed[0],
            "tensor in a dict": lambda: self.tensors["a"],
            "buffer": lambda: self.buffered,
            "trainer": lambda: 0.1 * self.trainer.global_step,
            "global_step": lambda: 0.1 * self.global_step,
            "module": lambda: 1.0,
        }[self.where]()
        return super().loss(batch) + factor * term


class Twice(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


class Change(Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        value = 0.1 * pl_module.counters.iterations
        pl_module.number = pl_module.holder.factor = value
        pl_module.listed[0] = value
        pl_module.tensors["a"].fill_(value)
        pl_module.buffered.fill_(value)
        if pl_module.where == "module":
            pl_module.module_dict["scale"] = Twice()


@pytest.mark.parametrize(
    "where",
    [
        *("number", "tensor in a dict", "buffer", "module"),
        *(
            pytest.param(where, marks=pytest.mark.slow)
            for where in ("object", "list", "trainer", "global_step")
        ),
    ],
)
def test_what_a_loss_reads_changes_on_each_path(where: str) -> None:
    results = []
    for path in (False, "auto"):
        module = ppo(Reader, where=where, compile=path)
        fit(module, Change())
        results.append(weights(module))
    unchanged = ppo(Reader, where=where)
    fit(unchanged)
    assert (results[0] - results[1]).abs().max() < 1e-6
    if where not in ("trainer", "global_step"):
        assert (results[0] - weights(unchanged)).abs().max() > 1e-5


class ChangeAttribute(Callback):
    def __init__(self, **values: Any) -> None:
        self.values = values

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        for name, value in self.values.items():
            setattr(pl_module, name, value)


@functools.cache
def weights_with_nothing_changed() -> Tensor:
    module = ppo(learning_rate=3e-3)
    fit(module)
    return weights(module)


@pytest.mark.parametrize(
    "values",
    [
        *({"max_grad_norm": 0.01}, {"ent_coef": 0.5}, {"clip_coef": 0.001}, {"vf_coef": 0.0}),
        *({"gamma": 0.1}, {"gae_lambda": 0.0}, {"learning_rate": 0.01}, {"value_clip": 0.01}),
        *({"target_kl": 1e-9}, {"normalize_advantages": "none"}),
    ],
    ids=lambda values: next(iter(values)),
)
def test_each_attribute_may_change(values: dict[str, Any]) -> None:
    results = []
    for path in (False, "trace"):
        module = ppo(compile=path, learning_rate=3e-3)
        fit(module, ChangeAttribute(**values))
        results.append(weights(module))
    assert (results[0] - results[1]).abs().max() < 1e-6
    assert not torch.equal(results[0], weights_with_nothing_changed())


# -------------------------------------------------------------------- policies


def with_gelu(observation_space: Any, action_space: Any) -> MlpPolicy:
    policy: Any = MlpPolicy(observation_space, action_space, hidden_size=8)
    policy.trunk[1] = nn.GELU()
    return policy


class Squashed(nn.Tanh):
    """Looks like what it is not."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(2 * input)

    def _get_name(self) -> str:
        return "Tanh"


def with_lookalike(observation_space: Any, action_space: Any) -> MlpPolicy:
    policy: Any = MlpPolicy(observation_space, action_space, hidden_size=8)
    policy.trunk[1] = Squashed()
    return policy


@pytest.mark.parametrize("factory", [with_gelu, with_lookalike])
def test_a_changed_policy_is_asked_for(factory: Any, tmp_path: Path) -> None:
    module = ppo(policy=factory)
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ConfigurationError, match="was changed after it was made"):
        PPO.load_from_checkpoint(tmp_path / "a.ckpt")
    again = PPO.load_from_checkpoint(tmp_path / "a.ckpt", policy=factory)
    rows = torch.randn(5, 4)
    assert torch.equal(again(rows)[0], module(rows)[0])


def test_whether_a_policy_was_changed_is_asked_again_where_it_may_have_been(
    monkeypatch: Any,
) -> None:
    made: list[Any] = []
    build = MlpPolicy.__init__
    monkeypatch.setattr(MlpPolicy, "__init__", lambda *a, **o: made.append(1) or build(*a, **o))
    module = ppo(**SPACES)
    once = len(made) + 1
    for _ in range(3):
        assert module.identity()["policy"]["arguments"] is not None
        with torch.no_grad():
            weights(module).add_(1)
    assert len(made) == once
    policy: Any = module.policy
    policy.trunk[1] = Squashed()
    assert module.identity()["policy"]["arguments"] is None
    policy.trunk[1] = nn.Tanh()
    assert module.identity()["policy"]["arguments"] is not None
    policy.trunk[1].register_forward_hook(lambda _, __, out: 2 * out)
    assert module.identity()["policy"]["arguments"] is None


def test_outputs_that_only_the_loss_would_see_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"Mine overrides outputs, .* expected a policy"):

        class Mine(PPO):
            def outputs(self, batch: Minibatch) -> tuple[Tensor, Tensor]:
                return super().outputs(batch)


class Greedy(PPO):
    def act(self, observations: Tensor, noise: Tensor, *memory: Tensor) -> Any:
        return super().act(observations, torch.zeros_like(noise), *memory)


def test_an_act_that_rollouts_would_not_call_is_refused() -> None:
    raw = functools.partial(Small, normalize_observations=False)
    with pytest.raises(ConfigurationError, match=r"Greedy overrides act, .* override of both"):
        ppo(Greedy, raw, normalize_observations=True, **SPACES)


@pytest.mark.parametrize(
    "ask", [lambda m: list(m.parameters()), lambda m: m.freeze(), torch.optim.SGD]
)
def test_parameters_that_are_not_there_yet_are_told(ask: Any) -> None:
    with pytest.raises(ConfigurationError, match="PPO has no parameters before it knows"):
        ask(ppo()) if ask is not torch.optim.SGD else ask(ppo().parameters(), 0.1)


def test_the_policy_is_there_where_the_spaces_are_known() -> None:
    module = ppo(**SPACES)
    assert len(list(module.parameters())) > 0
    assert module(torch.zeros(3, 4))[0].shape == (3, 2)
    module.load_state_dict(ppo(seed=1, **SPACES).state_dict())


class Wrong(nn.Module):
    def __init__(self, observation_space: Any, action_space: Any, mistake: str) -> None:
        super().__init__()
        self.mistake = mistake
        self.actor = nn.Linear(4, 3 if mistake == "count" else 2)
        self.critic = nn.Linear(4, 1)

    def forward(self, rows: Tensor, state: Any = None) -> Any:
        logits, values = self.actor(rows), self.critic(rows).squeeze(-1)
        return {
            "count": lambda: (logits, values, state),
            "two": lambda: (logits, values),
            "shape": lambda: (logits, values[:, None], state),
            "dtype": lambda: (logits, values.long(), state),
            "gradient": lambda: (logits.detach(), values, state),
            "list": lambda: [logits.tolist(), values, state],
        }[self.mistake]()


@pytest.mark.parametrize("mistake", ["count", "two", "shape", "dtype", "gradient", "list"])
def test_wrong_outputs_are_told_in_a_line(mistake: str) -> None:
    with pytest.raises(ConfigurationError, match="the policy Wrong returns") as caught:
        fit(ppo(policy=functools.partial(Wrong, mistake=mistake)))
    assert "\n" not in str(caught.value)


class Noisy(nn.Module):
    def __init__(self, observation_space: Any, action_space: Any, layer: str) -> None:
        super().__init__()
        layers = {"dropout": nn.Dropout(0.5), "batch norm": nn.BatchNorm1d(8)}
        self.body = nn.Sequential(nn.Linear(4, 8), layers[layer], nn.Tanh())
        self.actor, self.critic = nn.Linear(8, 2), nn.Linear(8, 1)

    def forward(self, rows: Tensor, state: Any = None) -> Any:
        features = self.body(rows)
        return self.actor(features), self.critic(features).squeeze(-1), state


@pytest.mark.parametrize("layer", ["dropout", "batch norm"])
@pytest.mark.parametrize("path", [False, "trace"])
def test_the_policy_is_in_evaluation_mode_throughout(layer: str, path: Any) -> None:
    class Watch(PPO):
        ratios: dict[int, float]

        def begin(self, rollout: Any) -> Any:
            segment = super().begin(rollout)
            batch = segment.first_minibatch()
            log_probs = self.distribution.log_prob(self.outputs(batch)[0], batch.actions)
            off = ((log_probs - batch.old_log_probs).exp() - 1).abs().max().item()
            self.ratios = {**getattr(self, "ratios", {}), self.counters.iterations: off}
            return segment

    module = ppo(Watch, policy=functools.partial(Noisy, layer=layer), compile=path)
    fit(module)
    assert len(module.ratios) == 4
    assert max(module.ratios.values()) < 1e-5
    assert not module.policy.training
    assert module.train().training
    assert not module.policy.training


# -------------------------------------------------------------------- seeds, hyperparameters


def test_the_seed_of_seed_everything(caplog: Any, monkeypatch: Any) -> None:
    monkeypatch.setenv("PL_GLOBAL_SEED", "0")  # restored after the test
    found = []
    for seed in (1, 2, 1):
        lightning.seed_everything(seed)
        module = ppo()
        with caplog.at_level(logging.INFO):
            fit(module, iterations=1)
        found.append(weights(module))
    assert torch.equal(found[0], found[2])
    assert not torch.equal(found[0], found[1])
    assert "seed 1, of seed_everything" in caplog.text
    assert ppo(seed=5).seed == RolloutDataModule("CartPole-v1", **SIZES, seed=5).seed == 5
    assert ppo().seed == RolloutDataModule("CartPole-v1", **SIZES).seed == 1


SIZES: dict[str, Any] = {"num_envs": 2, "num_steps": 16, "total_iterations": 1}


class WithArguments(PPO):
    def __init__(self, policy: Any = None, size: Any = 1, **options: Any) -> None:
        super().__init__(policy, **options)
        self.save_hyperparameters()
        self.size = size


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (np.float32(0.5), 0.5),
        (np.int64(3), 3),
        (np.bool_(True), True),
        (torch.tensor(2.0), 2.0),
        (Path("a/b"), "a/b"),
        (np.arange(2), [0, 1]),
        ({"a": [np.float64(1.0)]}, {"a": [1.0]}),
    ],
)
def test_hyperparameters_become_plain(given: Any, kept: Any, tmp_path: Path) -> None:
    module = ppo(WithArguments, size=given, gamma=np.float32(0.5), minibatch_size=np.int64(64))
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    again = WithArguments.load_from_checkpoint(tmp_path / "a.ckpt")
    assert again.hparams["size"] == again.size == kept
    assert type(again.size) is type(kept)
    assert again.gamma == 0.5


@dataclass
class Settings:
    number: int = 1


@pytest.mark.parametrize("given", [Settings(), nn.Linear(1, 1), object()])
def test_hyperparameters_that_cannot_be_are_refused(given: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"the hyperparameter size .*ignore=\['size'\]"):
        ppo(WithArguments, size=given)


def test_a_checkpoint_of_the_other_algorithm(tmp_path: Path) -> None:
    trpo = TRPO(Small, minibatch_size=64, compile=False)
    fit(trpo).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ConfigurationError, match="is one of TRPO, expected one of PPO"):
        PPO.load_from_checkpoint(tmp_path / "a.ckpt")


class Extended(PPO):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.extra = nn.Linear(2, 2)


def test_weights_are_loaded_in_part_where_that_is_asked_for(tmp_path: Path) -> None:
    module = ppo()
    fit(module).save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ConfigurationError, match=r"'extra\.bias' is missing"):
        Extended.load_from_checkpoint(tmp_path / "a.ckpt")
    some = Extended.load_from_checkpoint(tmp_path / "a.ckpt", strict=False)
    assert torch.equal(weights(some.policy), weights(module.policy))


class OwnSGD(PPO):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), 1e-3, momentum=0.9)


def test_a_checkpoint_of_another_optimizer_of_one_s_own(tmp_path: Path) -> None:
    fit(ppo(OwnScheduler), iterations=1).save_checkpoint(tmp_path / "a.ckpt")
    data = RolloutDataModule("CartPole-v1", num_envs=4, num_steps=32, total_iterations=2)
    with pytest.raises(ConfigurationError, match=r"another optimizer: it says no .* SGD goes by"):
        Trainer(accelerator="cpu", logger=False, max_epochs=-1, default_root_dir=tmp_path).fit(
            ppo(OwnSGD), data, ckpt_path=tmp_path / "a.ckpt"
        )


def test_modules_and_inference_mode() -> None:
    with torch.inference_mode():
        module = ppo(**SPACES)
    fit(module, iterations=1)
    with torch.inference_mode(), pytest.raises(ConfigurationError, match="expected it outside"):
        fit(ppo())


# -------------------------------------------------------------------- Lightning's callbacks


def test_early_stopping_looks_each_iteration() -> None:
    stop = EarlyStopping("episode_return_mean", mode="max", stopping_threshold=1.0, patience=99)
    module = ppo()
    fit(module, stop, iterations=12)
    assert module.counters.iterations < 12


@pytest.mark.parametrize("monitor", ["kl", "entropy", "episode_return_mean", "loss/value"])
def test_model_checkpoint_monitors_each_metric(monitor: str, tmp_path: Path) -> None:
    keeps = ModelCheckpoint(tmp_path, monitor=monitor, every_n_train_steps=1, save_top_k=-1)
    fit(ppo(), keeps, enable_checkpointing=True)
    assert len(list(tmp_path.iterdir())) == 4


def test_model_checkpoint_by_time(tmp_path: Path) -> None:
    keeps = ModelCheckpoint(tmp_path, train_time_interval=timedelta(0), save_top_k=-1)
    fit(ppo(), keeps, enable_checkpointing=True)
    assert len(list(tmp_path.iterdir())) == 4


class FreezeTrunk(BaseFinetuning):
    def freeze_before_training(self, pl_module: Any) -> None:
        self.freeze(pl_module.policy.trunk)
        self.start = weights(pl_module.policy.trunk)

    def finetune_function(self, pl_module: Any, epoch: int, optimizer: Any) -> None: ...


def test_finetuning_finds_the_policy_without_spaces() -> None:
    module, frozen = ppo(), FreezeTrunk()
    fit(module, frozen)
    assert torch.equal(weights(module.policy.trunk), frozen.start)


def test_weight_averaging_has_an_effect() -> None:
    module, plain = ppo(**SPACES), ppo(**SPACES)
    fit(module, WeightAveraging())
    fit(plain)
    assert not torch.equal(weights(module), weights(plain))


class Logs(Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        pl_module.log("user/foo", 1.0, on_step=True, on_epoch=False)


def test_callbacks_log_over_environment_steps(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(ppo(), Logs(), logger=logger, log_every_n_steps=1)
    header, *rows = logger.path.read_text().splitlines()
    column = header.split(",").index("user/foo")
    steps = [row.split(",")[0] for row in rows if row.split(",")[column]]
    assert steps == ["128", "256", "384", "512"]


class OwnStep(Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        trainer.logger.log_metrics({"mine": 1.0}, step=10**6 + pl_module.counters.iterations)


def test_a_step_of_one_s_own_stays_and_the_logger_is_given_back(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit(ppo(), OwnStep(), logger=logger)
    logger.log_metrics({"later": 1.0}, step=7)
    header, *rows = logger.path.read_text().splitlines()
    mine, later = (header.split(",").index(name) for name in ("mine", "later"))
    cells = [row.split(",") for row in rows]
    assert [row[0] for row in cells if row[mine]] == [str(10**6 + i) for i in range(1, 5)]
    assert [row[0] for row in cells if row[later]] == ["7"]


def test_a_run_with_evaluations_by_the_clock_can_be_saved(tmp_path: Path) -> None:
    data = RolloutDataModule("CartPole-v1", **SIZES, evaluation=Evaluation(episodes=2, num_envs=2))
    options: dict[str, Any] = {"logger": False, "max_epochs": -1, "accelerator": "cpu"}
    clock = {"val_check_interval": timedelta(hours=1), "check_val_every_n_epoch": None}
    keeps = ModelCheckpoint(tmp_path, every_n_train_steps=1)
    Trainer(callbacks=[keeps], **options, **clock).fit(ppo(minibatch_size=16), data)
    assert len(list(tmp_path.iterdir())) == 1


class Copies(Callback):
    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any, **__: Any) -> None:
        rows = torch.ones(2, 4)
        for make in (copy.deepcopy, lambda it: pickle.loads(pickle.dumps(it))):
            assert torch.equal(make(pl_module)(rows)[0], pl_module(rows)[0])
            assert make(trainer).global_step == trainer.global_step


def test_module_and_trainer_can_be_copied_in_a_callback() -> None:
    module = ppo()
    fit(module, Copies())
    assert module.counters.iterations == 4


def test_a_module_within_another_is_refused() -> None:
    class Outer(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.ppo = ppo()

        def configure_optimizers(self) -> Any:
            return self.ppo.configure_optimizers()

        def training_step(self, *args: Any) -> None:
            self.ppo.training_step(*args)

    with pytest.raises(ConfigurationError, match="expected PPO or TRPO: subclass it"):
        fit(Outer())
