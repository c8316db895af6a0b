"""The meta-gradient of one task as a graph of operations, without control flow and mutation."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch._decomp import get_decompositions
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from fastmeta import reference
from fastmeta.engines._host_rng import reject_host_rng
from fastmeta.functional import Buffers
from fastmeta.metagrad import StepContext, TaskGradient

# Computes a task from its parameters, buffers (which it may change) and examples.
RunTask = Callable[[Sequence[Tensor], Buffers, Any, StepContext], TaskGradient]

# Substrings of torch's messages for what cannot be traced.
_TRACING_FAILURES = ("tracing tensor", "not supported for tensor subclasses", "FakeTensor")

_aten = torch.ops.aten


def _inner_step(*args: Any) -> list[Tensor]:
    return list(reference.inner_step(*args))


# What is written in terms of other operations: an op of ours that the compiler fuses with its
# neighbours in this form, and those of torch that change running statistics unnoticed.
_DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    **get_decompositions([_aten.native_batch_norm, _aten.native_batch_norm_backward]),
    torch.ops.fastmeta.inner_step.default: _inner_step,
}


@dataclass(frozen=True)
class TaskTrace:
    """The meta-gradient of a task as a graph.

    Attributes:
        graph: its inputs are the tensors of parameters, buffers and examples, then `constants`; its
            outputs are tensors.
        constants: tensors that the computation reads besides, such as learned rates; they may be
            changed in place.
        outputs: how the outputs are put together to a `TaskGradient` and the new buffers, see
            `_positions`.
        stacked: whether it computes all tasks at once.
    """

    graph: GraphModule
    constants: list[Tensor]
    outputs: Any
    stacked: bool

    def inputs(self, params: Sequence[Tensor], buffers: Buffers, examples: Any) -> list[Tensor]:
        """The inputs of the graph."""
        return [*_flatten([params, buffers, examples]), *self.constants]

    def results(self, outputs: Sequence[Tensor]) -> tuple[TaskGradient, Buffers]:
        """The result from the outputs of the graph."""
        fields, buffers = _build(self.outputs, outputs)
        return TaskGradient(**fields), buffers


def trace_task(
    run: RunTask,
    params: Sequence[Tensor],
    buffers: Buffers,
    examples: Any,
    context: StepContext,
    stacked: Any = None,
) -> TaskTrace:
    """Traces a task, or several tasks at once.

    By running it on fake tensors, whose operations are recorded below autograd: the graph has the
    operations of all backward passes, of any order, and none of Python. No derivative is left to
    take, so that `torch.vmap` of the graph runs several tasks for any method.

    Args:
        run: computes a task.
        params: the initialisation.
        buffers: of the module.
        examples: of one task.
        context: the meta-step.
        stacked: the examples of all tasks, if the graph shall compute them at once where
            `torch.vmap` supports it; its outputs then begin with the dimension of the tasks.

    Raises:
        NotImplementedError: if control flow depends on values, random numbers are drawn, or the
            computation depends on the meta-step or task's number.
    """
    flat: list[Tensor] = []
    inputs = _positions((list(params), buffers, examples), flat)
    step, task = _Watched(context.step), _Watched(context.task)
    watched = replace(context, step=step, task=task)
    found: list[Any] = []

    def flat_run(*tensors: Tensor) -> list[Tensor]:
        own_params, own_buffers, own_examples = _build(inputs, tensors)
        own_buffers = {name: buffer.clone() for name, buffer in own_buffers.items()}
        result = run(own_params, own_buffers, own_examples, watched)
        fields = {key: _plain(value) for key, value in vars(result).items()}
        outputs: list[Tensor] = []
        found.append(_positions((fields, own_buffers), outputs))
        return outputs

    with reject_host_rng("compiled", "all meta-steps"), _explained():
        graph = make_fx(
            flat_run, _DECOMPOSITIONS, tracing_mode="fake", _allow_non_fake_inputs=True
        )(*flat)
    if step.used or task.used:
        raise NotImplementedError(
            "engine 'compiled' cannot run this meta-gradient, which depends on the number of the "
            "meta-step or of the task: each would be compiled anew. Use engine='loop'."
        )
    constants = _lift_constants(graph)
    for node in graph.graph.nodes:
        if _depends_on_values(node.meta.get("val")):
            raise _not_one_graph(f"{node.target} reads a number or makes a size of values.")
        if _is_random(node):
            raise NotImplementedError(
                f"engine 'compiled' cannot run a module or a loss that draws random numbers, such "
                f"as dropout in training ({node.target}): they would differ from those of the "
                "loop. Use engine='loop'."
            )
    if any(node.target is _aten.convolution.default for node in graph.graph.nodes):
        stacked = None  # several weights at once would be a slow convolution in groups
    mutates = any(node.op == "call_function" and _mutates(node) for node in graph.graph.nodes)
    pure: Callable[..., Any] = functionalize(graph, remove="mutations") if mutates else graph
    if stacked is not None:
        shared = len(_flatten([params, buffers]))
        all_flat = [*flat[:shared], *_flatten(stacked)]
        dims = [None] * shared + [0] * (len(flat) - shared) + [None] * len(constants)
        try:
            graph = _trace_again(torch.vmap(pure, tuple(dims)), [*all_flat, *constants])
        except RuntimeError:  # no batching rule: task by task, with the same results
            stacked = None
    if stacked is None and mutates:
        graph = _trace_again(pure, [*flat, *constants])
    graph.graph.eliminate_dead_code()
    return TaskTrace(graph, constants, found[0], stacked is not None)


def _trace_again(function: Callable[..., Any], inputs: Sequence[Tensor]) -> GraphModule:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
        return make_fx(function, tracing_mode="fake", _allow_non_fake_inputs=True)(*inputs)


class _Watched(int):
    """A number that notes whether it is used."""

    used = False


def _watch(name: str) -> Callable[..., Any]:
    def method(self: _Watched, *args: Any) -> Any:
        self.used = True
        return getattr(int, name)(self, *args)

    return method


for _name in (
    *("__lt__", "__le__", "__gt__", "__ge__", "__eq__", "__ne__", "__hash__", "__bool__"),
    *("__add__", "__radd__", "__sub__", "__rsub__", "__mul__", "__rmul__", "__neg__", "__pow__"),
    *("__truediv__", "__rtruediv__", "__floordiv__", "__rfloordiv__", "__mod__", "__rmod__"),
    *("__rpow__", "__index__", "__int__", "__float__", "__format__", "__str__", "__repr__"),
):
    setattr(_Watched, _name, _watch(_name))


def _positions(nested: Any, tensors: list[Tensor]) -> Any:
    """Lists, tuples and dictionaries with positions in `tensors`, to which the parts are added."""
    if nested is None:
        return None
    if isinstance(nested, Tensor):
        tensors.append(nested)
        return len(tensors) - 1
    if isinstance(nested, dict):
        return {key: _positions(value, tensors) for key, value in nested.items()}
    return type(nested)(_positions(value, tensors) for value in nested)


def _build(positions: Any, tensors: Sequence[Tensor]) -> Any:
    """The nesting of `_positions` with other tensors."""
    if positions is None:
        return None
    if isinstance(positions, int):
        return tensors[positions]
    if isinstance(positions, dict):
        return {key: _build(value, tensors) for key, value in positions.items()}
    return type(positions)(_build(value, tensors) for value in positions)


def _flatten(nested: Any) -> list[Tensor]:
    tensors: list[Tensor] = []
    _positions(nested, tensors)
    return tensors


def _plain(value: Any) -> Any:
    """Sequences as lists and mappings as dictionaries, whose parts are outputs."""
    if isinstance(value, Tensor) or value is None:
        return value
    return dict(value) if hasattr(value, "keys") else list(value)


def _lift_constants(traced: GraphModule) -> list[Tensor]:
    """Makes tensors that the graph holds into inputs, and returns them."""
    constants: list[Tensor] = []
    placeholders: dict[str, Node] = {}
    last = [node for node in traced.graph.nodes if node.op == "placeholder"][-1]
    for node in list(traced.graph.nodes):
        if node.op != "get_attr":
            continue
        if node.target not in placeholders:
            value = getattr(traced, node.target)
            with traced.graph.inserting_after(last):
                last = placeholders[node.target] = traced.graph.placeholder(node.target)
            last.meta = dict(node.meta)
            constants.append(value)
        node.replace_all_uses_with(placeholders[node.target])
        traced.graph.erase_node(node)
    traced.recompile()
    return constants


def _mutates(node: Node) -> bool:
    schema = getattr(node.target, "_schema", None)
    return schema is not None and schema.is_mutable


def _is_random(node: Node) -> bool:
    """Whether it draws random numbers; attention is said to, but does not without dropout."""
    tags: list[torch.Tag] = getattr(node.target, "tags", [])
    if torch.Tag.nondeterministic_seeded not in tags:
        return False
    schema = node.target._schema  # type: ignore[union-attr]
    for i, argument in enumerate(schema.arguments):
        if argument.name == "dropout_p":
            given = node.args[i] if i < len(node.args) else node.kwargs.get("dropout_p", 0.0)
            return bool(given != 0)
    return True


@contextmanager
def _explained() -> Iterator[None]:
    """Adds advice to errors of tracing; others are the user's own."""
    try:
        yield
    except Exception as error:
        own = type(error).__module__.startswith(("torch._subclasses", "torch.fx."))
        if not own and not any(sign in str(error) for sign in _TRACING_FAILURES):
            raise
        first = str(error).partition("\n")[0]
        raise _not_one_graph(f"{type(error).__name__}: {first}") from error


def _not_one_graph(reason: str) -> NotImplementedError:
    return NotImplementedError(
        "engine 'compiled' cannot run this module, loss or method as one graph of operations: "
        f"{reason} Python code that depends on the values of tensors (if, .item(), .numpy()) "
        "cannot be compiled. Use engine='loop'."
    )


def _depends_on_values(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return any(map(_depends_on_values, value))
    if isinstance(value, Tensor):
        return any(isinstance(size, torch.SymInt) for size in value.shape)
    return isinstance(value, torch.SymInt | torch.SymFloat | torch.SymBool)
