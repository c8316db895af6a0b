"""Repeated regions of a graph of operations, each of which is compiled once."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn
from torch.fx import Graph, GraphModule, Node, map_arg

# A graph of fewer operations is compiled as a whole: calls of regions cost more than they save.
SMALL_GRAPH = 1500
# A repetition that saves the compilation of fewer operations is left alone.
MIN_SAVED = 100
MIN_PERIOD = 16

# An operation, with the nodes that select its outputs: these must be in one region.
Unit = list[Node]


@dataclass
class Region:
    """Consecutive operations.

    Attributes:
        nodes: the operations, in order.
        inputs: what they read, in the order of first use.
        form: equal for regions that compute the same of their inputs.
    """

    nodes: list[Node]
    inputs: list[Node] = field(init=False)
    form: str = field(init=False)

    def __post_init__(self) -> None:
        position = {node: i for i, node in enumerate(self.nodes)}
        inputs: dict[Node, int] = {}

        def name(node: Node) -> str:
            if node in position:
                return f"%{position[node]}"
            return f"${inputs.setdefault(node, len(inputs))}"

        lines = [_describe(node, name) for node in self.nodes]
        self.inputs = list(inputs)
        self.form = "\n".join([*lines, *map(_layout, self.inputs)])

    def used_outside(self) -> set[int]:
        """Positions of the nodes that others read."""
        own = set(self.nodes)
        return {i for i, node in enumerate(self.nodes) if not own.issuperset(node.users)}

    def extract(self, outputs: Sequence[int]) -> GraphModule:
        """The region as a function of its inputs.

        Args:
            outputs: positions of the nodes to return.
        """
        graph = Graph()
        env = {node: graph.placeholder(f"input_{i}") for i, node in enumerate(self.inputs)}
        for node in self.nodes:
            env[node] = graph.node_copy(node, env.__getitem__)
        graph.output(tuple(env[self.nodes[i]] for i in outputs))
        return GraphModule(nn.Module(), graph)


@dataclass(frozen=True)
class Program:
    """A graph whose regions are compiled.

    Attributes:
        run: takes and returns what the graph does.
        regions: number of calls of compiled regions.
        operations: number of operations of the graph.
        distinct: number of operations that are compiled.
    """

    run: Callable[..., Any]
    regions: int
    operations: int
    distinct: int


def compile_regions(
    traced: GraphModule, compile: Callable[[GraphModule, bool], Callable[..., Any]]
) -> Program:
    """Compiles each region of a graph without mutation once, and calls it wherever it occurs.

    Where the blocks of a network or inner steps repeat, so do their operations, and those of their
    first and second derivatives: compile time then does not grow with the number of blocks.

    Args:
        traced: placeholders, function calls and an output; nodes have `meta["val"]`.
        compile: compiles a graph, given whether it is the only one.
    """
    units = _units(traced.graph)
    whole = range(len(units))
    cuts = _cut(_tokens(units), whole) if len(units) >= SMALL_GRAPH else [whole]
    regions = [Region([node for i in part for node in units[i]]) for part in cuts]
    used: dict[str, set[int]] = {}
    for region in regions:
        used.setdefault(region.form, set()).update(region.used_outside())
    outputs = {form: sorted(positions) for form, positions in used.items()}
    compiled: dict[str, str] = {}
    root, outer, env = nn.Module(), Graph(), {}
    for node in traced.graph.nodes:
        if node.op == "placeholder":
            env[node] = outer.placeholder(node.name)
    distinct = 0
    for region in regions:
        name = compiled.get(region.form)
        if name is None:
            name = compiled[region.form] = f"region_{len(compiled)}"
            graph = region.extract(outputs[region.form])
            setattr(root, name, compile(graph, len(regions) == 1))
            distinct += len(region.nodes)
        result = outer.call_module(name, tuple(env[node] for node in region.inputs))
        own = region.used_outside()
        for k, position in enumerate(outputs[region.form]):
            if position in own:
                env[region.nodes[position]] = outer.call_function(operator.getitem, (result, k))
    last = next(node for node in traced.graph.nodes if node.op == "output")
    outer.output(map_arg(last.args[0], env.__getitem__))
    operations = sum(map(len, units))
    return Program(GraphModule(root, outer).forward, len(regions), operations, distinct)


def _units(graph: Graph) -> list[Unit]:
    units: list[Unit] = []
    for node in graph.nodes:
        if node.op == "call_function":
            if node.target is operator.getitem and node.args[0] in units[-1]:
                units[-1].append(node)
            else:
                units.append([node])
    return units


def _cut(tokens: np.ndarray, part: range) -> list[range]:
    """The regions of consecutive units `part`: the longest repetition, and what is around it."""
    start, period, count = _longest_repetition(tokens[part.start : part.stop])
    if (count - 1) * period < MIN_SAVED:
        return [part] if part else []
    start += part.start
    body = _cut(tokens, range(start, start + period))
    copies = [range(r.start + k * period, r.stop + k * period) for k in range(count) for r in body]
    before, after = range(part.start, start), range(start + count * period, part.stop)
    return [*_cut(tokens, before), *copies, *_cut(tokens, after)]


def _longest_repetition(tokens: np.ndarray) -> tuple[int, int, int]:
    """Start, period and count of the repetition that saves most; the shortest period of several."""
    best, saved = (0, len(tokens), 1), 0
    for period in range(MIN_PERIOD, len(tokens) // 2 + 1):
        equal = np.concatenate([[False], tokens[:-period] == tokens[period:], [False]])
        edges = np.flatnonzero(equal[1:] != equal[:-1])
        starts, lengths = edges[::2], edges[1::2] - edges[::2]
        repeats = lengths // period
        if len(repeats) and (found := int(repeats.max()) * period) > saved:
            i = int(repeats.argmax())
            best, saved = (int(starts[i]), period, int(repeats[i]) + 1), found
    return best


def _tokens(units: Sequence[Unit]) -> np.ndarray:
    """A number per unit, equal for equal operations."""
    numbers: dict[str, int] = {}
    texts = ("\n".join(_describe(node, lambda _: "%") for node in unit) for unit in units)
    return np.array([numbers.setdefault(text, len(numbers)) for text in texts])


def _describe(node: Node, name: Callable[[Node], str]) -> str:
    """The operation, its arguments and the layout of its result."""
    args = map_arg((node.args, node.kwargs), lambda n: _Name(name(n)))
    return f"{node.target} {args!r} {_layout(node)}"


class _Name(str):
    """A text in place of a node, which differs from an argument that is such a text."""

    __slots__ = ()
    __repr__ = str.__str__


def _layout(node: Node) -> str:
    return " ".join(
        f"{tuple(t.shape)} {t.stride()} {t.dtype} {t.device}" for t in _tensors(node.meta["val"])
    )


def _tensors(value: Any) -> Iterator[Any]:
    if isinstance(value, tuple | list):
        for part in value:
            yield from _tensors(part)
    elif value is not None:
        yield value
