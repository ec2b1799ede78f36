"""Checkpoints of some kilobytes that take hours or gigabytes to load, and those that do not."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from ppo1_lightning.algorithms.plain import read_checkpoint
from ppo1_lightning.errors import ConfigurationError

CHECKPOINT: dict[str, Any] = {"state_dict": {"w": torch.zeros(3)}, "loops": {}}

MANY = 40_000


def named(number: int = 10**6) -> bytes:
    """Return the opcode that names what is on the stack."""
    return b"r" + number.to_bytes(4, "little")


def again(number: int = 10**6) -> bytes:
    """Return the opcode that puts it there again."""
    return b"j" + number.to_bytes(4, "little")


def text(content: str) -> bytes:
    return b"X" + len(content).to_bytes(4, "little") + content.encode()


def whole(number: int) -> bytes:
    content = number.to_bytes(number.bit_length() // 8 + 1, "little", signed=True)
    return b"\x8a" + bytes([len(content)]) + content


TUPLE = b"(" + b"K\x01" * 10**5 + b"t"
SET, ORDERED = b"cbuiltins\nset\n", b"ccollections\nOrderedDict\n"
ENCODE = b"c_codecs\nencode\n"
PAIR = b"K\x01K\x01\x86" + named(5)


def calls(function: bytes, arguments: bytes, first: bytes) -> bytes:
    """Return a tuple of many calls of a function."""
    call = again(10**6 + 1) + arguments + b"R"
    return b"(" + first + function + named(10**6 + 1) + call * MANY + b"t"


def doubled() -> bytes:
    """Return ((...), (...)), each level the one below it twice."""
    pickled = b")" + named()
    for level in range(10**6, 10**6 + 60):
        pickled += again(level) + b"\x86" + named(level + 1)
    return pickled


COSTLY = {
    "a nested key": doubled() + b"K\x01s",
    "a long key again and again": TUPLE + named() + b"K\x01s" + (again() + b"K\x01s") * MANY,
    "a deep key": b")" + b"\x85" * 900_000 + b"K\x01s",
    "a set of the same again": text("x")
    + calls(SET, again() + b"\x85", b"]" + named() + TUPLE + b"a")
    + b"s",
    "pairs again": text("x")
    + calls(ORDERED, again() + b"\x85", b"]" + named() + b"(" + PAIR + again(5) * 60_000 + b"e")
    + b"s",
    "arguments again": text("x")
    + calls(SET, again(7), b"]" + named() + TUPLE + b"a" + again() + b"\x85" + named(7))
    + b"s",
    "attributes again": text("x")
    + ORDERED
    + b")R}"
    + named()
    + b"("
    + b"".join(text(f"{i}") + b"N" for i in range(50_000))
    + b"ub"
    + (again() + b"b") * MANY
    + b"s",
    "letters again": text("x")
    + calls(ENCODE, again() + text("latin1") + b"\x86", text("a" * 400_000) + named())
    + b"s",
    "memory for a number": text("x") + b"cbuiltins\nbytearray\n" + whole(4 * 10**9) + b"\x85Rs",
    "numbers of one hash": b"("
    + b"".join(whole(i * (2**61 - 1)) + b"N" for i in range(1, 60_000))
    + b"u",
}


def write(path: Path, opcodes: bytes, name: str = "data.pkl") -> None:
    """Write a checkpoint with more in its dict."""
    stream = io.BytesIO()
    torch.save(CHECKPOINT, stream)
    with zipfile.ZipFile(stream) as good, zipfile.ZipFile(path, "w") as changed:
        for part in good.namelist():
            content = good.read(part)
            if part.endswith("data.pkl"):  # a dict, and the end
                content = content[:-1] + opcodes + content[-1:]
            changed.writestr(part.replace("data.pkl", name), content)


@pytest.mark.parametrize("name", COSTLY)
def test_what_takes_hours_to_load_is_refused(name: str, tmp_path: Path) -> None:
    write(tmp_path / "last.ckpt", COSTLY[name])
    assert (tmp_path / "last.ckpt").stat().st_size < 1_500_000
    with pytest.raises(ConfigurationError, match="damaged or holds more") as error:
        read_checkpoint(tmp_path / "last.ckpt")
    assert any(word in str(error.value.__cause__) for word in ("far longer", "calls"))


def test_whatever_the_part_is_called(tmp_path: Path) -> None:
    """PyTorch's reader of archives takes capitals for small letters."""
    write(tmp_path / "last.ckpt", COSTLY["a nested key"], "DATA.PKL")
    with pytest.raises(ConfigurationError, match="damaged or holds more") as error:
        read_checkpoint(tmp_path / "last.ckpt")
    assert "far longer" in str(error.value.__cause__)


WEIGHT = nn.Parameter(torch.zeros(3))

SHARED = {
    "a weight": [WEIGHT] * 1000,
    "weights by name": dict.fromkeys(range(1000), WEIGHT),
    "a tuple": [(1, 2, 3)] * 1000,
    "a tuple as a key": [{(1, 2, 3): 1}] * 300,
    "a shape": [torch.Size([2, 3])] * 1000,
    "numbers": [1j] * 1000,
    "letters": ["abc" * 10] * 1000,
    "large numbers": [10**400] * 100,
}


@pytest.mark.parametrize("name", SHARED)
def test_what_is_shared_is_read(name: str, tmp_path: Path) -> None:
    torch.save(CHECKPOINT | {"x": SHARED[name]}, tmp_path / "last.ckpt")
    found = read_checkpoint(tmp_path / "last.ckpt")["x"]
    assert len(found) == len(SHARED[name])
