"""What it would cost to load a pickle, by its opcodes: of some bytes it can be hours and gigabytes.

``torch.load(weights_only=True)`` calls nothing that is not known to it, and does not ask what that
costs: a set of the same list again and again, a key of tuples in tuples, ``bytearray(10**10)``.
"""

from __future__ import annotations

import pickletools
from typing import Any

COST = 64
"""Values, or letters, that may be looked at for each byte of a checkpoint."""

DEEPEST = 500
"""Containers within one another: Python asks each for its hash within that of the one around it."""

_LARGE_NUMBERS = 1000
"""Whole numbers of more than 64 bits: those can be made to have one hash, and are compared then."""

_OF_ANY_SIZE = {"builtins bytearray", "torch.storage UntypedStorage", "torch UntypedStorage"}
"""What takes a number for as many bytes."""

_FILLS = {"APPEND", "APPENDS", "SETITEM", "SETITEMS", "BUILD"}
_CALLS = {"REDUCE", "NEWOBJ", "NEWOBJ_EX", "BUILD"}


class _Value:
    """What is on the stack: how many values and letters it holds by now, how deep."""

    def __init__(self, size: int = 1, depth: int = 0) -> None:
        self.size, self.depth = size, depth


def check_cost(pickled: bytes, whole: int) -> None:
    """Refuse a pickle that takes far longer to load than a file of its size may.

    Args:
        pickled: of which nothing is made here.
        whole: bytes of the file that it is from.

    Raises:
        ValueError: it is one, or no pickle.
    """
    stack: list[_Value | None] = []  # None: a mark
    named: dict[Any, _Value | None] = {}
    left, large, before = COST * whole, 0, ""
    for opcode, argument, _ in pickletools.genops(pickled):
        kind = opcode.name
        if kind.endswith("PUT"):
            named[argument] = stack[-1]
            continue
        if kind in _CALLS and before.endswith("GET"):
            raise ValueError("it calls something with what it has called with before")
        before = kind
        if kind.endswith("GET"):
            stack.append(named[argument])
            continue
        if kind == "GLOBAL" and argument in _OF_ANY_SIZE:
            raise ValueError(f"it calls {argument}")
        large += isinstance(argument, int) and abs(argument) >> 64 > 0
        taken = _take(stack, opcode)
        size, depth = sum(item.size for item in taken), max((i.depth for i in taken), default=-1)
        if kind in _CALLS:
            left -= size
        if kind in _FILLS:
            filled = taken[0]
            filled.size, filled.depth = size, max(filled.depth, 1 + depth)
            made: list[_Value | None] = [filled]
            left -= sum(key.size for key in taken[1::2]) if kind.startswith("SET") else 0
        else:
            letters = len(argument) if isinstance(argument, str | bytes) else 0
            new = _Value(1 + size + letters, 1 + depth)
            made = [None if m is pickletools.markobject else new for m in opcode.stack_after]
        stack += made
        if left < 0 or large > _LARGE_NUMBERS or depth > DEEPEST:
            raise ValueError("it takes far longer to load than a checkpoint of its size")


def _take(stack: list[_Value | None], opcode: pickletools.OpcodeInfo) -> list[_Value]:
    """Take from the stack what an opcode is of, in the order in which it was put there."""
    taken, takes = [], opcode.stack_before
    if pickletools.markobject in takes:
        while (item := stack.pop()) is not None:
            taken.append(item)
        takes = takes[: takes.index(pickletools.markobject)]
    for _ in takes:
        item = stack.pop()
        if item is None:
            raise ValueError("a mark is taken for a value")
        taken.append(item)
    return taken[::-1]
