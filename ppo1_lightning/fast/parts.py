"""Which parameters learn together: those whose gradients depend on each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor
from torch.func import vjp
from torch.fx import Graph, Node

from ppo1_lightning import system
from ppo1_lightning.distributed import world_size
from ppo1_lightning.fast.graphs import ModuleCall
from ppo1_lightning.fast.recurrence import as_an_operator
from ppo1_lightning.fast.tracing import trace

SMALLEST_PART = 0.25
"""Share of all numbers from which a part is worth a graph, and a thread, of its own."""


def learning_together(
    objective: ModuleCall, example: Sequence[Tensor], *, together: bool
) -> list[list[str]]:
    """Return the names of the parameters that learn together: of one part, or of two.

    Args:
        objective: returns a scalar.
        example: one minibatch's tensors.
        together: whether all of them have to.
    """
    parameters = objective.learning
    if together or len(parameters) < 2:
        return [list(parameters)]
    groups = _connected(_dependencies(objective, example))
    names = list(parameters)
    groups.sort(key=lambda group: -sum(parameters[names[i]].numel() for i in group))
    first, rest = sorted(groups[0]), sorted(i for group in groups[1:] for i in group)
    numbers = [sum(parameters[names[i]].numel() for i in part) for part in (first, rest)]
    if numbers[1] < SMALLEST_PART * sum(numbers):
        return [names]
    return [[names[i] for i in part] for part in (first, rest)]


def second_core(parts: Sequence[object]) -> ThreadPoolExecutor | None:
    """Return a thread for the second of two parts, None where it would wait for the first."""
    cores, several_ranks = len(system.cores()), world_size() > 1
    if len(parts) < 2 or cores < 2 or several_ranks:
        return None
    if torch.get_num_threads() > 1:  # each part takes all of them
        return None
    return ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))


def call_at_once(calls: Sequence[Callable[[], None]], second: ThreadPoolExecutor | None) -> None:
    """Call one function after the other, or the second of two in a thread of its own.

    In inference mode, which each thread is in for itself.
    """
    if second is None:
        for call in calls:
            call()
        return
    first, other = calls
    done = second.submit(torch.inference_mode()(other))
    try:
        first()
    finally:  # nothing is to change the parameters after this
        done.result()


def _dependencies(objective: ModuleCall, example: Sequence[Tensor]) -> list[set[int]]:
    """Return, for each parameter, the parameters that its gradient depends on in any way.

    Only the graph can tell: autograd does not see what is detached or compared.
    """
    learning = [parameter.detach() for parameter in objective.learning.values()]
    others = objective.others()

    def gradients(*tensors: Tensor) -> Sequence[Tensor]:
        given = tensors[: len(learning)]
        rest = tensors[len(learning) : len(learning) + len(others)]
        minibatch = tensors[len(learning) + len(others) :]
        pull_back = vjp(lambda *t: objective(t, rest, *minibatch), *given)[1]
        return pull_back(torch.ones((), device=given[0].device))  # which depends on none

    with torch.no_grad(), as_an_operator():
        graph = trace(gradients, *learning, *others, *example).graph
    return _read_by_outputs(graph, len(learning))


def _read_by_outputs(graph: Graph, count: int) -> list[set[int]]:
    """Return, for each output, which of the first ``count`` inputs it is computed from."""
    reads: dict[Node, set[int]] = {}
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    for node in graph.nodes:
        own = {inputs.index(node)} if node in inputs[:count] else set()
        reads[node] = own.union(*(reads[source] for source in node.all_input_nodes))
    (output,) = (node for node in graph.nodes if node.op == "output")
    return [reads[node] for node in output.args[0]]  # type: ignore[union-attr, index]


def _connected(dependencies: list[set[int]]) -> list[set[int]]:
    """Return the connected groups of parameters."""
    groups: list[set[int]] = []
    for parameter, read in enumerate(dependencies):
        joined = {parameter} | read
        apart = [group for group in groups if not group & joined]
        groups = [*apart, joined.union(*(group for group in groups if group & joined))]
    return groups
