"""The Nature CNN's convolutions as compiled graphs, ours and PyTorch's in turns.

``python -m benchmarks.convolutions [images ...]`` prints milliseconds for the output with its ReLU,
and for it and all gradients that training needs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from unittest.mock import patch

import torch
import torch.nn.functional as F
from rich.table import Table
from torch import Tensor
from torch.func import vjp

from benchmarks.processes import console
from ppo1_lightning.commands.process import keep_freed_memory
from ppo1_lightning.fast import graphs
from ppo1_lightning.fast.compiler import Run

LAYERS = {
    "8 x 8, stride 4, 4 to 32 channels, of uint8": (4, 32, 8, 4, 84),
    "4 x 4, stride 2, 32 to 64 channels": (32, 64, 4, 2, 20),
    "3 x 3, stride 1, 64 to 64 channels": (64, 64, 3, 1, 9),
}
REPEATS = 25


def compiled(layer: str, images: int, *, learn: bool, ours: bool) -> Run:
    """Return a layer for some images as a compiled graph."""
    channels, outputs, kernel, stride, side = LAYERS[layer]
    of_pixels = layer.endswith("uint8")
    shape = (images, channels, side, side)
    image = torch.randint(0, 256, shape, dtype=torch.uint8) if of_pixels else torch.randn(shape)
    if not of_pixels:
        image = image.contiguous(memory_format=torch.channels_last)
    weight, bias = torch.randn(outputs, channels, kernel, kernel) / 100, torch.randn(outputs)

    def convolve(image: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        image = image.to(torch.float32, memory_format=torch.channels_last)
        return F.conv2d(image, weight, bias, stride).relu()

    def results(image: Tensor, weight: Tensor, bias: Tensor) -> Sequence[Tensor]:
        if not learn:
            return [convolve(image, weight, bias)]
        inputs = [weight, bias] if of_pixels else [image, weight, bias]
        output, pull_back, *_ = vjp(lambda *t: convolve(*[image, *t][-3:]), *inputs)
        return [output, *pull_back(output)]

    def write(*tensors: Tensor) -> None:
        for result, value in zip(tensors[3:], results(*tensors[:3]), strict=True):
            result.copy_(value)

    outcome = [tensor.clone() for tensor in results(image, weight, bias)]
    as_they_are = patch.object(graphs, "replace_convolutions", lambda graph: None)
    with torch.inference_mode(), nullcontext() if ours else as_they_are:
        run = graphs.Graph(write, compiled=True).bind([image, weight, bias, *outcome], [])
    assert run is not None
    return run


def in_turns(runs: Sequence[Run]) -> list[float]:
    """Return each one's median milliseconds."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(REPEATS):
        for run, its_times in zip(runs, times, strict=True):
            run(0, 1)  # the caches are the other's
            its_times.append(_milliseconds(lambda run=run: run(0, 1)))
    return [statistics.median(its_times) for its_times in times]


def _milliseconds(call: Callable[[], None]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("images", nargs="*", type=int, default=[8, 256], help="at once: 8 and 256")
    numbers = parser.parse_args().images
    keep_freed_memory()
    table = Table("images", "layer", "output", "PyTorch's", "with gradients", "PyTorch's")
    for images in numbers:
        for layer in LAYERS:
            figures = []
            for learn in (False, True):
                runs = [compiled(layer, images, learn=learn, ours=o) for o in (True, False)]
                figures += [f"{figure:.2f}" for figure in in_turns(runs)]
            table.add_row(str(images), layer, *figures)
    console.print(table)


if __name__ == "__main__":
    main()
