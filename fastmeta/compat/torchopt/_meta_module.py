"""Modules that tell their parameters from their meta-parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from typing_extensions import Self, override


class MetaGradientModule(nn.Module):
    """A module whose attributes are meta-parameters if they were arguments of `__init__`.

    Tensors that require a gradient and modules in training mode among the arguments, once they are
    attributes, are not in `parameters()`, `modules()` and `state_dict()`, but in
    `meta_parameters()` and `meta_modules()`. Other tensors that require a gradient become
    parameters.
    """

    _meta_parameters: dict[str, Tensor]
    _meta_modules: dict[str, nn.Module]
    _meta_inputs: set[Tensor | nn.Module]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        module = super().__new__(cls)
        found: set[Tensor | nn.Module] = set()
        for value in tree_leaves((args, kwargs)):
            if isinstance(value, Tensor) and value.requires_grad:
                found.add(value)
            elif isinstance(value, nn.Module) and value.training:
                found.update(value.parameters(), value.modules())
        for name, start in (("inputs", found), ("parameters", {}), ("modules", {})):
            object.__setattr__(module, f"_meta_{name}", start)
        return module

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__()

    @override
    def __setattr__(self, name: str, value: Any) -> None:
        meta = isinstance(value, Tensor | nn.Module) and value in self._meta_inputs
        if meta and isinstance(value, nn.Module):
            self.register_meta_module(name, value)
        elif meta:
            self.register_meta_parameter(name, value)
        elif isinstance(value, Tensor) and value.requires_grad and name not in self._buffers:
            # nn.Module accepts leaves that are nn.Parameter only.
            self._forget(name)
            self._parameters[name] = value  # type: ignore[assignment]
        else:
            super().__setattr__(name, value)

    @override
    def __getattr__(self, name: str) -> Any:
        for held in (self._meta_parameters, self._meta_modules):
            if name in held:
                return held[name]
        return super().__getattr__(name)

    def register_meta_parameter(self, name: str, param: Tensor) -> None:
        """Adds a meta-parameter."""
        self._forget(name)
        self._meta_parameters[name] = param

    def register_meta_module(self, name: str, module: nn.Module) -> None:
        """Adds a module of meta-parameters."""
        self._forget(name)
        self._meta_modules[name] = module

    def named_meta_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names and meta-parameters, each once."""
        seen: set[Tensor] = set()
        for name, param in self.all_meta_parameters():
            if param not in seen:
                seen.add(param)
                yield name, param

    def meta_parameters(self) -> Iterator[Tensor]:
        """The meta-parameters, each once."""
        return (param for _, param in self.named_meta_parameters())

    def meta_modules(self) -> Iterator[nn.Module]:
        """The modules of meta-parameters."""
        return iter(self._meta_modules.values())

    def set_parameters(self, params: Mapping[str, Tensor]) -> None:
        """Replaces parameters, by name; the new ones may have a graph."""
        _put(self, params)

    @contextmanager
    def replaced(self, params: Mapping[str, Tensor], meta: Mapping[str, Tensor]) -> Iterator[None]:
        """A context in which parameters and meta-parameters are others, by name."""
        before = dict(self.named_parameters()), dict(self.all_meta_parameters())
        try:
            _put(self, params)
            self._put_meta(meta)
            yield
        finally:
            _put(self, before[0])
            self._put_meta(before[1])

    def all_meta_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """Names and meta-parameters; one that is in several places has several names."""
        yield from self._meta_parameters.items()
        for prefix, module in self._meta_modules.items():
            yield from module.named_parameters(prefix, remove_duplicate=False)

    def _put_meta(self, meta: Mapping[str, Tensor]) -> None:
        for name, value in meta.items():
            first, _, rest = name.partition(".")
            if rest:
                _put(self._meta_modules[first], {rest: value})
            else:
                self._meta_parameters[first] = value

    def _forget(self, name: str) -> None:
        held: list[dict[str, Any]] = [self.__dict__, self._parameters, self._buffers, self._modules]
        for container in (*held, self._meta_parameters, self._meta_modules):
            container.pop(name, None)


def _put(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    for name, value in tensors.items():
        path, _, last = name.rpartition(".")
        part = module.get_submodule(path)
        assert last in part._parameters
        part._parameters[last] = value  # type: ignore[assignment]
