"""The eager, traced and compiled paths compute the same update."""

from __future__ import annotations

import io
import os
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer
from torch import Tensor, nn

from ppo1_lightning import PPO, RolloutDataModule
from ppo1_lightning.algorithms.update import EagerUpdate
from ppo1_lightning.policies import PolicyFactory
from ppo1_lightning.rollouts.segment import Minibatch
from tests.update_runs import CASES, Run, assert_same, minibatch, small_mlp, warnings_in

pytestmark = pytest.mark.heavy


def saved_and_loaded(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


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


def test_a_parameter_that_is_frozen_later_is_noticed():
    run = Run("torch")
    run.take("traced")
    next(run.policy.parameters()).requires_grad_(False)
    with pytest.raises(RuntimeError, match="replaced or frozen"):
        run.steps(range(1))
