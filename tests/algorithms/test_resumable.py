"""Checkpoints whole by their checksums, and with something else in them than a run writes."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import train_tiny

from ppo1_lightning.algorithms.plain import read_checkpoint
from ppo1_lightning.algorithms.resumable import check_resumable
from ppo1_lightning.errors import ConfigurationError
from ppo1_lightning.runs.load import load_run
from ppo1_lightning.runs.resume import find_checkpoint

Checkpoint = dict[str, Any]
Change = Callable[[Checkpoint], object]
OURS = "ppo1_lightning"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_tiny(tmp_path_factory.mktemp("runs") / "run", "env=cartpole")


@pytest.fixture(scope="module")
def written(trained: Path) -> Checkpoint:
    return torch.load(trained / "checkpoints" / "last.ckpt", weights_only=True)


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def put(value: Any, *keys: Any) -> Change:
    """Return a change that puts a value where the keys lead."""

    def change(checkpoint: Checkpoint) -> None:
        place: Any = checkpoint
        for key in keys[:-1]:
            place = place[key]
        place[keys[-1]] = value

    return change


def weight_of(change: Callable[[torch.Tensor], Any]) -> Change:
    """Return a change of the first layer's weights."""

    def changed(checkpoint: Checkpoint) -> None:
        name = next(n for n, v in checkpoint["state_dict"].items() if n.endswith("0.weight"))
        checkpoint["state_dict"][name] = change(checkpoint["state_dict"][name])

    return changed


def moments_of(change: Callable[[torch.Tensor], Any]) -> Change:
    """Return a change of Adam's moments."""

    def changed(checkpoint: Checkpoint) -> None:
        for state in checkpoint["optimizer_states"][0]["state"].values():
            state["exp_avg"] = change(state["exp_avg"])

    return changed


def extra_states(value: Any) -> Change:
    def changed(checkpoint: Checkpoint) -> None:
        weights = checkpoint["state_dict"]
        names = [name for name in weights if name.endswith("_extra_state")]
        assert names
        weights.update(dict.fromkeys(names, value))

    return changed


def unfolding(kind: Callable[[list[Any]], Any]) -> Any:
    """Return some bytes that stand for 10 to the 13th values."""
    value: Any = ["x"] * 10
    for _ in range(12):
        value = kind([value] * 10)
    return value


def holding_itself(times: int) -> list[Any]:
    value: list[Any] = []
    value.extend([value] * times)
    return value


TO_PLAY: dict[str, tuple[Change, str]] = {
    "counter too large": (put(10**400, OURS, "counters", "env_steps"), "no valid counters"),
    "half a step": (put(2.5, OURS, "counters", "env_steps"), "no valid counters"),
    "episodes": (put(["a", None, {}], OURS, "episodes"), "no valid episodes"),
    "no pairs": (put([[1, 2, 3]], OURS, "episodes"), "no valid episodes"),
    "weights in a list": (put([1], "state_dict"), "not a checkpoint of a training run"),
    "no weights": (put(None, "state_dict"), "not a checkpoint of a training run"),
    "a number as a name": (put(torch.zeros(1), "state_dict", 1), "expected names"),
    "8-bit floats": (weight_of(lambda w: w.to(torch.float8_e4m3fn)), "damaged"),
    "complex": (weight_of(lambda w: w.to(torch.complex64)), "is of torch.complex64"),
    "whole numbers": (weight_of(lambda w: w.long()), "is of torch.int64"),
    "repeated": (put(torch.zeros(1).expand(10**5, 10**6), "x"), "damaged"),
    "an extra state": (extra_states("x"), "no valid 'sum' of a normaliser"),
    "an empty one": (extra_states({}), "no valid 'sum' of a normaliser"),
    "of another shape": (
        extra_states(dict.fromkeys(("sum", "sum_squares", "count"), torch.zeros(7))),
        "no valid 'sum' of a normaliser",
    ),
    "unfolding": (put(unfolding(list), "x"), "damaged"),
    "unfolding sets": (put({"a": unfolding(tuple)}, "x"), "damaged"),
    "holding itself": (put(holding_itself(1), "x"), "damaged"),
    "holding itself often": (put(holding_itself(5000), "x"), "damaged"),
    "moments of 0.1": (extra_states({"moments": "x"}), "no valid 'sum'"),
}


@pytest.mark.parametrize("name", TO_PLAY)
def test_what_plays_is_refused_in_a_line(name: str, run: Path, written: Checkpoint) -> None:
    change, said = TO_PLAY[name]
    changed = copy.deepcopy(written)
    change(changed)
    torch.save(changed, run / "checkpoints" / "last.ckpt")
    with pytest.raises(ConfigurationError, match=said) as error:
        load_run(run)
    assert "\n" not in str(error.value)


def test_without_an_optimizer_it_plays(run: Path, written: Checkpoint) -> None:
    torch.save(written | {"optimizer_states": []}, run / "checkpoints" / "last.ckpt")
    assert load_run(run).module.counters.env_steps > 0


TO_GO_ON: dict[str, Change] = {
    "no loops": put({}, "loops"),
    "loops in a list": put([1], "loops"),
    "other loops": put({"fit_loop": {"a": 1}}, "loops"),
    "no progress": put({"total": {"ready": "x"}}, "loops", "fit_loop", "epoch_loop.batch_progress"),
    "callbacks in a list": put([1], "callbacks"),
    "a callback's state": put({"RunCheckpoint": "x"}, "callbacks"),
    "another version": put("x", "pytorch-lightning_version"),
    "no version": put(None, "pytorch-lightning_version"),
    "steps": put("x", "global_step"),
    "no optimizer": put(["x"], "optimizer_states"),
    "an empty one": put([{}], "optimizer_states"),
    "no groups": put([], "optimizer_states", 0, "param_groups"),
    "parameters": put([[1]], "optimizer_states", 0, "param_groups", 0, "params"),
    "names": put([[1]], "optimizer_states", 0, "param_groups", 0, "param_names"),
    "moments of another shape": moments_of(lambda m: torch.zeros(3)),
    "moments that are NaN": moments_of(lambda m: m * float("nan")),
    "endless moments": moments_of(lambda m: torch.zeros(1).expand(10**5, 10**6)),
    "a counter": put(2.5, OURS, "counters", "env_steps"),
}


@pytest.mark.parametrize("name", TO_GO_ON)
def test_the_one_before_it_is_taken(
    name: str, tmp_path: Path, trained: Path, written: Checkpoint
) -> None:
    good = trained / "checkpoints" / "last.ckpt"
    shutil.copy(good, tmp_path / "previous.ckpt")
    changed = copy.deepcopy(written)
    TO_GO_ON[name](changed)
    torch.save(changed, tmp_path / "last.ckpt")
    path, content = find_checkpoint(tmp_path)
    assert path == tmp_path / "previous.ckpt"
    assert content is not None
    assert (tmp_path / "last.ckpt.damaged").exists()


def test_what_a_run_writes_is_taken(trained: Path) -> None:
    path, _ = find_checkpoint(trained / "checkpoints")
    assert path == trained / "checkpoints" / "last.ckpt"


@pytest.mark.parametrize("kind", [torch.optim.Adafactor, torch.optim.SGD, torch.optim.RMSprop])
def test_other_optimizers_go_on(kind: type[torch.optim.Optimizer], written: Checkpoint) -> None:
    """One that keeps rows and columns of a weight's moments, and one that keeps nothing."""
    weight = torch.nn.Parameter(torch.ones(4, 3))
    optimizer = kind([("weight", weight)], lr=0.1)  # type: ignore[call-arg]
    weight.sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    assert state["param_groups"][0]["param_names"] == ["weight"]
    weights = {"weight": weight.detach()}
    check_resumable(written | {"state_dict": weights, "optimizer_states": [state]})


def test_values_that_are_shared_are_read(tmp_path: Path, written: Checkpoint) -> None:
    """As long as they unfold to less than the file has bytes: optimizers share tuples."""
    shared = {"a": 1}
    torch.save(written | {"x": [shared] * 100}, tmp_path / "last.ckpt")
    assert read_checkpoint(tmp_path / "last.ckpt")["x"] == [shared] * 100
