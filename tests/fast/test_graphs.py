"""Graphs compute what their functions compute, and compiled ones are found again on disk."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from zipfile import ZipFile

import pytest
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from ppo1_lightning import ConfigurationError, MlpPolicy
from ppo1_lightning.fast import inductor
from ppo1_lightning.fast.acting import PolicyGraph
from ppo1_lightning.fast.compiler import read_headers_ahead
from ppo1_lightning.fast.graphs import Graph, LayoutError
from ppo1_lightning.fast.native import cache_folder
from ppo1_lightning.policies.base import separate_parameters

both_ways = pytest.mark.parametrize(
    "compiled",
    [
        pytest.param(False, id="traced"),
        pytest.param(True, id="compiled", marks=pytest.mark.heavy),
    ],
)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return `descend` for three numbers as the compiler makes it, below the name it is kept by."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        headers = inductor.precompiled_headers()
        patch.setattr(inductor, "precompiled_headers", lambda: headers)
        patch.setenv("XDG_CACHE_HOME", str(folder))
        run_once(Graph(descend, compiled=True), torch.zeros(3), torch.zeros(()), torch.ones(3))
    (made,) = (folder / "ppo1_lightning").glob("*.zip")
    return made


class Compiler:
    """Stands in for the compiler, which takes long: it makes the same library each time."""

    def __init__(self, package: Path) -> None:
        self.package, self.calls = package, 0

    def __call__(self, source: str, folder: Path) -> Callable[[], Path]:
        self.calls += 1
        with ZipFile(self.package) as z:
            (name,) = z.namelist()
            library = Path(z.extract(name, folder))
        return lambda: library


@pytest.fixture
def compiler(package: Path, monkeypatch: pytest.MonkeyPatch) -> Compiler:
    stand_in = Compiler(package)
    monkeypatch.setattr(inductor, "write_source", lambda *_: "")
    monkeypatch.setattr(inductor, "prepare_build", stand_in)
    return stand_in


def no_compiler(*_: Any) -> str:
    raise AssertionError("compiled again")


def descend(x: Tensor, loss: Tensor, target: Tensor) -> None:
    """Take a gradient step on ``x`` in place and write the loss."""
    loss.copy_((x - target).square().sum())
    x.sub_(0.1 * torch.func.grad(lambda x: (x - target).square().sum())(x))


def run_once(graph: Graph, *tensors: Tensor) -> None:
    run = graph.bind(tensors, ())
    run(0, 1)


@both_ways
@torch.inference_mode()
def test_a_graph_writes_what_its_function_does(compiled: bool):
    x, loss, target = torch.zeros(3), torch.zeros(()), torch.tensor([1.0, 2.0, 3.0])
    graph = Graph(descend, compiled=compiled)
    run_once(graph, x, loss, target)
    assert loss.item() == 14.0
    torch.testing.assert_close(x, 0.2 * target)  # one step: making the graph was none
    run_once(graph, x, loss, target)
    torch.testing.assert_close(x, 0.36 * target)


@both_ways
@torch.inference_mode()
def test_a_graph_goes_through_rows(compiled: bool):
    x, losses = torch.zeros(3), torch.full((5,), -1.0)
    targets = torch.randn(5, 2, 3)[:, 1]  # rows with gaps between them
    run = Graph(descend, compiled=compiled).bind([x], [losses, targets])
    expected = torch.zeros(3)
    for first, end in ((0, 1), (1, 4)):
        run(first, end)
        for k in range(first, end):
            assert losses[k].item() == pytest.approx((expected - targets[k]).square().sum().item())
            expected -= 0.2 * (expected - targets[k])
        torch.testing.assert_close(x, expected)
    assert losses[4] == -1


@pytest.mark.heavy
@torch.inference_mode()
def test_kept_graphs_are_taken_and_others_not_compiled(
    package: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(package.parent, own_cache)
    monkeypatch.setattr(inductor, "write_source", no_compiler)
    x, loss, target = torch.zeros(3), torch.zeros(()), torch.ones(3)
    kept = Graph(descend, compiled="kept")
    run_once(kept, x, loss, target)
    torch.testing.assert_close(x, 0.2 * target)
    monkeypatch.setattr(inductor, "precompiled_headers", no_compiler)
    wider, target = torch.zeros(4), torch.ones(4)
    run_once(Graph(descend, compiled="kept"), wider, loss, target)
    torch.testing.assert_close(wider, 0.2 * target)
    assert [file.name for file in own_cache.glob("*.zip")] == [package.name]


@pytest.mark.heavy
@torch.inference_mode()
@pytest.mark.slow
def test_two_compiled_graphs_run_in_two_threads_at_once():
    def grow(x: Tensor, rate: Tensor) -> None:
        x.copy_(torch.sin(x @ x) + rate)

    xs, rates = [torch.eye(64), torch.eye(64)], torch.rand(2, 500, 64, 64)
    runs = [Graph(grow, compiled=True).bind([x], [r]) for x, r in zip(xs, rates, strict=True)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda run: run(0, 500), runs))
    for x, its_rates in zip(xs, rates, strict=True):
        again = torch.eye(64)
        run = Graph(grow, compiled=True).bind([again], [its_rates])
        run(0, 500)
        assert torch.equal(x, again)


@pytest.mark.heavy
@torch.inference_mode()
def test_compiled_graphs_are_found_on_disk(
    package: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    shutil.copytree(package.parent, own_cache)
    assert own_cache.stat().st_mode & 0o077 == 0
    monkeypatch.setattr(inductor, "write_source", no_compiler)
    again, loss, target = torch.zeros(3), torch.zeros(()), torch.ones(3)
    run_once(Graph(descend, compiled=True), again, loss, target)
    torch.testing.assert_close(again, 0.2 * target)
    with pytest.raises(AssertionError, match="compiled again"):  # other shapes are another graph
        run_once(Graph(descend, compiled=True), torch.zeros(4), loss, torch.ones(4))
    with pytest.raises(AssertionError, match="compiled again"):  # and so is another function
        run_once(Graph(lambda x: x.add_(1), compiled=True), again)
    assert [file.name for file in own_cache.glob("*.zip")] == [package.name]


def test_headers_are_read_ahead_once_for_a_machine(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    asked = threading.Event()
    monkeypatch.setattr(inductor, "precompiled_headers", asked.set)
    read_headers_ahead()
    assert asked.wait(10)
    asked.clear()
    (own_cache / "headers-of-another-pytorch").mkdir(parents=True)
    read_headers_ahead()
    assert asked.wait(10)
    asked.clear()
    (own_cache / f"{inductor.headers_here()}of-an-earlier-run").mkdir()
    read_headers_ahead()
    assert not asked.wait(0.2)


@pytest.mark.heavy
@torch.inference_mode()
def test_headers_that_are_damaged_are_done_without(
    own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    headers = inductor.precompiled_headers()
    assert headers is not None
    own_cache.mkdir(mode=0o700)
    copied = shutil.copy(headers, own_cache)
    (own_cache / "headers.h.gch").write_bytes(b"gpch?")
    monkeypatch.setattr(inductor, "precompiled_headers", lambda: copied)
    x = torch.zeros(2)
    run_once(Graph(lambda x: x.add_(3), compiled=True), x)
    assert x.tolist() == [3, 3]


@pytest.mark.heavy
@torch.inference_mode()
@pytest.mark.slow
def test_graphs_that_differ_in_a_constant_tensor_are_compiled_once(monkeypatch: pytest.MonkeyPatch):
    def adding(constant: float) -> Graph:
        values = torch.full((2,), constant)
        return Graph(lambda x: x.add_(values), compiled=True)

    x = torch.zeros(2)
    run_once(adding(1.0), x)
    assert x.tolist() == [1, 1]
    monkeypatch.setattr(inductor, "write_source", no_compiler)
    run_once(adding(2.0), x)
    assert x.tolist() == [3, 3]
    run_once(adding(1.0), x)
    assert x.tolist() == [4, 4]


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


class Exponential(Shifting):
    """What a graph need not compute for each row: compiled, it does not."""

    def forward(self, observation: Tensor, state: Any) -> Any:
        weight, shift = self.weight.exp().log(), (self.shift.exp() + 0).log()
        return observation * weight + shift, observation.sum(-1), state


def write(policy: Any, observations: Tensor, parameters: Tensor, values: Tensor) -> None:
    for result, computed in zip((parameters, values), policy(observations, None), strict=False):
        result.copy_(computed)


@both_ways
@pytest.mark.parametrize("kind", [Shifting, Exponential])
@torch.inference_mode()
def test_a_policy_s_graph_follows_its_tensors(kind: type[Shifting], compiled: bool):
    policy = kind()
    graph = PolicyGraph(policy, write, compiled=compiled)
    x, parameters, values = (
        torch.arange(12.0).view(2, 2, 3),
        torch.zeros(2, 2, 3),
        torch.zeros(2, 2),
    )
    for step in range(3):
        policy.weight.data.fill_(step)
        policy.shift = torch.full((3,), 10.0 * step)
        run = graph.bind(x, parameters, values)
        run(0, 2)
        torch.testing.assert_close(parameters, step * x + 10 * step)
        assert torch.equal(values, x.sum(-1))


@both_ways
def test_what_is_exempt_from_autocast_stays_so(compiled: bool):
    def function(left: Tensor, right: Tensor, row: Tensor, result: Tensor) -> None:
        with torch.autocast("cpu", enabled=False):
            result.copy_(row @ (left @ right))

    torch.manual_seed(0)
    left, right, rows = torch.randn(5, 4), torch.randn(4, 3), torch.randn(2, 2, 5)
    results = torch.zeros(2, 2, 3)
    graph = Graph(function, compiled=compiled, hoists=compiled)
    with torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            run = graph.bind((left, right), (rows, results))
            run(0, 1)
        graph.bind((left, right), (rows, results))(1, 2)
    torch.testing.assert_close(results, rows @ (left @ right))


def results() -> tuple[Tensor, Tensor]:
    return torch.zeros(1, 2, 3), torch.zeros(1, 2)


def test_a_policy_s_graph_holds_none_of_its_tensors(monkeypatch: pytest.MonkeyPatch):
    """Or each set of weights would be a graph of its own, compiled again."""
    made: list[Any] = []

    def keep(graph: Any, examples: Any, **_: Any) -> Any:
        made.append(graph)
        return SimpleNamespace(bind=lambda fixed, rows: None)

    monkeypatch.setattr("ppo1_lightning.fast.graphs.compile_ahead", keep)
    PolicyGraph(Shifting(), write, compiled=True).bind(torch.zeros(1, 2, 3), *results())
    assert not made[0].state_dict()


def test_a_policy_s_graph_is_for_one_layout():
    graph = PolicyGraph(Shifting(), write, compiled=False)
    graph.bind(torch.zeros(1, 2, 3), *results())
    graph.bind(torch.ones(4, 2, 3), *results())  # of any number of rows
    for other in (torch.zeros(3, 3), torch.zeros(2, 3).double(), torch.zeros(3, 2).T):
        with pytest.raises(LayoutError):
            graph.bind(other[None], *results())


def test_a_buffer_of_another_layout_is_noticed():
    policy, x = Shifting(), torch.zeros(1, 2, 3)
    graph = PolicyGraph(policy, write, compiled=False)
    graph.bind(x, *results())
    for other in (torch.zeros(3).double(), torch.zeros(1), torch.zeros(6)[::2]):
        policy.shift = other
        with pytest.raises(LayoutError):
            graph.bind(x, *results())


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
    graph = Graph(lambda x: x.add_(1), compiled=False)
    with pytest.raises(ConfigurationError, match="a view with gaps") as error:
        run_once(graph, torch.zeros(3, 10)[:, 0])
    assert "\n" not in str(error.value)


@pytest.mark.heavy
@torch.inference_mode()
def test_a_damaged_package_is_compiled_again(package: Path, own_cache: Path, compiler: Compiler):
    own_cache.mkdir(mode=0o700)
    kept = own_cache / package.name
    kept.write_bytes(package.read_bytes()[:1000])
    x = torch.zeros(3)
    run_once(Graph(descend, compiled=True), x, torch.zeros(()), torch.ones(3))
    assert compiler.calls == 1
    assert x.tolist() == pytest.approx([0.2] * 3)
    with ZipFile(kept) as z:
        assert z.testzip() is None


@pytest.mark.heavy
@torch.inference_mode()
def test_a_full_disk_keeps_no_package(
    own_cache: Path, compiler: Compiler, caplog: pytest.LogCaptureFixture
):
    """The disk is played: packing stops in the middle."""
    own_cache.mkdir()

    def no_room(file: Path, mode: str = "r") -> Any:
        if mode == "w":
            file.write_bytes(b"all that fits")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return ZipFile(file, "r")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ppo1_lightning.fast.compiler.ZipFile", no_room)
        x = torch.zeros(3)
        run_once(Graph(descend, compiled=True), x, torch.zeros(()), torch.ones(3))
    assert compiler.calls == 1
    assert x.tolist() == pytest.approx([0.2] * 3)
    assert not list(own_cache.glob("*.zip"))
    assert "is not kept for the next run" in caplog.text


@pytest.mark.heavy  # `own_cache` asks for the compiler's version
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


@pytest.mark.heavy
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.inference_mode()
def test_a_captured_graph_goes_through_rows():
    x, loss = torch.zeros(3, device="cuda"), torch.zeros((), device="cuda")
    graph, expected = Graph(descend, compiled=True), torch.zeros(3, device="cuda")
    for _ in range(2):
        targets = torch.randn(5, 3, device="cuda")
        run = graph.bind([x, loss], [targets])
        for first, end in ((0, 1), (1, 5)):
            run(first, end)
        for target in targets:
            expected -= 0.2 * (expected - target)
        torch.testing.assert_close(x, expected)
