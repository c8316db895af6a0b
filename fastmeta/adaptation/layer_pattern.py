"""Adaptation of some of the layers."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor
from typing_extensions import override

from fastmeta._checks import check_choice
from fastmeta._options import forwards_options, named
from fastmeta.adaptation.base import Adaptation, is_task_batchable
from fastmeta.adaptation.layers import Layer, find_layers, in_module
from fastmeta.adaptation.tape import Grads, Pullback

WARP_PATTERN = "!*warp*"  # all but warp layers, see `fastmeta.models.warp_linear`


class LayerPattern(Adaptation):
    """Another adaptation, restricted to some of the layers by a Lambda pattern.

    Khabarlak 2022, "Faster Optimization-Based Meta-Learning Adaptation Phase" (arXiv 2206.05930),
    reconstructed from the abstract. With `"head"` it is the inner loop of ANIL
    (Raghu et al. 2020), with `"body"` that of BOIL (Oh et al. 2021).

    In first-order inner loops nothing is stored or differentiated below the lowest adapted layer;
    the frozen prefix of an `nn.Sequential` runs once (its output is cached across inner steps).
    Meta-gradients are those of all layers; only Reptile's and Leap's are zero for a layer that is
    never adapted.

    Args:
        inner: the adaptation of the adapted layers; also decides the number of inner steps.
        pattern: the adapted layers, see
            [`read_pattern`][fastmeta.adaptation.layer_pattern.read_pattern]. A name with a `*`
            selects single parameters, whichever layer they are in: `*lora_*` adapts those of LoRA.
            A `!` leaves out what the name after it selects: `!*warp*` adapts all but warp layers.

    Attributes:
        layers: of the network; empty until a learner is built.

    Raises:
        ValueError: if the pattern is neither a string nor a number made of bits.
    """

    task_batchable = True

    def __init__(self, inner: Adaptation, pattern: str | int) -> None:
        # Configuration files and flags read 11111 as a number; YAML reads 00011 as 9.
        if not isinstance(pattern, str) and not set(str(pattern)) <= set("01"):
            raise ValueError(f"pattern must be a string, got {pattern!r}. Put it in quotes.")
        self.inner = inner
        self.pattern = str(pattern)
        self.steps = inner.steps
        self.support_loss = inner.support_loss
        self.task_batchable = is_task_batchable(inner)
        self.layers: list[Layer] = []
        self._adapted: list[list[bool]] = []

    @property
    @override
    def own_rates(self) -> Sequence[Tensor]:
        return self.inner.own_rates

    @override
    def step_rates(self) -> None:
        self.inner.step_rates()

    @override
    def bind(self, params: Sequence[Tensor], names: Sequence[str]) -> None:
        layers = find_layers(params, names)
        if self.layers not in ([], layers):
            raise ValueError(
                "this LayerPattern is already bound to another network. Create one per network."
            )
        adapted = [_read_members(step, layers, names) for step in self.pattern.split("/")]
        self.inner.bind(params, names)
        self.rates = self.inner.rates
        self.layers = layers
        self._adapted = [[i in step for i in range(len(params))] for step in adapted]

    @override
    def restricted(
        self, kept: Sequence[int], params: Sequence[Tensor], names: Sequence[str]
    ) -> LayerPattern:
        other = copy.copy(self)
        other.inner, other.layers = self.inner.restricted(kept, params, names), []
        other.bind(params, names)
        return other

    @override
    def adapts(self, step: int, params: Sequence[Tensor]) -> Sequence[bool]:
        if not self._adapted:
            raise RuntimeError(
                "LayerPattern is not bound to a network: call bind(params, names) first."
            )
        return self._adapted[min(step, len(self._adapted) - 1)]

    @override
    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        return self.inner.start(params)

    @override
    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        return self.inner.update(step, params, grads, state)

    @override
    def pullback(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> Pullback:
        return self.inner.pullback(step, params, grads, state)


def read_pattern(pattern: str, layers: Sequence[str]) -> list[list[int]]:
    """The layers that each inner step adapts; further steps adapt those of the last one.

    A pattern is one or more of these, separated by `/`, one per inner step:

    - bits, one per layer: `00011` adapts the last two of five;
    - names, separated by commas: `full` (all layers), `head` (the last one), `body` (all but
      the last one), or a layer's name or the beginning of it: `features.3,head`.

    Args:
        pattern: see above.
        layers: names of the layers.

    Returns:
        Indices of the layers, for each step that the pattern has.

    Raises:
        ValueError: if the number of bits is not that of the layers, a name is unknown, or a step
            would adapt no layer.
    """
    return [_read_step(step, layers) for step in pattern.split("/")]


def pattern_adaptations(
    inner: Mapping[str, Callable[..., Adaptation]],
) -> dict[str, Callable[..., LayerPattern]]:
    """The adaptations of some layers by name: `"anil"`, `"boil"`, `"lambda"` and `"warpgrad"`.

    Args:
        inner: the adaptations that they restrict, by name.
    """
    inner = dict(inner)

    def build(pattern: str | int, of: str, **arguments: Any) -> LayerPattern:
        check_choice("of", of, inner)
        return LayerPattern(inner[of](**arguments), pattern)

    restricted = named(inner, "of", "sgd")

    @forwards_options(restricted)
    def anil(lr: float, steps: int = 1, *, of: str = "sgd", **options: Any) -> LayerPattern:
        """Adapts the head only, as in ANIL.

        Args:
            lr: inner learning rate.
            steps: inner steps during meta-training.
            of: name of the adaptation of the head, whose options are accepted, too.
            **options: of this adaptation.
        """
        return build("head", of, lr=lr, steps=steps, **options)

    @forwards_options(restricted)
    def boil(lr: float, steps: int = 1, *, of: str = "sgd", **options: Any) -> LayerPattern:
        """Adapts all layers but the head, as in BOIL.

        Args:
            lr: inner learning rate.
            steps: inner steps during meta-training.
            of: name of the adaptation of these layers, whose options are accepted, too.
            **options: of this adaptation.
        """
        return build("body", of, lr=lr, steps=steps, **options)

    @forwards_options(restricted)
    def lambda_pattern(
        lr: float, steps: int = 1, *, pattern: str | int = "full", of: str = "sgd", **options: Any
    ) -> LayerPattern:
        """Adapts the layers of a Lambda pattern only.

        Args:
            lr: inner learning rate.
            steps: inner steps during meta-training.
            pattern: the adapted layers: full, head, body, names of layers or (with a "*") of
                parameters, separated by commas, or one bit per layer; "!" leaves out what follows,
                "/" separates inner steps.
            of: name of the adaptation of these layers, whose options are accepted, too.
            **options: of this adaptation.
        """
        return build(pattern, of, lr=lr, steps=steps, **options)

    @forwards_options(restricted)
    def warpgrad(lr: float, steps: int = 1, *, of: str = "sgd", **options: Any) -> LayerPattern:
        """Adapts all but warp layers, whose parameters have `warp` in their names.

        Args:
            lr: inner learning rate.
            steps: inner steps during meta-training.
            of: name of the adaptation of the other layers, whose options are accepted, too.
            **options: of this adaptation.
        """
        return build(WARP_PATTERN, of, lr=lr, steps=steps, **options)

    return {"anil": anil, "boil": boil, "lambda": lambda_pattern, "warpgrad": warpgrad}


def _read_members(step: str, layers: Sequence[Layer], names: Sequence[str]) -> set[int]:
    """Indices of the parameters that an inner step adapts."""
    given = step.split(",")
    without = [name[1:] for name in given if name.startswith("!")]
    found = _selected([n for n in given if not n.startswith("!")] or ["full"], layers, names)
    if without:
        found -= _selected(without, layers, names)
    if not found:
        raise ValueError(f"pattern {step!r} adapts nothing; expected at least one parameter.")
    return found


def _selected(given: list[str], layers: Sequence[Layer], names: Sequence[str]) -> set[int]:
    """Indices of the parameters that names of layers and of parameters select."""
    found: set[int] = set()
    of_layers = [name for name in given if "*" not in name]
    if of_layers:
        chosen = _read_step(",".join(of_layers), [layer.name for layer in layers])
        found.update(i for k in chosen for i in layers[k].members)
    for name in given:
        if "*" in name:
            found.update(_matching(name, names))
    return found


def _matching(pattern: str, names: Sequence[str]) -> Iterator[int]:
    matching = [i for i, n in enumerate(names) if in_module(n) and fnmatchcase(n, pattern)]
    if not matching:
        raise ValueError(
            f"no trainable parameter has a name that matches {pattern!r}; the network has "
            f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}."
        )
    yield from matching


def _read_step(step: str, layers: Sequence[str]) -> list[int]:
    if step and set(step) <= set("01"):
        if len(step) != len(layers):
            raise ValueError(f"pattern {step!r} has {len(step)} bits, but {_known(layers)}.")
        found = {k for k, bit in enumerate(step) if bit == "1"}
    else:
        found = {k for name in step.split(",") for k in _read_name(name, layers)}
    if not found:
        raise ValueError(f"pattern {step!r} adapts nothing; expected at least one layer.")
    return sorted(found)


def _read_name(name: str, layers: Sequence[str]) -> Sequence[int]:
    indices = range(len(layers))
    groups = {"full": indices, "head": indices[-1:], "body": indices[:-1]}
    named = [k for k in indices if f"{layers[k]}.".startswith(f"{name}.")]
    if name not in groups and not named:
        raise ValueError(
            "pattern must consist of bits, full, head, body or names of layers, got "
            f"{name!r}; {_known(layers)}."
        )
    return groups.get(name, named)


def _known(layers: Sequence[str]) -> str:
    return f"the network has {len(layers)} layers: {', '.join(layers)}"
