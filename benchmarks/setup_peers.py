"""Create the peers' virtual environments: ``python -m benchmarks.setup_peers [sb3 ...]``.

They take PyTorch from PyPI, on Linux a build for CUDA of several GB; the CPU's is smaller:
``PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu python -m benchmarks.setup_peers``
"""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path

HERE = Path(__file__).resolve().parent


def create(peer: str) -> None:
    """Create the environment of one peer from its pinned requirements, unless it is there."""
    folder = HERE / ".venvs" / peer
    requirements = HERE / "peers" / f"requirements-{peer}.txt"
    no_deps = HERE / "peers" / f"no-deps-{peer}.txt"  # what would refuse those requirements
    wanted = requirements.read_text() + (no_deps.read_text() if no_deps.exists() else "")
    installed = folder / "installed.txt"  # what a finished installation holds
    if installed.exists() and installed.read_text() == wanted:
        return
    venv.create(folder, clear=True, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install"]
    subprocess.run([*pip, "--requirement", requirements], check=True)
    if no_deps.exists():
        alone = ["--no-deps", "--ignore-requires-python"]
        subprocess.run([*pip, *alone, "--requirement", no_deps], check=True)
    installed.write_text(wanted)


def main() -> None:
    known = sorted(
        file.stem.removeprefix("requirements-")
        for file in (HERE / "peers").glob("requirements-*.txt")
    )
    chosen = sys.argv[1:] or known
    if unknown := set(chosen) - set(known):
        sys.exit(f"unknown peer {min(unknown)}, expected some of {', '.join(known)}")
    for peer in chosen:
        create(peer)


if __name__ == "__main__":
    main()
