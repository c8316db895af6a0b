"""Inner loops that adapt some of the layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fastmeta.adaptation.base import Adaptation
from fastmeta.adaptation.layers import Layer, find_layers
from fastmeta.adaptation.tape import Grads, Pullback


class LayerPattern(Adaptation):
    """Another adaptation of some layers alone: a Lambda pattern.

    Khabarlak 2022, "Faster Optimization-Based Meta-Learning Adaptation Phase" (arXiv 2206.05930),
    from the abstract; details are our reconstruction. With ``"head"`` it is the inner loop of ANIL
    (Raghu et al. 2020), with ``"body"`` that of BOIL (Oh et al. 2021).

    In first-order inner loops nothing is stored or differentiated below the lowest layer adapted;
    the frozen prefix of an ``nn.Sequential`` runs once (its output is cached across inner steps).
    Meta-gradients are those of all layers; only Reptile's is zero for a layer that is never
    adapted.

    Args:
        inner: how the adapted layers move, and in how many steps.
        pattern: the layers, see :func:`read_pattern`.

    Attributes:
        layers: of the network, once a learner is built with this.

    Raises:
        ValueError: if the pattern is a number other than bits.
    """

    task_batchable = True

    def __init__(self, inner: Adaptation, pattern: str | int) -> None:
        # A configuration file or a flag has 11111 as a number; YAML has 00011 as 9.
        if not isinstance(pattern, str) and not set(str(pattern)) <= set("01"):
            raise ValueError(f"a pattern must be a text, got {pattern!r}. Put it in quotes.")
        self.inner = inner
        self.pattern = str(pattern)
        self.steps = inner.steps
        self.task_batchable = (
            vars(type(inner)).get("task_batchable", False) and inner.task_batchable
        )
        self.layers: list[Layer] = []
        self._moving: list[list[bool]] = []

    def bind(self, params: Sequence[Tensor], names: Sequence[str]) -> None:
        """See :meth:`Adaptation.bind`.

        Raises:
            ValueError: if the pattern does not suit the network, or the object has another one.
        """
        layers = find_layers(params, names)
        if self.layers not in ([], layers):
            raise ValueError(
                "this LayerPattern already has another network. Make one for each network."
            )
        chosen = read_pattern(self.pattern, [layer.name for layer in layers])
        self.inner.bind(params, names)
        self.rates = self.inner.rates
        self.layers = layers
        members = [{i for k in step for i in layers[k].members} for step in chosen]
        self._moving = [[i in step for i in range(len(params))] for step in members]

    def adapts(self, step: int, params: Sequence[Tensor]) -> Sequence[bool]:
        """See :meth:`Adaptation.moving`.

        Raises:
            RuntimeError: before :meth:`bind`.
        """
        if not self._moving:
            raise RuntimeError(
                "LayerPattern knows no layers yet: call bind(params, names), as a learner does."
            )
        return self._moving[min(step, len(self._moving) - 1)]

    def start(self, params: Sequence[Tensor]) -> list[Tensor]:
        """See :meth:`Adaptation.start`."""
        return self.inner.start(params)

    def update(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor]]:
        """See :meth:`Adaptation.update`."""
        return self.inner.update(step, params, grads, state)

    def vjp(
        self, step: int, params: Sequence[Tensor], grads: Grads, state: Sequence[Tensor]
    ) -> tuple[list[Tensor], list[Tensor], Pullback]:
        """See :meth:`Adaptation.vjp`."""
        return self.inner.vjp(step, params, grads, state)


def read_pattern(pattern: str, layers: Sequence[str]) -> list[list[int]]:
    """The layers that each inner step adapts; further steps adapt those of the last one.

    A pattern is one or more of these, separated by ``/``, each for an inner step:

    - bits, one a layer: ``00011`` adapts the last two of five;
    - words, separated by commas: ``full`` (all layers), ``head`` (the last one), ``body`` (all but
      the last one), or a layer's name or the beginning of it: ``features.3,head``.

    Args:
        pattern: the text.
        layers: their names.

    Returns:
        Their numbers, for each step that the pattern has.

    Raises:
        ValueError: if there are not as many bits as layers, a name is unknown, or a step would
            adapt nothing.
    """
    return [_read_step(step, layers) for step in pattern.split("/")]


def by_word(inner: Mapping[str, Callable[..., Adaptation]]) -> dict[str, Callable[..., Adaptation]]:
    """The words of patterns: ``"lambda"``, ``"anil"`` and ``"boil"``.

    Each takes ``of``, a word of ``inner`` (``"sgd"`` by default), and that adaptation's arguments;
    ``"lambda"`` also ``pattern``.
    """
    inner = dict(inner)

    def build(
        lr: float, steps: int = 1, *, pattern: str | int = "full", of: str = "sgd", **options: Any
    ) -> LayerPattern:
        if of not in inner:
            raise ValueError(f"of must be one of {', '.join(inner)}; got {of!r}.")
        return LayerPattern(inner[of](lr=lr, steps=steps, **options), pattern)

    def fixed(pattern: str) -> Callable[..., Adaptation]:
        return lambda lr, steps=1, **options: build(lr, steps, pattern=pattern, **options)

    return {"anil": fixed("head"), "boil": fixed("body"), "lambda": build}


def _read_step(step: str, layers: Sequence[str]) -> list[int]:
    if step and set(step) <= set("01"):
        if len(step) != len(layers):
            raise ValueError(f"pattern {step!r} has {len(step)} bits, but {_known(layers)}.")
        found = {k for k, bit in enumerate(step) if bit == "1"}
    else:
        found = {k for word in step.split(",") for k in _read_word(word, layers)}
    if not found:
        raise ValueError(f"pattern {step!r} adapts nothing; expected at least one layer.")
    return sorted(found)


def _read_word(word: str, layers: Sequence[str]) -> Sequence[int]:
    numbers = range(len(layers))
    words = {"full": numbers, "head": numbers[-1:], "body": numbers[:-1]}
    named = [k for k in numbers if f"{layers[k]}.".startswith(f"{word}.")]
    if word not in words and not named:
        raise ValueError(
            f"a pattern is made of bits, full, head, body or names of layers, got {word!r}; "
            f"{_known(layers)}."
        )
    return words.get(word, named)


def _known(layers: Sequence[str]) -> str:
    return f"the network has {len(layers)} layers: {', '.join(layers)}"
