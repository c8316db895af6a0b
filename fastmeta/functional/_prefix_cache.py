"""What the frozen beginning of a module computes, kept from one inner step to the next."""

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

# Files of torch.nn whose modules compute a function of input and parameters, and those of them that
# draw random numbers.
_FUNCTIONS = {
    f"torch.nn.modules.{file}"
    for file in ("activation", "conv", "flatten", "linear", "normalization", "padding", "pooling")
}
_RANDOM = (nn.RReLU, nn.MultiheadAttention, nn.FractionalMaxPool2d, nn.FractionalMaxPool3d)
_NORMS = {f"torch.nn.modules.{file}" for file in ("batchnorm", "instancenorm")}

Forward = Callable[[Any], Any]

_in_use: ContextVar[PrefixCache | None] = ContextVar("memo", default=None)


class PrefixCache:
    """The outputs of frozen prefixes in one inner loop.

    A prefix is what an ``nn.Sequential`` begins with, up to the first part that has a parameter
    which is adapted, or that may do anything but compute its output from input, parameters and
    buffers: users' modules, hooks, dropout in training, BatchNorm that updates running statistics.
    It may end within an ``nn.Sequential`` in this one. Its output is computed once for an input,
    and taken again while input, parameters and buffers are the same tensors and neither they nor
    the output were changed in place. It keeps its graph: derivatives are those of computing it
    again, but for the order of sums.

    Args:
        constant: the parameters that no inner step adapts, the same objects in all of them.
    """

    def __init__(self, constant: Sequence[Tensor]) -> None:
        self._constant = {id(p): p for p in constant}
        self._found: dict[nn.Module, list[_Prefix]] = {}

    @contextmanager
    def used(self) -> Iterator[None]:
        """Calls in this context that are :func:`use_prefix_cache` use this memo."""
        token = _in_use.set(self)
        try:
            yield
        finally:
            _in_use.reset(token)

    def prefixes(
        self, module: nn.Module, own: Sequence[Tensor], params: Sequence[Tensor]
    ) -> list[_Prefix]:
        """The prefixes in ``module`` that have parameters, of outermost chains; looked for once.

        Args:
            module: none of its parts has its forward replaced for a call.
            own: its trainable parameters.
            params: what has their place in a call.
        """
        if module not in self._found:
            pairs = zip(own, params, strict=True)
            moving = {id(o) for o, p in pairs if id(p) not in self._constant}
            self._found[module] = self._find(module, moving)
        return self._found[module]

    def _find(self, module: nn.Module, moving: set[int]) -> list[_Prefix]:
        if not self._constant or globally_hooked() or any(map(is_compiled, module.modules())):
            return []
        found: dict[nn.Module, _Prefix] = {}
        for prefix in _prefixes(module, moving):
            if found.keys().isdisjoint(prefix.chains):  # two cannot divide one chain
                found.update(dict.fromkeys(prefix.chains, prefix))
        return list(dict.fromkeys(found.values()))


def use_prefix_cache(
    module: nn.Module, own: Sequence[Tensor], params: Sequence[Tensor]
) -> AbstractContextManager[None]:
    """Calls of ``module`` in this context use the memo of the inner loop, if there is one.

    Args:
        module: see :meth:`PrefixCache.prefixes`. Once the context is entered, chains may have
            forwards of their own, which run the prefix, if need be, and the rest.
        own: see there.
        params: see there.
    """
    memo = _in_use.get()
    if memo is None or torch._C._are_functorch_transforms_active():
        return nullcontext()
    return _replaced(memo.prefixes(module, own, params))


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


class _Cut(NamedTuple):
    """How a prefix divides a chain; a part that is divided itself is on both sides."""

    chain: Any
    constant: list[nn.Module]
    before: dict[str, nn.Module]
    after: dict[str, nn.Module]


class _Known(NamedTuple):
    """An output with all that it was computed from besides the input, which is the key."""

    output: Tensor
    version: int
    sources: list[Tensor]
    stamp: list[int]


class _Prefix:
    """The frozen beginning of a chain, and its outputs so far.

    Args:
        cuts: of the chain, then of the chain in which that one is cut, and so on.
    """

    def __init__(self, cuts: list[_Cut]) -> None:
        self.chains = [cut.chain for cut in cuts]
        self._cuts = cuts
        # Where a call puts its parameters and buffers.
        self._places: list[tuple[dict[str, Any], str]] = [
            (tensors, name)
            for cut in cuts
            for part in cut.constant
            for module in part.modules()
            for tensors in (module._parameters, module._buffers)
            for name, tensor in tensors.items()
            if tensor is not None
        ]
        # An input that does not come again takes its output with it.
        self._known = WeakTensorKeyDictionary()

    def run(self, forward: Forward, x: Any) -> Any:
        """``forward(x)`` of the chain, without the prefix if its output is known."""
        return self._only("after", forward, self._output(forward, x))

    def _output(self, forward: Forward, x: Any) -> Any:
        if type(x) is not Tensor or x.requires_grad or x.is_inference():
            return self._only("before", forward, x)  # with a graph, it comes from this very step
        sources = [tensors[name] for tensors, name in self._places]
        stamp = [torch.is_grad_enabled(), *(t._version for t in (x, *sources))]
        known: _Known | None = self._known.get(x)
        if known is not None and (
            known.stamp == stamp
            and known.output._version == known.version
            and all(map(is_, known.sources, sources))
        ):
            return known.output
        output = self._only("before", forward, x)
        if type(output) is Tensor:
            self._known[x] = _Known(output, output._version, sources, stamp)
        return output

    def _only(self, side: Literal["before", "after"], forward: Forward, x: Any) -> Any:
        """``forward(x)`` as if the chain had the parts of one side alone."""
        whole = [chain._modules for chain in self.chains]
        try:
            for cut in self._cuts:
                vars(cut.chain)["_modules"] = getattr(cut, side)
            return forward(x)
        finally:
            for chain, parts in zip(self.chains, whole, strict=True):
                vars(chain)["_modules"] = parts


def _prefixes(module: nn.Module, moving: set[int]) -> Iterator[_Prefix]:
    if not _is_chain(module):
        for child in module.children():
            yield from _prefixes(child, moving)
        return
    cuts = list(_cut(module, moving))
    if any(True for cut in cuts for part in cut.constant for _ in part.parameters()):
        yield _Prefix(cuts)
    elif not cuts:  # only the first part can have the same input in every step
        for first in list(module.children())[:1]:
            yield from _prefixes(first, moving)


def _cut(chain: nn.Module, moving: set[int]) -> Iterator[_Cut]:
    """The cuts at the end of the longest prefix; none if it is empty."""
    parts: list[tuple[str, Any]] = list(chain._modules.items())
    length = next((i for i, (_, m) in enumerate(parts) if not _constant(m, moving)), len(parts))
    border, later = parts[length : length + 1], parts[length + 1 :]
    once = not any(m is part for _, part in border for _, n in later for m in n.modules())
    inner = [cut for _, part in border if _is_chain(part) and once for cut in _cut(part, moving)]
    if length or inner:
        constant = [part for _, part in parts[:length]]
        yield _Cut(chain, constant, dict(parts[: length + bool(inner)]), dict(parts[length:]))
        yield from inner


def _is_chain(module: nn.Module) -> bool:
    return type(module) is nn.Sequential and is_plain(module)


def _constant(module: nn.Module, moving: set[int]) -> bool:
    """Whether an input gives the same output in all inner steps, and nothing else happens."""
    return moving.isdisjoint(map(id, module.parameters())) and all(map(_computes, module.modules()))


def _computes(module: Any) -> bool:
    """Whether this is torch's own, and only computes, from input, parameters and buffers."""
    file = type(module).__module__
    if not is_plain(module) or isinstance(module, _RANDOM):
        return False
    if file in _NORMS:
        return module.running_mean is None or not module.training
    return file in _FUNCTIONS or _is_chain(module)
