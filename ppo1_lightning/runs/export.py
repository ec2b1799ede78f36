"""A trained policy as ONNX and ``torch.export`` files.

Both go from the environment's own observations to the actions that it would receive, so that
whoever runs them needs nothing of this package.
"""

from __future__ import annotations

import json
import warnings
import zipfile
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import Space
from gymnasium.spaces import Box
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ppo1_lightning.errors import ConfigurationError, one_line
from ppo1_lightning.functional.distributions import Distribution
from ppo1_lightning.policies.spaces import name_of
from ppo1_lightning.policies.state import initial_state, state_size
from ppo1_lightning.runs.files import replacing
from ppo1_lightning.simulators.actions import ActionAdapter
from ppo1_lightning.simulators.entries import Entry
from ppo1_lightning.simulators.observations import ObservationAdapter

METADATA = "ppo1_lightning.json"
"""Where both files say what they are from: ONNX's metadata, an extra file of ``torch.export``."""

_METADATA_BYTES, _ONNX_BYTES = 2**20, 2**31  # at most; of protobuf's no message is larger


class GreedyPolicy(nn.Module):
    """The most likely actions of a policy, from native observations to native actions.

    Args:
        policy: as an algorithm trained it, observation normaliser included; a copy is taken.
        distribution: of its actions.
        observation: from the environment's observations to the policy's.
        action: from the policy's actions to the environment's.

    A policy with memory has its state as a further input and output; it is all zeros where an
    episode begins.

    Attributes:
        inputs: of `forward`, in order: name -> space of one.
        output: space of an action.
        output_name: ``"action"``, or another where an input is called so.
        state_name: of the state as an input, None without memory; as an output it is
            ``"next_..."``.
    """

    def __init__(
        self,
        policy: nn.Module,
        distribution: Distribution,
        observation: ObservationAdapter,
        action: ActionAdapter,
    ) -> None:
        super().__init__()
        self.policy = deepcopy(policy).cpu().requires_grad_(False)
        self._mode = distribution.mode
        self.inputs = {entry.key or "observation": entry.native for entry in observation.entries}
        self.output: Space[Any] = action.native
        self.output_name = "greedy_action" if "action" in self.inputs else "action"
        self.state_name: str | None = None
        if state_size(policy):
            self.state_name = "policy_state" if "state" in self.inputs else "state"
            self.inputs[self.state_name] = _state_space(policy)
        self._entries = nn.ModuleList(_Entry(entry) for entry in observation.entries)
        self._action = _Action(action)

    @property
    def output_names(self) -> list[str]:
        """Names of what `forward` returns."""
        return [self.output_name, *([f"next_{self.state_name}"] if self.state_name else [])]

    def forward(self, *inputs: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Return actions ``[B, *output.shape]`` for ``[B, *space.shape]`` of every input.

        With memory, also the state after them, ``[B, S]``.
        """
        parts = [entry(part) for entry, part in zip(self._entries, inputs, strict=False)]
        observation = parts[0] if len(parts) == 1 else torch.cat([p.flatten(1) for p in parts], 1)
        if self.state_name is None:
            parameters, _, _ = self.policy(observation, None)
            return self._action(self._mode(parameters.float()))
        state = inputs[-1]
        nowhere = torch.zeros_like(state[:, 0], dtype=torch.bool)
        parameters, _, state = self.policy(observation, state, nowhere)
        return self._action(self._mode(parameters.float())), state


class _Entry(nn.Module):
    """`simulators.observations.Entry` in tensors."""

    columns: Tensor
    values: Tensor | None
    firsts: Tensor
    divisors: Tensor | None
    lowest: Tensor | None
    factor: Tensor

    def __init__(self, entry: Entry) -> None:
        super().__init__()
        self._shape, self._dtype = entry.space.shape, _torch_dtype(entry.space)
        columns, values = entry.one_hot or (None, None)
        columns, firsts, divisors, _ = entry.digits or (columns, None, None, None)
        lowest, factor = entry.scaling or (None, None)
        tables = {
            "columns": columns,
            "values": values,
            "firsts": firsts,
            "divisors": divisors,
            "lowest": lowest,
            "factor": factor,
        }
        for name, table in tables.items():
            self.register_buffer(name, None if table is None else torch.from_numpy(table))

    def forward(self, observation: Tensor) -> Tensor:
        numbers = observation.reshape(observation.shape[0], -1)
        if self.values is not None:
            observation = numbers[:, self.columns].long() == self.values
        elif self.divisors is not None:
            offsets = numbers[:, self.columns].long() - self.firsts
            observation = offsets % (2 * self.divisors) >= self.divisors
        elif self.lowest is not None:
            observation = (observation.to(self._dtype) - self.lowest) * self.factor
        return observation.reshape(-1, *self._shape).to(self._dtype)


class _Action(nn.Module):
    """`simulators.actions.ActionAdapter` in tensors."""

    behind: Tensor | None
    counts: Tensor
    factor: Tensor | None
    offset: Tensor | None
    low: Tensor | None
    high: Tensor

    def __init__(self, adapter: ActionAdapter) -> None:
        super().__init__()
        self._shape, self._dtype = adapter.native.shape or (), _torch_dtype(adapter.native)
        behind, counts = adapter.combined or (None, None)
        low, high = adapter.bounds or (None, None)
        tables = {
            "behind": behind,
            "counts": counts,
            "factor": adapter.factor,
            "offset": adapter.offset,
            "low": low,
            "high": high,
        }
        for name, value in tables.items():
            self.register_buffer(name, None if value is None else torch.as_tensor(value))

    def forward(self, action: Tensor) -> Tensor:
        if self.behind is not None:
            action = torch.div(action[:, None], self.behind, rounding_mode="floor") % self.counts
        if self.factor is not None:
            action = action * self.factor
        if self.offset is not None:
            action = action + self.offset
        if self.low is not None:
            action = action.clamp(self.low, self.high)
        return action.reshape(-1, *self._shape).to(self._dtype)


def _state_space(policy: nn.Module) -> Box:
    """Return the space of a state; raise `ConfigurationError` where the files know no such."""
    state = initial_state(policy, 1)[0].cpu()
    if state.dtype == torch.bfloat16 or state.is_complex():
        told = f"a policy whose state_dtype is {state.dtype} cannot be exported"
        raise ConfigurationError(f"{told}, expected another one, such as torch.float32")
    low, high, dtype = -np.inf, np.inf, state.numpy().dtype
    if dtype.kind in "iu":
        low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
    return Box(*((0, 1) if dtype.kind == "b" else (low, high)), state.shape, dtype.type)


def _torch_dtype(space: Space[Any]) -> torch.dtype:
    return getattr(torch, str(space.dtype))


def trace(policy: GreedyPolicy) -> ExportedProgram:
    """Return the policy as ``torch.export`` sees it, for batches of any size.

    Raises:
        ConfigurationError: it cannot be traced.
    """
    # two, for one would be taken as the only size there is
    rows = tuple(
        torch.zeros(2, *(space.shape or ()), dtype=_torch_dtype(space))
        for space in policy.inputs.values()
    )
    sizes = ({0: Dim("batch", min=1)},) * len(rows)
    try:
        return torch.export.export(policy.eval(), rows, dynamic_shapes=(sizes,))
    except Exception as error:  # each operation has its own
        kind = type(policy.policy).__name__
        raise ConfigurationError(
            f"{kind} cannot be exported, expected tensor operations for batches of any size: "
            f"{one_line(error)}"
        ) from error


def write(policy: GreedyPolicy, stem: Path, metadata: Mapping[str, Any]) -> list[Path]:
    """Write ``stem.onnx`` and ``stem.pt2``, which take their names when they are complete.

    Args:
        metadata: plain values that the files say of themselves (`read_metadata`), beside their
            inputs and outputs.

    Raises:
        ConfigurationError: the policy cannot be traced, the extra ``export`` is missing, or a file
            is in the way that is no export.
        StorageError: a file cannot be written.
    """
    check_installed()
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in WRITERS]
    for path in paths:
        _check_replaceable(path)
    program = trace(policy)
    spaces = {"inputs": {k: name_of(space) for k, space in policy.inputs.items()}}
    text = json.dumps({**metadata, **spaces, "output": name_of(policy.output)})
    for path, save in zip(paths, WRITERS.values(), strict=True):
        with replacing(path, make_folder=True) as new:
            save(program, policy, text, new)
    return paths


def _save_torch(program: ExportedProgram, policy: GreedyPolicy, metadata: str, path: Path) -> None:
    torch.export.save(program, path, extra_files={METADATA: metadata})


def _save_onnx(program: ExportedProgram, policy: GreedyPolicy, metadata: str, path: Path) -> None:
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        written = torch.onnx.export(
            program,
            input_names=list(policy.inputs),
            output_names=policy.output_names,
            verbose=False,
        )
    assert written is not None
    model = written.model_proto
    onnx.helper.set_model_props(model, {METADATA: metadata})
    onnx.save(model, path)


WRITERS = {"onnx": _save_onnx, "pt2": _save_torch}
"""What writes each kind of file, by its ending."""


def read_metadata(path: str | Path) -> dict[str, Any] | None:
    """Return what an exported file says of itself, None where it is not an export."""
    if not Path(path).is_file() or Path(path).stat().st_size > _ONNX_BYTES:
        return None
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                entries = [e for e in archive.infolist() if e.filename.endswith(METADATA)]
                known = entries and entries[0].file_size <= _METADATA_BYTES
                return json.loads(archive.read(entries[0])) if known else None
        import onnx

        properties = onnx.load(path, load_external_data=False).metadata_props
        texts = [entry.value for entry in properties if entry.key == METADATA]
        return json.loads(texts[0]) if texts else None
    except Exception:  # whatever else it is, nothing of ours
        return None


def _check_replaceable(path: Path) -> None:
    if path.exists() and read_metadata(path) is None:
        raise ConfigurationError(
            f"{path} exists and is no export, expected another output=, or that it is moved away"
        )


def check_installed() -> None:
    """Raise `ConfigurationError` where the extra ``export`` is missing."""
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"export needs the package {error.name}, expected the extra `export`: "
            "pip install 'ppo1-lightning[export]'"
        ) from error
