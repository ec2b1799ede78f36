"""Plain data: all that ``torch.load(weights_only=True)`` reads, and so all a checkpoint holds."""

from __future__ import annotations

import errno
import io
import os
import zipfile
from collections.abc import Iterator, Mapping
from enum import Enum
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import Strategy
from torch import Tensor

from ppo1_lightning.algorithms.pickled import check_cost
from ppo1_lightning.errors import ConfigurationError, StorageError, check_memory, one_line

_ZIP = b"PK"
"""How a checkpoint begins."""

_DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64),
    *(torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
    *(torch.complex128, torch.uint16, torch.uint32, torch.uint64),
}

UNFOLDED = 8
"""Values that containers may hold for each byte of a checkpoint, those again that are shared."""

_SCALARS = (bool, int, float, complex, str, bytes)


def plain(value: Any) -> Any:
    """Return a value with all that has a plain counterpart in its place; the rest as it is.

    Numbers of NumPy, tensors of one number, paths and OmegaConf's containers have one, and so do
    members of an enumeration of numbers or strings.
    """
    match value:
        case np.generic():
            return value.item()
        case np.ndarray():
            return value.tolist()
        case Tensor(ndim=0):
            return value.item()
        case Path():
            return str(value)
        case Enum() if isinstance(value, _SCALARS):
            return value.value
        case dict():
            return {plain(key): plain(item) for key, item in value.items()}
        case list() | tuple() | set() if type(value) in (list, tuple, set):
            return type(value)(map(plain, value))
    if type(value).__module__.partition(".")[0] == "omegaconf":  # who has none never imports it
        from omegaconf import OmegaConf

        return plain(OmegaConf.to_container(value, resolve=True))
    return value


def plain_settings(state: dict[str, Any]) -> dict[str, Any]:
    """Return an optimizer's or scheduler's state with plain settings; its tensors stay tensors."""
    return {
        name: item if name == "state" else plain(item)  # steps are tensors of one number
        for name, item in state.items()
    }


def _is_plain(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_plain, [*value, *value.values()]))
    if isinstance(value, list | tuple | set):
        return all(map(_is_plain, value))
    kinds = (type(None), Tensor, torch.dtype, torch.device)
    return type(value) in _SCALARS or isinstance(value, kinds)


def hyperparameters(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return hyperparameters as plain data.

    Raises:
        ConfigurationError: one of them is not and has no plain counterpart.
    """
    found = {name: plain(value) for name, value in given.items()}
    for name, value in found.items():
        if not _is_plain(value):
            raise ConfigurationError(
                f"the hyperparameter {name} is a {type(value).__name__}, which no checkpoint can "
                "hold as plain data, expected numbers, strings and containers of them, or "
                f"save_hyperparameters(ignore=[{name!r}])"
            )
    return found


def read_checkpoint(path: str | Path, key: str = "ckpt_path") -> dict[str, Any]:
    """Read a checkpoint as plain data, so that nothing in it is imported or called.

    Args:
        path: the file.
        key: what to call it in messages.

    Raises:
        ConfigurationError: there is no such file, it is truncated or damaged, holds anything but
            plain data, or is not a checkpoint of a training run.
        StorageError: it cannot be read, though it may be good: a permission, a fault of the disk.
    """
    if not isinstance(path, str | Path):
        raise ConfigurationError(f"{key}={path!r} is not the path of a file")
    if "://" in str(path):
        raise ConfigurationError(f"{key}={path} is an address, expected a file: download it")
    file = Path(path)
    try:
        if not file.is_file():
            what = "is a folder" if file.is_dir() else "does not exist"
            raise ConfigurationError(f"{key}={path} {what}, expected a file such as last.ckpt")
        with file.open("rb") as stream:
            data = _read(stream)
    except OSError as error:  # of the disk, or of permissions: that is no damage
        raise StorageError(
            f"{key}={path} cannot be read ({error.strerror or one_line(error)})"
        ) from error
    damaged = _damaged_part(data)
    try:
        content = None if damaged else _loaded(data)
    except Exception as error:  # `torch.load` has many for what it cannot read
        raise ConfigurationError(
            f"{key}={path} is damaged or holds more than plain data, expected a checkpoint "
            "of this package; nothing in it was run"
        ) from error
    if damaged is not None:
        raise ConfigurationError(f"{key}={path} is {damaged}, expected a whole checkpoint")
    content = content if isinstance(content, dict) else {}
    weights = content.get("state_dict")
    if not isinstance(weights, dict) or "loops" not in content:
        raise ConfigurationError(f"{key}={path} is not a checkpoint of a training run")
    if not all(isinstance(name, str) for name in (*content, *weights)):
        raise ConfigurationError(f"{key}={path} is damaged, expected names of its parts")
    return content


def _read(stream: IO[bytes]) -> bytes:
    """Return all of a file at once: zipfile takes a fault of the disk for damage.

    What is no checkpoint from its first bytes on is not read further.
    """
    start = stream.read(len(_ZIP))
    if start != _ZIP:
        return start
    check_memory("the file", os.fstat(stream.fileno()).st_size)
    return start + stream.read()


def _damaged_part(data: bytes) -> str | None:
    """Return what is wrong with a file, by the checksums of its parts; None where nothing is.

    Before anything is made of it: `torch.load` looks at no checksum, and trusts what it reads.
    """
    if data and not data.startswith(_ZIP):  # no file of PyTorch's that holds data alone
        return "damaged or holds more than plain data"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if sum(part.file_size for part in archive.infolist()) > len(data):
                return "damaged: its parts are larger than it is"  # PyTorch compresses none
            part = archive.testzip()
    except Exception:  # zipfile has many
        return "truncated or damaged"
    return part and f"damaged: {part} in it has changed"


def _loaded(data: bytes) -> Any:
    """Return the content of a checkpoint.

    Raises:
        ValueError: there is a tensor in it that is not all there, or of a kind that no run has:
            sparse, quantized, meta, nested, of 8-bit floats; or it unfolds, or loads, without end.
    """
    archive = torch._C.PyTorchFileReader(io.BytesIO(data))  # zipfile may find another part
    check_cost(archive.get_record("data.pkl"), len(data))
    content = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    for tensor in filter(torch.is_tensor, _values(content, UNFOLDED * len(data))):
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise ValueError("a tensor is sparse, quantized or not there")
        if tensor.is_nested or tensor.dtype not in _DTYPES:
            raise ValueError(f"a tensor is nested, or of {tensor.dtype}")
        if tensor.numel() * tensor.element_size() > len(data):  # the same numbers again and again
            raise ValueError("a tensor is larger than its file")
    return content


def _values(content: Any, at_most: int) -> Iterator[Any]:
    """Yield what nested containers hold.

    Raises:
        ValueError: more than ``at_most``: what is shared, or holds itself, unfolds without end.
    """
    waiting = [content]
    while waiting:
        value = waiting.pop()
        if not isinstance(value, dict | list | tuple | set):
            yield value
            continue
        at_most -= len(value)
        if at_most < 0:
            raise ValueError("it unfolds to more than a file of its size can hold")
        waiting += value.values() if isinstance(value, dict) else value


class PlainDataIO(TorchCheckpointIO):
    """Reads checkpoints with ``weights_only=True``, from a URL too, unless told otherwise.

    Lightning itself reads from an http address whatever is there, and so runs what it says.
    """

    def load_checkpoint(
        self, path: Any, map_location: Any = "cpu", weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Return the content of a checkpoint; ``weights_only=False`` only for one you trust.

        Raises:
            FileNotFoundError: with its ``errno``, unlike Lightning's, so that it is told as others.
        """
        weights_only = True if weights_only is None else weights_only
        try:
            return super().load_checkpoint(path, map_location, weights_only)
        except FileNotFoundError as error:
            number = errno.ENOENT
            raise FileNotFoundError(number, os.strerror(number), str(path)) from error


def read_plain_data(strategy: Strategy) -> None:
    """Let a Trainer's strategy read with `PlainDataIO`; a plugin of the user's stays."""
    if type(strategy.checkpoint_io) is TorchCheckpointIO:
        strategy.checkpoint_io = PlainDataIO()
