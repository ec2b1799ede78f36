"""The eager, traced and compiled paths compute the same update, and the right one is chosen."""

from __future__ import annotations

import io
import logging
import os
import re
from typing import Any

import pytest
import torch
import torch._inductor.config as inductor
from gymnasium.spaces import Box, Discrete
from lightning import Callback, Trainer
from torch import Tensor, nn

from ppo1_lightning import PPO, ConfigurationError, MlpPolicy, RolloutDataModule, fast
from ppo1_lightning.algorithms.update import EagerUpdate, choose_path
from ppo1_lightning.fast import native
from ppo1_lightning.fast.update import GraphUpdate
from ppo1_lightning.optimizers import TensorFlowAdam
from ppo1_lightning.policies import PolicyFactory
from ppo1_lightning.rollouts.segment import Minibatch

pytestmark = pytest.mark.heavy

OBSERVATIONS, ACTIONS = Box(-1, 1, (6,)), Discrete(3)
LONG, SHORT = 10**9, 1  # days of steps, and less than a second

# Optimizer and max_grad_norm; gradients are longer than 0.05.
CASES = {"torch": (torch.optim.Adam, None), "tensorflow": (TensorFlowAdam, 0.05)}
every_case = pytest.mark.parametrize("case", CASES)


def small_mlp(observation_space: Any, action_space: Any) -> nn.Module:
    return MlpPolicy(observation_space, action_space, hidden_size=8, num_layers=1)


class Run:
    """A policy, its loss and its optimizer; a path is taken with `take`."""

    def __init__(self, case: str, policy: PolicyFactory = small_mlp) -> None:
        kind, self.max_grad_norm = CASES[case]
        self.ppo = PPO(
            policy,
            ent_coef=0.01,
            value_clip=0.3,
            observation_space=OBSERVATIONS,
            action_space=ACTIONS,
        )
        self.ppo.configure_model()
        self.policy = self.ppo.policy
        self.optimizer = kind(self.policy.named_parameters(), lr=1e-3, eps=1e-5)
        self.update: Any = None

    def take(self, path: str, optimizer_steps: int | None = LONG) -> Any:
        self.update = choose_path(
            self.ppo,
            self.ppo.loss,
            self.optimizer,
            max_grad_norm=self.max_grad_norm,
            compile={"eager": False, "traced": "trace", "compiled": True}.get(path, path),
            optimizer_steps=optimizer_steps,
            example=minibatch(0),
        )
        return self.update

    def steps(self, numbers: range) -> Tensor:
        """Take steps; learning rate, clip range and normaliser change as in a real run."""
        for t in numbers:
            self.optimizer.param_groups[0]["lr"] = 1e-3 * (1 - t / 40)
            if t % 8 == 0 and isinstance(self.policy, MlpPolicy):
                assert self.policy.observation_normalizer is not None
                self.policy.observation_normalizer.update(3 * minibatch(t).observations + 1)
            minibatches = Minibatch(*(field[None] for field in minibatch(t)))
            self.ppo.now.clip_coef.fill_(0.2 * (1 - t / 40))
            self.update(minibatches)
        return self.parameters()

    def parameters(self) -> Tensor:
        return torch.cat([p.detach().flatten() for p in self.policy.parameters()]).clone()

    def adam_steps(self) -> list[int]:
        return [int(state["step"]) for state in self.optimizer.state_dict()["state"].values()]


def minibatch(seed: int) -> Minibatch:
    stream = torch.Generator().manual_seed(seed)
    valid = torch.rand(16, generator=stream) > 0.2

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=stream)

    return Minibatch(
        observations=normal(16, 6),
        actions=torch.randint(3, (16,), generator=stream),
        advantages=normal(16),
        returns=normal(16),
        old_values=normal(16),
        old_dist_params=normal(16, 3),
        old_log_probs=-1.1 + 0.2 * normal(16),
        weights=valid / valid.sum(),
        starts=torch.zeros(16, dtype=torch.bool),
        state=torch.zeros(16, 0),
    )


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return our own warnings."""
    records = [record for record in caplog.records if "ppo1" in record.name]
    return [record for record in records if record.levelno >= logging.WARNING]


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-7)


@pytest.mark.parametrize(
    ("case", "path"),
    [
        *((case, "traced") for case in CASES),
        ("tensorflow", "compiled"),
        pytest.param("torch", "compiled", marks=pytest.mark.slow),
    ],
)
def test_graphs_take_the_eager_steps(case: str, path: str):
    eager, graph = Run(case), Run(case)
    assert isinstance(eager.take("eager"), EagerUpdate)
    assert graph.take(path).path == path
    start = eager.parameters()
    assert torch.equal(graph.parameters(), start)  # making the graph is no step
    ours, theirs = graph.steps(range(20)), eager.steps(range(20))
    assert_same(ours, theirs)
    assert (theirs - start).abs().max() > 1e-3
    assert graph.adam_steps() == eager.adam_steps() == [20] * len(list(eager.policy.parameters()))
    observations = minibatch(99).observations
    torch.testing.assert_close(graph.policy(observations), eager.policy(observations))


@pytest.mark.parametrize("path", ["eager", "traced", "compiled"])
def test_several_minibatches_are_several_steps(path: str):
    together, alone = Run("tensorflow"), Run("tensorflow")
    minibatches = [minibatch(t) for t in range(6)]
    together.take(path)(Minibatch(*map(torch.stack, zip(*minibatches, strict=True))))
    step = alone.take("eager")
    for one in minibatches:
        step(Minibatch(*(field[None] for field in one)))
    assert_same(together.parameters(), alone.parameters())
    assert set(together.adam_steps()) == set(alone.adam_steps()) == {6}


@pytest.mark.parametrize("path", ["traced", pytest.param("compiled", marks=pytest.mark.slow)])
def test_parameters_that_were_replaced_are_noticed(path: str):
    run = Run("torch")
    run.take(path)
    run.steps(range(2))
    run.policy.load_state_dict(run.policy.state_dict())  # in place
    run.steps(range(2))
    parameter = next(run.policy.parameters())
    parameter.data = parameter.data.clone()
    with pytest.raises(RuntimeError, match="replaced or frozen in the middle of training"):
        run.steps(range(2))


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("eager", "compiled"),
        ("compiled", "traced"),
        ("traced", "eager"),
    ],
)
def test_each_path_continues_the_others_checkpoint(first: str, second: str):
    whole, before, after = (Run("tensorflow") for _ in range(3))
    whole.take("eager")
    expected = whole.steps(range(20))
    before.take(first)
    before.steps(range(10))
    after.policy.load_state_dict(saved_and_loaded(before.policy.state_dict()))
    after.optimizer.load_state_dict(saved_and_loaded(before.optimizer.state_dict()))
    after.take(second)
    assert_same(after.steps(range(10, 20)), expected)
    assert set(after.adam_steps()) == {20}
    assert set(before.adam_steps()) == {10}


@pytest.mark.slow
def test_two_compiled_updates_in_one_process():
    compiled, eager = ({case: Run(case) for case in CASES} for _ in range(2))
    for case in CASES:
        compiled[case].take("compiled")
        eager[case].take("eager")
    for t in range(10):
        for run in compiled.values():
            run.steps(range(t, t + 1))
    for case in CASES:
        assert_same(compiled[case].parameters(), eager[case].steps(range(10)))


@pytest.mark.parametrize(
    "path", ["eager", "traced", pytest.param("compiled", marks=pytest.mark.slow)]
)
def test_half_precision(path: str):
    """A first Adam step with a huge epsilon is the gradient, scaled."""
    moved = []
    for enabled in (False, True):
        run = Run("torch")
        run.optimizer.param_groups[0].update(lr=1.0, eps=1e4)
        start = run.parameters().double()
        minibatches = Minibatch(*(field[None] for field in minibatch(0)))
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            run.take(path)(minibatches)
        moved.append((run.parameters().double() - start) * 1e4)
        assert all(p.dtype == torch.float32 for p in run.policy.parameters())
    full, half = moved
    error = ((half - full).norm() / full.norm()).item()
    assert 1e-4 < error < 0.05  # rounded to 8 bits, and by much less where the gradient is summed


class Coupled(PPO):
    """A loss that is no sum of one term of the actions and one of the values."""

    def loss_terms(self, batch: Minibatch, dist_params: Tensor, values: Tensor) -> Any:
        return super().loss_terms(batch, dist_params * values[:, None], values)


@pytest.mark.parametrize("path", ["traced", pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_value_function_of_its_own_learns_apart(path: str):
    assert len(Run("torch").take(path).parts) == 2
    assert len(Run("tensorflow").take(path).parts) == 1  # max_grad_norm is that of both
    coupled, eager = Run("torch"), Run("torch")
    for run in (coupled, eager):
        run.ppo.__class__ = Coupled
    assert len(coupled.take(path).parts) == 1
    eager.take("eager")
    assert_same(coupled.steps(range(5)), eager.steps(range(5)))


class Gated(PPO):
    """A loss in which the values choose what the actions learn: autograd sees nothing of it."""

    def loss(self, batch: Minibatch) -> Tensor:
        _, values = self.outputs(batch)
        return super().loss(batch._replace(advantages=batch.advantages * (values > 0)))


class Detached(PPO):
    """A loss with advantages over the values as they are now."""

    def loss(self, batch: Minibatch) -> Tensor:
        _, values = self.outputs(batch)
        return super().loss(batch._replace(advantages=batch.returns - values.detach()))


class DetachedHead(nn.Module):
    """A value head that learns from features which it does not shape."""

    def __init__(self, observation_space: Any, action_space: Any) -> None:
        super().__init__()
        self.trunk, self.action, self.value = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, observation: Tensor, state: Any) -> Any:
        features = self.trunk(observation).tanh()
        return self.action(features), self.value(features.detach()).squeeze(-1), state


@pytest.mark.parametrize(
    ("loss", "policy"), [(Gated, small_mlp), (Detached, small_mlp), (PPO, DetachedHead)]
)
def test_what_is_read_without_a_gradient_is_not_learned_apart(
    loss: type[PPO], policy: PolicyFactory
):
    graph, eager = Run("torch", policy), Run("torch", policy)
    for run, path in ((graph, "traced"), (eager, "eager")):
        run.ppo.__class__ = loss
        run.take(path)
    assert len(graph.update.parts) == 1
    assert_same(graph.steps(range(5)), eager.steps(range(5)))


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_two_parts_learn_at_once_as_they_do_in_turn():
    at_once, in_turn = Run("torch"), Run("torch")
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        assert at_once.take("compiled").second_core is not None
        in_turn.take("compiled").second_core = None
        minibatches = Minibatch(
            *(torch.stack(f) for f in zip(*map(minibatch, range(500)), strict=True))
        )
        for run in (at_once, in_turn):
            for _ in range(3):
                run.update(minibatches)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(at_once.parameters(), in_turn.parameters())


class Penalised(PPO):
    """A loss that calls the policy's parts and reads a number of this module's."""

    weight = 0.1

    def loss(self, batch: Minibatch) -> Tensor:
        features = self.policy.trunk(batch.observations)  # type: ignore[operator]
        return super().loss(batch) + self.weight * features.square().mean()


def test_what_a_loss_reads_is_never_frozen(caplog: pytest.LogCaptureFixture):
    graph, eager, without = (Run("tensorflow") for _ in range(3))
    for run, path in ((graph, "traced"), (eager, "eager"), (without, "eager")):
        run.ppo.__class__ = Penalised if run is not without else PPO
        run.take(path)
    assert_same(graph.steps(range(3)), eager.steps(range(3)))
    assert (eager.parameters() - without.steps(range(3))).abs().max() > 1e-4
    minibatches = Minibatch(*(field[None] for field in minibatch(0)))
    assert graph.update.outdated(minibatches) is None
    setattr(graph.ppo, "weight", 2.0)  # noqa: B010
    assert graph.update.outdated(minibatches).startswith("Penalised.weight has changed")


def test_a_number_that_changes_in_a_run_is_followed(caplog: pytest.LogCaptureFixture):
    class Heavier(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:  # type: ignore[override]
            pl_module.weight *= 3

    trained = []
    for path in (False, "trace"):
        ppo = Penalised(small_mlp, minibatch_size=32, update_epochs=2, compile=path)
        data = RolloutDataModule("CartPole-v1", num_envs=4, num_steps=16, total_iterations=4)
        options: Any = {"logger": False, "enable_checkpointing": False, "max_epochs": -1}
        Trainer(accelerator="cpu", callbacks=[Heavier()], **options).fit(ppo, data)
        trained.append(torch.cat([p.detach().flatten() for p in ppo.policy.parameters()]))
    assert_same(*trained)
    (record,) = warnings_in(caplog)
    assert "Penalised.weight has changed since it was traced" in record.getMessage()


def test_max_grad_norm():
    """A first Adam step with a huge epsilon is the gradient, scaled."""
    moved = []
    for max_grad_norm in (None, 0.05):
        run = Run("torch")
        run.max_grad_norm = max_grad_norm
        run.optimizer.param_groups[0].update(lr=1.0, eps=1e4)
        start = run.parameters().double()
        minibatches = Minibatch(*(field[None] for field in minibatch(0)))
        run.take("eager")(minibatches)
        moved.append((run.parameters().double() - start) * 1e4)
    norms = [difference.norm().item() for difference in moved]
    assert norms[0] > 0.1
    assert norms[1] == pytest.approx(0.05, rel=1e-2)


# -------------------------------------------------------------------- which path


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
def test_choice(
    path: str, optimizer_steps: int | None, taken: str, caplog: pytest.LogCaptureFixture
):
    caplog.set_level(logging.INFO)
    assert Run("torch").take(path, optimizer_steps).path == taken
    messages = [record.getMessage() for record in caplog.records if "ppo1" in record.name]
    said = rf"update: {taken} in \d+\.\d s, \d+\.\d\d ms a step"
    if taken == "eager":
        said = r"update: eager \(compile=false\)"
    (message,) = messages
    assert re.fullmatch(said, message)


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
def test_other_optimizers_take_the_eager_path(name: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    run = Run("torch")
    run.optimizer = unsupported_optimizers(run.policy)[name]
    with pytest.raises(ConfigurationError, match=f"compile=true .*{name}.*compile=false") as error:
        run.take("compiled")
    assert "\n" not in str(error.value)
    start = run.parameters()
    assert isinstance(run.take("auto"), EagerUpdate)
    assert name in caplog.text
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
    assert record.getMessage().startswith("update: eager, for tracing failed: ")
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


def test_a_parameter_that_is_frozen_later_is_noticed():
    run = Run("torch")
    run.take("traced")
    next(run.policy.parameters()).requires_grad_(False)
    with pytest.raises(RuntimeError, match="replaced or frozen"):
        run.steps(range(1))


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
