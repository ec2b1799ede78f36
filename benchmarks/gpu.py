"""The GPU benchmark, on a machine that has PyTorch and needs no network.

``python -m benchmarks.gpu pack`` (where this project is installed) writes benchmarks/gpu.tar.xz;
``python -m benchmarks.gpu run`` (in a copy of the repository with that file) prints the table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
ARCHIVE = ROOT / "benchmarks" / "gpu.tar.xz"
LEFT_OUT = (
    "torch",
    "setuptools",
    "grpcio",
    "tensorboard-data-server",
)
"""Packages that are not packed, nor what only they need: nothing here asks for them."""
ASSETS = re.compile(
    r"envpool_assets\w*/(?!__init__|atari/|vizdoom/maps/.*cfg)|/(assets|tests|sample_data)/|/vizdoom/bin/"
)
"""Files not packed: of EnvPool's assets only Atari's games are played."""

SMALL = ["atari"]  # 8 environments x 128 steps, 4 epochs of 4 minibatches, as LeanRL
LARGE = ["atari", "num_envs=64", "algo.minibatch_size=2048"]
BF16 = "trainer.precision=bf16-mixed"
TWO_POOLS = "env.num_pools=2"
MEASURED = {
    "EnvPool alone, 8 environments": ["simulator", *SMALL],
    "8 x 128": ["ours", *SMALL],
    "8 x 128, bf16": ["ours", *SMALL, BF16],
    "8 x 128, two pools": ["ours", *SMALL, TWO_POOLS],
    "EnvPool alone, 64 environments": ["simulator", *LARGE],
    "64 x 128": ["ours", *LARGE],
    "64 x 128, bf16": ["ours", *LARGE, BF16],
    "64 x 128, two pools": ["ours", *LARGE, TWO_POOLS],
    "64 x 128, bf16, two pools": ["ours", *LARGE, BF16, TWO_POOLS],
}
"""Module of `benchmarks`, case and arguments of each row."""


def pack() -> None:
    """Write the installed packages that this project needs besides PyTorch."""
    with tarfile.open(ARCHIVE, "w:xz") as archive:
        for file, place in packed_files():
            archive.add(file, place)
    print(f"{ARCHIVE}: {ARCHIVE.stat().st_size / 2**20:.0f} MiB, for Python {_python()}")


def packed_files() -> Iterator[tuple[str, str]]:
    """Yield each file and its place below site-packages."""
    for name in sorted(needed()):
        for file in metadata.files(name) or ():
            place = str(file)
            asset = ASSETS.search(place) and not place.endswith(".json")
            if not (place.startswith("..") or "__pycache__" in place or asset):
                yield str(file.locate()), place


def needed() -> set[str]:
    """Return the installed packages that this project needs, those that need others included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    found: set[str] = set()
    lines = list(project["dependencies"])
    while lines:
        name = re.split(r"[^\w.-]", lines[-1])[0].lower().replace("_", "-")
        is_extra = "extra ==" in lines.pop()
        if is_extra or name in found or name in LEFT_OUT:
            continue
        try:
            lines += metadata.requires(name) or ()
        except metadata.PackageNotFoundError:  # for another system or Python
            continue
        found.add(name)
    return found


def run(accelerator: str, seconds: float, score: float) -> dict[str, Any]:
    """Measure everything once, one after the other, and print the table."""
    with tempfile.TemporaryDirectory() as folder:
        python = unpack(Path(folder))
        results = {name: _measure(python, *words) for name, words in measured(accelerator, seconds)}
        words = [f"{score}", "experiment=pong_fast", f"trainer.accelerator={accelerator}"]
        results[f"Pong to {score:g}"] = _measure(python, "time_to_score", *words)
    return {"machine": describe(accelerator), "results": results}


def measured(accelerator: str, seconds: float) -> Iterator[tuple[str, list[str]]]:
    """Yield the name and the words of each row."""
    for name, words in MEASURED.items():
        yield name, [*words, f"--seconds={seconds}", f"trainer.accelerator={accelerator}"]


def unpack(folder: Path) -> Path:
    """Return the interpreter of a new environment: this one's packages, and those of the archive.

    A package that both have is the archive's.
    """
    builder = venv.EnvBuilder(system_site_packages=True, symlinks=True)
    builder.create(folder)
    place = folder / "lib" / f"python{_python()}" / "site-packages"
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(place, filter="data")
    # PyTorch may itself be in an environment, of which the new one knows nothing.
    others = (path for path in sys.path if path.endswith("-packages"))
    (place / "others.pth").write_text("\n".join(others) + "\n", encoding="utf-8")
    return folder / "bin" / "python"


def describe(accelerator: str) -> dict[str, str]:
    """Return what the table was measured on."""
    import torch

    card = torch.cuda.get_device_name() if accelerator == "gpu" else "none"
    return {
        "card": card,
        "cores": str(len(os.sched_getaffinity(0))),
        "torch": torch.__version__,
        "python": _python(),
    }


def show(results: dict[str, Any]) -> None:
    """Print one line a row; speeds also over EnvPool's own with as many environments."""
    print(*results["machine"].items())
    alone = float("nan")
    for name, result in results["results"].items():
        speed = result.get("steps_per_second")
        if speed is None:
            print(f"{name:32} {json.dumps(result)}")
            continue
        alone = speed if name.startswith("EnvPool") else alone
        print(f"{name:32} {speed:10,.0f} steps/s {speed / alone:6.0%} of EnvPool alone")


def _measure(python: Path, module: str, *words: str) -> dict[str, Any]:
    command = [str(python), "-m", f"benchmarks.{module}", *words]
    print(" ".join(command[1:]), file=sys.stderr, flush=True)
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    try:
        return json.loads(done.stdout.strip().splitlines()[-1])
    except (IndexError, ValueError):
        return {"unavailable": (done.stdout + done.stderr)[-1500:]}


def _python() -> str:
    return "{}.{}".format(*sys.version_info)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("pack", "run"))
    parser.add_argument("--accelerator", default="gpu", help="cpu: to try it out")
    parser.add_argument("--seconds", type=float, default=10.0, help="of steady state, a row")
    parser.add_argument("--score", type=float, default=18.0, help="of Pong")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks" / "results" / "gpu.json")
    arguments = parser.parse_args()
    if arguments.what == "pack":
        pack()
        return
    if not ARCHIVE.exists():
        parser.error(f"there is no {ARCHIVE}, expected what `benchmarks.gpu pack` writes")
    results = run(arguments.accelerator, arguments.seconds, arguments.score)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    show(results)


if __name__ == "__main__":
    main()
