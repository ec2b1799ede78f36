"""From a function of tensors to the graph of its operators."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch._guards import TracingContext, tracing
from torch._subclasses import FakeTensorMode
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import make_fx


def trace(function: Callable[..., Any], *example: Tensor) -> GraphModule:
    """Return what a function of tensors does with these ones, as operators."""
    # Each node is described by a fake tensor. Where it finds no mode for that, `make_fx` makes one
    # for each node, which takes down the whole stack of Python: half of the time.
    with tracing(TracingContext(FakeTensorMode())):
        return make_fx(function)(*example)
