"""The right path is chosen and told, and what cannot take it is learned from eagerly."""

from __future__ import annotations

import logging
import re
import time
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from lightning import Trainer
from torch import Tensor, nn

from ppo1_lightning import PPO, ConfigurationError, RolloutDataModule, fast, system
from ppo1_lightning.algorithms.update import EagerUpdate
from ppo1_lightning.fast import native
from ppo1_lightning.fast.update import GraphUpdate
from ppo1_lightning.policies import PolicyFactory
from tests.update_runs import LONG, SHORT, Run, assert_same, small_mlp, warnings_in

pytestmark = pytest.mark.heavy


@pytest.fixture
def no_compiling(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand in for the compiler where only the choice matters."""

    def compile(update: Any, *_: Any) -> None:
        update.path = "compiled"

    monkeypatch.setattr(GraphUpdate, "compile", compile)
    monkeypatch.setattr(GraphUpdate, "was_kept", False)
    monkeypatch.setattr(fast.native, "note_seconds_of_compiling", lambda *_: None)


@pytest.mark.usefixtures("no_compiling")
@pytest.mark.parametrize(
    ("path", "optimizer_steps", "taken"),
    [
        ("auto", SHORT, "traced"),
        ("auto", LONG, "compiled"),
        ("auto", None, "traced"),
        ("traced", LONG, "traced"),
        ("compiled", SHORT, "compiled"),
        ("eager", LONG, "eager"),
    ],
)
def test_choice(path: str, optimizer_steps: int | None, taken: str):
    run = Run("torch")
    assert run.take(path, optimizer_steps).path == taken
    said = rf"{taken} in \d+\.\d s, \d+\.\d\d ms a step"
    if taken == "eager":
        said = r"eager \(compile=false\)"
    assert re.fullmatch(said, run.told)


def test_a_run_tells_its_path_and_when_it_began_in_one_line(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "ppo1_lightning")
    data = RolloutDataModule("CartPole-v1", num_envs=2, num_steps=32, total_steps=128)
    command = system.StartUp()
    command.begin()
    system.start_up.begin(command.began)
    started, before = time.perf_counter(), command.end()
    options: Any = {"logger": False, "enable_checkpointing": False, "max_epochs": -1}
    trainer = Trainer(accelerator="cpu", enable_progress_bar=False, **options)
    trainer.fit(PPO(small_mlp, compile="trace"), datamodule=data)
    (line,) = [m for m in caplog.messages if m.startswith("update: ")]
    told = re.fullmatch(
        r"update: traced in \d+\.\d s, \d+\.\d\d ms a step; "
        r"first environment step (\d+\.\d) s after the start",
        line,
    )
    assert told is not None
    assert before is not None
    assert before - 0.1 < float(told[1]) < before + time.perf_counter() - started + 0.1
    caplog.clear()
    trainer.fit(PPO(small_mlp, compile="trace"), datamodule=data)  # it did not begin there
    (line,) = [m for m in caplog.messages if m.startswith("update: ")]
    assert "first environment step" not in line


@pytest.mark.usefixtures("no_compiling")
def test_the_last_compilation_on_this_machine_decides(monkeypatch: pytest.MonkeyPatch):
    update = Run("torch").take("traced")
    update.step_seconds = 0.001  # a compiled one saves 0.7 ms
    device = torch.device("cpu")
    for seconds, steps, worth in ((9, 12_000, False), (8, 12_000, True), (8, 11_000, False)):
        monkeypatch.setattr(fast.native, "seconds_of_compiling", lambda _, s=seconds: s)
        assert fast.worth_compiling(update, steps, device) is worth


@pytest.mark.usefixtures("own_cache")
def test_what_an_earlier_run_has_compiled_is_taken_at_once():
    assert native.seconds_of_compiling("cpu") == 10
    assert Run("torch").take("auto", SHORT).path == "traced"
    assert Run("torch").take("compiled").path == "compiled"
    assert native.seconds_of_compiling("cpu") != 10
    again = Run("torch").take("auto", SHORT)
    assert (again.path, again.compiled) == ("compiled", "kept")  # what else there is stays traced
    assert Run("torch").take("auto", LONG).compiled is True
    assert Run("tensorflow").take("auto", SHORT).path == "traced"  # another graph


def unsupported_optimizers(policy: nn.Module) -> dict[str, torch.optim.Optimizer]:
    parameters = list(policy.parameters())
    groups = [{"params": parameters[:1]}, {"params": parameters[1:]}]
    return {
        "SGD": torch.optim.SGD(parameters, lr=0.1),
        "AdamW": torch.optim.AdamW(parameters),
        "one parameter group": torch.optim.Adam(groups),
        "weight_decay": torch.optim.Adam(parameters, weight_decay=0.1),
        "amsgrad": torch.optim.Adam(parameters, amsgrad=True),
        "maximize": torch.optim.Adam(parameters, maximize=True),
    }


@pytest.mark.parametrize("name", unsupported_optimizers(nn.Linear(1, 1)))
def test_other_optimizers_take_the_eager_path(name: str):
    run = Run("torch")
    run.optimizer = unsupported_optimizers(run.policy)[name]
    with pytest.raises(ConfigurationError, match=f"compile=true .*{name}.*compile=false") as error:
        run.take("compiled")
    assert "\n" not in str(error.value)
    start = run.parameters()
    assert isinstance(run.take("auto"), EagerUpdate)
    assert name in run.told
    assert (run.steps(range(1)) != start).any()


class Linear(nn.Module):
    """The simplest policy."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        super().__init__()
        self.head = nn.Linear(6, 4)

    def forward(self, observation: Tensor, state: Any) -> Any:
        outputs = self.head(observation)
        return outputs[:, :3], outputs[:, 3], None


class Untraceable(Linear):
    """A policy whose Python code depends on the numbers that it sees."""

    def forward(self, observation: Tensor, state: Any) -> Any:
        sign = 1 if observation.sum().item() > 0 else -1
        return super().forward(sign * observation, state)


def test_a_run_that_cannot_be_compiled_is_the_eager_run(caplog: pytest.LogCaptureFixture):
    eager, failed = Run("tensorflow", Untraceable), Run("tensorflow", Untraceable)
    eager.take("eager")
    assert isinstance(failed.take("auto"), EagerUpdate)
    (record,) = warnings_in(caplog)
    assert record.getMessage().startswith("update: tracing failed: ")
    assert "\n" not in record.getMessage()
    for steps in (range(5), range(5, 10)):
        assert_same(failed.steps(steps), eager.steps(steps))
        # Saving must not disturb the run either.
        assert failed.adam_steps() == eager.adam_steps() == [steps.stop] * 2


def test_a_run_that_has_to_be_compiled_and_cannot_is_refused_in_one_line():
    with pytest.raises(ConfigurationError, match="compile=true failed: ") as error:
        Run("torch", Untraceable).take("compiled")
    assert "\n" not in str(error.value)


class Dropping(Linear):
    """A policy that draws random numbers."""

    def forward(self, observation: Tensor, state: Any) -> Any:
        return super().forward(nn.functional.dropout(observation), state)


class Counting(Linear):
    """A policy that depends on how often it was called."""

    calls = 0

    def forward(self, observation: Tensor, state: Any) -> Any:
        self.calls += 1
        return super().forward(observation * self.calls, state)


@pytest.mark.parametrize("policy", [Dropping, Counting])
def test_a_policy_that_is_no_pure_function_is_not_traced(
    policy: PolicyFactory, caplog: pytest.LogCaptureFixture
):
    assert isinstance(Run("torch", policy).take("auto", SHORT), EagerUpdate)
    assert "expected a pure function of its arguments" in caplog.text


class Stirring(Linear):
    """A policy whose normalisation keeps a power iteration in buffers, in evaluation mode too."""

    def __init__(self, *spaces: Any) -> None:
        super().__init__(*spaces)
        nn.utils.parametrizations.spectral_norm(self.head)

    def train(self, mode: bool = True) -> Any:
        return super().train()


def test_a_policy_that_changes_its_buffers_is_not_traced(caplog: pytest.LogCaptureFixture):
    run, untouched = Run("torch", Stirring), Run("torch", Stirring)
    untouched.policy.load_state_dict(run.policy.state_dict())
    assert isinstance(run.take("auto", SHORT), EagerUpdate)
    assert "the policy changes its buffers when it is called" in caplog.text
    torch.testing.assert_close(
        dict(run.policy.named_buffers()), dict(untouched.policy.named_buffers()), atol=0, rtol=0
    )


class Scaled(Linear):
    """A policy that keeps a tensor which is no buffer."""

    def __init__(self, *spaces: Any) -> None:
        super().__init__(*spaces)
        self.scale = torch.ones(6)

    def forward(self, observation: Tensor, state: Any) -> Any:
        return super().forward(observation * self.scale, state)


def test_a_tensor_that_is_no_buffer_is_not_frozen(caplog: pytest.LogCaptureFixture):
    assert isinstance(Run("torch", Scaled).take("auto", SHORT), EagerUpdate)
    assert "the policy reads Scaled.scale, a tensor" in caplog.text


class Expanded(Linear):
    """A policy with a buffer that repeats one number."""

    scale: Tensor

    def __init__(self, *spaces: Any) -> None:
        super().__init__(*spaces)
        self.register_buffer("scale", torch.full((1,), 0.5).expand(6))

    def forward(self, observation: Tensor, state: Any) -> Any:
        return super().forward(observation * self.scale, state)


def test_a_buffer_may_be_any_view():
    graph, eager = Run("torch", Expanded), Run("torch", Expanded)
    graph.take("traced")
    eager.take("eager")
    assert_same(graph.steps(range(3)), eager.steps(range(3)))


def test_without_a_compiler(caplog: pytest.LogCaptureFixture):
    missing = {"cpp.cxx": ("no-such-compiler",), "fx_graph_cache": False}
    with inductor.patch(missing):
        run = Run("torch", Linear)
        assert run.take("auto").path == "traced"
    (record,) = warnings_in(caplog)
    assert record.getMessage().startswith("update: compiling failed: ")
    assert "C++ compiler" in record.getMessage()
    assert "\n" not in record.getMessage()
    eager = Run("torch", Linear)
    eager.take("eager")
    assert_same(run.steps(range(3)), eager.steps(range(3)))
