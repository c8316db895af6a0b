"""Caches the output of a frozen prefix across inner steps."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import partial
from operator import is_
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary

from fastmeta.functional._inspection import globally_hooked, is_compiled, is_plain

# Files of torch.nn whose modules are functions of input and parameters, and those modules in them
# that draw random numbers.
_FUNCTIONS = {
    f"torch.nn.modules.{file}"
    for file in ("activation", "conv", "flatten", "linear", "normalization", "padding", "pooling")
}
_RANDOM = (nn.RReLU, nn.MultiheadAttention, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
_NORMS = {f"torch.nn.modules.{file}" for file in ("batchnorm", "instancenorm")}

Forward = Callable[[Any], Any]

_active: ContextVar[PrefixCache | None] = ContextVar("prefix cache", default=None)


class PrefixCache:
    """The outputs of frozen prefixes in one inner loop.

    A prefix is the beginning of an `nn.Sequential`, up to the first module that has an adapted
    parameter, or that may do more than compute its output from input, parameters and buffers:
    users' modules, hooks, dropout in training, BatchNorm that updates running statistics. It may
    end within a nested `nn.Sequential`. Its output is computed once for an input, and reused
    while input, parameters and buffers are the same tensors and neither they nor the output were
    changed in place. It keeps its graph: derivatives equal those of recomputing it up to the order
    of summation.

    Args:
        constant: the parameters that no inner step adapts, the same objects in all steps.
    """

    def __init__(self, constant: Sequence[Tensor]) -> None:
        self._constant = {id(p): p for p in constant}
        self._found: dict[nn.Module, list[_Prefix]] = {}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Calls of `use_prefix_cache` in this context use this cache."""
        token = _active.set(self)
        try:
            yield
        finally:
            _active.reset(token)

    def prefixes(
        self, module: nn.Module, own: Sequence[Tensor], params: Sequence[Tensor]
    ) -> list[_Prefix]:
        """The prefixes of the outermost chains in `module` that have parameters; found once.

        Args:
            module: the module; none of its parts has a forward that was replaced for a call.
            own: its trainable parameters.
            params: the tensors that replace them in a call.
        """
        if module not in self._found:
            pairs = zip(own, params, strict=True)
            adapted = {id(o) for o, p in pairs if id(p) not in self._constant}
            self._found[module] = self._find(module, adapted)
        return self._found[module]

    def _find(self, module: nn.Module, adapted: set[int]) -> list[_Prefix]:
        if not self._constant or globally_hooked() or any(map(is_compiled, module.modules())):
            return []
        found: dict[nn.Module, _Prefix] = {}
        for prefix in _prefixes(module, adapted):
            if found.keys().isdisjoint(prefix.chains):  # one chain cannot be split twice
                found.update(dict.fromkeys(prefix.chains, prefix))
        return list(dict.fromkeys(found.values()))


def use_prefix_cache(
    module: nn.Module, own: Sequence[Tensor], params: Sequence[Tensor]
) -> AbstractContextManager[None]:
    """Calls of `module` in this context use the cache of the inner loop, if there is one.

    The arguments are those of `PrefixCache.prefixes`. Forwards of chains that are replaced
    before the context is entered, as fusion does, run the parts of the chain that are needed.
    """
    cache = _active.get()
    if cache is None or torch._C._are_functorch_transforms_active():
        return nullcontext()
    return _replaced(cache.prefixes(module, own, params))


@contextmanager
def _replaced(prefixes: Sequence[_Prefix]) -> Iterator[None]:
    before = [(p.chains[0], vars(p.chains[0]).get("forward")) for p in prefixes]
    for (chain, _), prefix in zip(before, prefixes, strict=True):
        chain.forward = partial(prefix.run, chain.forward)
    try:
        yield
    finally:
        for chain, forward in before:
            if forward is None:
                del chain.forward
            else:
                chain.forward = forward


class _Split(NamedTuple):
    """How a prefix splits a chain; a module that is split itself is on both sides."""

    chain: Any
    constant: list[nn.Module]
    before: dict[str, nn.Module]
    after: dict[str, nn.Module]


class _CachedOutput(NamedTuple):
    """An output, and what it was computed from besides the input, which is the key."""

    output: Tensor
    version: int
    sources: list[Tensor]
    state: list[int]


class _Prefix:
    """The frozen prefix of a chain, and its cached outputs.

    Args:
        splits: of the chain, then of the nested chain in which it is split, and so on.
    """

    def __init__(self, splits: list[_Split]) -> None:
        self.chains = [split.chain for split in splits]
        self._splits = splits
        # Where a call puts its parameters and buffers.
        self._places: list[tuple[dict[str, Any], str]] = [
            (tensors, name)
            for split in splits
            for part in split.constant
            for module in part.modules()
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        # Weak keys: an output is freed together with its input.
        self._outputs = WeakTensorKeyDictionary()

    def run(self, forward: Forward, x: Any) -> Any:
        """`forward(x)` of the chain, without the prefix if its output is cached."""
        return self._run_side("after", forward, self._output(forward, x))

    def _output(self, forward: Forward, x: Any) -> Any:
        if type(x) is not Tensor or x.requires_grad or x.is_inference():
            return self._run_side("before", forward, x)  # an x with a graph is of this step only
        sources = [tensors[name] for tensors, name in self._places]
        state = [torch.is_grad_enabled(), *(t._version for t in (x, *sources))]
        cached: _CachedOutput | None = self._outputs.get(x)
        if cached is not None and (
            cached.state == state
            and cached.output._version == cached.version
            and all(map(is_, cached.sources, sources))
        ):
            return cached.output
        output = self._run_side("before", forward, x)
        if type(output) is Tensor:
            self._outputs[x] = _CachedOutput(output, output._version, sources, state)
        return output

    def _run_side(self, side: Literal["before", "after"], forward: Forward, x: Any) -> Any:
        """`forward(x)` with the modules on one side of the split only."""
        whole = [chain._modules for chain in self.chains]
        try:
            for split in self._splits:
                vars(split.chain)["_modules"] = getattr(split, side)
            return forward(x)
        finally:
            for chain, parts in zip(self.chains, whole, strict=True):
                vars(chain)["_modules"] = parts


def _prefixes(module: nn.Module, adapted: set[int]) -> Iterator[_Prefix]:
    if not _is_chain(module):
        for child in module.children():
            yield from _prefixes(child, adapted)
        return
    splits = list(_split(module, adapted))
    if any(True for split in splits for part in split.constant for _ in part.parameters()):
        yield _Prefix(splits)
    elif not splits:  # only the first part can have the same input in every step
        for first in list(module.children())[:1]:
            yield from _prefixes(first, adapted)


def _split(chain: nn.Module, adapted: set[int]) -> Iterator[_Split]:
    """The splits at the end of the longest prefix; none if it is empty."""
    parts: list[tuple[str, Any]] = list(chain._modules.items())
    length = next((i for i, (_, m) in enumerate(parts) if not _constant(m, adapted)), len(parts))
    border, later = parts[length : length + 1], parts[length + 1 :]
    once = not any(m is part for _, part in border for _, n in later for m in n.modules())
    inner = [s for _, part in border if _is_chain(part) and once for s in _split(part, adapted)]
    if length or inner:
        constant = [part for _, part in parts[:length]]
        yield _Split(chain, constant, dict(parts[: length + bool(inner)]), dict(parts[length:]))
        yield from inner


def _is_chain(module: nn.Module) -> bool:
    return type(module) is nn.Sequential and is_plain(module)


def _constant(module: nn.Module, adapted: set[int]) -> bool:
    """Whether an input gives the same output in all inner steps, without side effects."""
    return adapted.isdisjoint(map(id, module.parameters())) and all(map(_is_pure, module.modules()))


def _is_pure(module: Any) -> bool:
    """Whether this is torch's own, and a pure function of input, parameters and buffers."""
    file = type(module).__module__
    if not is_plain(module) or isinstance(module, _RANDOM):
        return False
    if file in _NORMS:
        return module.running_mean is None or not module.training
    return file in _FUNCTIONS or _is_chain(module)
