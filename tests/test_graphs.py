"""Graphs compute what their functions compute, and compiled ones are found again on disk."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor as inductor
from gymnasium.spaces import Box
from torch import Tensor, nn

from ppo1_lightning import ConfigurationError, MlpPolicy
from ppo1_lightning.compiler import cache_folder
from ppo1_lightning.graphs import Graph, PolicyGraph, separate_parameters

both_ways = pytest.mark.parametrize("compiled", [False, True], ids=["traced", "compiled"])


@pytest.fixture
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ppo1_lightning"


@pytest.fixture(scope="module")
def compiled_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a cache that holds nothing but `descend` for three numbers."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setenv("XDG_CACHE_HOME", str(folder))
        Graph(descend, compiled=True)(torch.zeros(3), torch.ones(3))
    return folder / "ppo1_lightning"


def descend(x: Tensor, target: Tensor) -> tuple[Tensor]:
    """Take a gradient step on ``x`` in place and return the loss."""
    loss = (x - target).square().sum()
    x.sub_(0.1 * torch.func.grad(lambda x: (x - target).square().sum())(x))
    return (loss,)


@both_ways
@torch.inference_mode()
def test_a_graph_computes_and_writes_what_its_function_does(compiled: bool):
    x, target = torch.zeros(3), torch.tensor([1.0, 2.0, 3.0])
    graph = Graph(descend, compiled=compiled)
    assert graph(x, target)[0].item() == 14.0
    torch.testing.assert_close(x, 0.2 * target)  # one step: making the graph was none
    graph(x, target)
    torch.testing.assert_close(x, 0.36 * target)


@torch.inference_mode()
def test_compiled_graphs_are_found_on_disk(
    compiled_once: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(compiled_once, own_cache)
    (package,) = own_cache.glob("*.pt2")
    assert own_cache.stat().st_mode & 0o077 == 0

    def no_compiler(*_: Any, **__: Any) -> str:
        raise AssertionError("compiled again")

    monkeypatch.setattr(inductor, "aoti_compile_and_package", no_compiler)
    again, target = torch.zeros(3), torch.ones(3)
    Graph(descend, compiled=True)(again, target)
    torch.testing.assert_close(again, 0.2 * target)
    with pytest.raises(AssertionError, match="compiled again"):  # other shapes are another graph
        Graph(descend, compiled=True)(torch.zeros(4), torch.ones(4))
    with pytest.raises(AssertionError, match="compiled again"):  # and so is another function
        Graph(lambda x, y: (descend(x, y)[0] + 1,), compiled=True)(again, target)
    assert list(own_cache.glob("*.pt2")) == [package]


@torch.inference_mode()
def test_a_constant_within_a_function_is_part_of_it():
    def adding(constant: float) -> Graph:
        values = torch.full((2,), constant)
        return Graph(lambda x: (x + values,), compiled=True)

    zeros = torch.zeros(2)
    assert adding(1.0)(zeros)[0].tolist() == [1, 1]
    assert adding(2.0)(zeros)[0].tolist() == [2, 2]


def test_the_cache_is_below_home_by_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "ppo1_lightning"


class Shifting(nn.Module):
    """A policy that puts a new tensor in the place of its buffer."""

    shift: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("shift", torch.zeros(3))

    def forward(self, observation: Tensor, state: Any) -> Any:
        return observation * self.weight + self.shift, observation.sum(-1), state


@both_ways
@torch.inference_mode()
def test_a_policy_s_graph_follows_its_tensors(compiled: bool):
    policy = Shifting()
    graph = PolicyGraph(policy, lambda policy, x: policy(x, None)[:2], compiled=compiled)
    x = torch.arange(6.0).view(2, 3)
    for step in range(3):
        policy.weight.data.fill_(step)
        policy.shift = torch.full((3,), 10.0 * step)
        parameters, values = graph(x)
        assert torch.equal(parameters, step * x + 10 * step)
        assert torch.equal(values, x.sum(-1))


def test_a_policy_s_graph_is_for_one_layout():
    graph = PolicyGraph(Shifting(), lambda policy, x: policy(x, None)[:2], compiled=False)
    assert graph.bind(torch.zeros(2, 3))
    assert graph.bind(torch.ones(2, 3))
    for other in (torch.zeros(3, 3), torch.zeros(2, 3).double(), torch.zeros(3, 2).T):
        assert not graph.bind(other)
        with pytest.raises(RuntimeError, match="not laid out"):
            graph(other)


def test_a_buffer_of_another_layout_is_noticed():
    policy, x = Shifting(), torch.zeros(2, 3)
    graph = PolicyGraph(policy, lambda policy, x: policy(x, None)[:2], compiled=False)
    assert graph.bind(x)
    for other in (torch.zeros(3).double(), torch.zeros(1), torch.zeros(6)[::2]):
        policy.shift = other
        assert not graph.bind(x)


@pytest.mark.parametrize("shared", [False, True])
def test_the_parameters_of_a_value_function_of_its_own_are_found(shared: bool):
    policy = MlpPolicy(Box(-1, 1, (5,)), Box(-1, 1, (2,)), shared_trunk=shared)
    apart = separate_parameters(policy, torch.zeros(3, 5))
    if shared:
        assert apart is None
    else:
        assert apart is not None
        acting, valuing = apart
        assert {name.split(".")[0] for name in acting} == {"trunk", "action_head", "log_std"}
        assert {name.split(".")[0] for name in valuing} == {"value_trunk", "value_head"}


def test_parameters_of_no_effect_belong_to_neither():
    assert separate_parameters(Shifting(), torch.zeros(2, 3)) is None  # its value has none at all
    policy = MlpPolicy(Box(-1, 1, (5,)), Box(-1, 1, (2,)))
    policy.unused = nn.Parameter(torch.zeros(1))
    assert separate_parameters(policy, torch.zeros(3, 5)) is None


@torch.inference_mode()
def test_a_view_with_gaps_is_refused():
    graph = Graph(lambda x: (x + 1,), compiled=False)
    with pytest.raises(ConfigurationError, match="a view with gaps") as error:
        graph(torch.zeros(3, 10)[:, 0])
    assert "\n" not in str(error.value)


@torch.inference_mode()
def test_a_damaged_package_is_compiled_again(compiled_once: Path, own_cache: Path):
    shutil.copytree(compiled_once, own_cache)
    (package,) = own_cache.glob("*.pt2")
    package.write_bytes(package.read_bytes()[:1000])
    x, target = torch.zeros(3), torch.ones(3)
    Graph(descend, compiled=True)(x, target)
    torch.testing.assert_close(x, 0.2 * target)
    assert package.stat().st_size > 1000


def test_a_folder_that_others_may_write_to_is_not_used(
    own_cache: Path, caplog: pytest.LogCaptureFixture
):
    own_cache.mkdir()
    own_cache.chmod(0o777)
    folder = cache_folder()
    assert folder != own_cache
    assert folder.is_dir()
    assert "not kept for the next run" in caplog.text
    assert cache_folder() == folder  # for all of this process


def test_an_unusable_home_is_no_obstacle(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "/proc/nowhere")
    assert cache_folder().is_dir()
