"""Weights of classes in the query loss, learned by SPSA."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fastmeta._options import forwards_options, named
from fastmeta._spsa import NAMES, SPSA, Mode
from fastmeta.adaptation import Adaptation
from fastmeta.gradients import TaskGradients
from fastmeta.metagrad.augmented import Augmented
from fastmeta.metagrad.base import MetaGradient, StepContext, TaskGradient
from fastmeta.metagrad.task_losses import TaskLosses
from fastmeta.metagrad.wrapper import Wrapper, inner_by_name


class ClassWeights(Wrapper):
    """Another meta-gradient, of a query loss that weights the dataset's classes.

    Boiarov, Khabarlak, Yastrebov 2021 (arXiv 2110.13188), the form with a weight per class: each
    query example's loss is multiplied by `1 / v_c^2`, with `c` the class that the dataset has for
    its label (`TaskBatch.ids`), and `v` is moved by SPSA as in
    [`SPSAWeights`][fastmeta.aggregation.SPSAWeights], divided by the number of tasks. It begins as
    1. Here, the weights of all classes seen so far are divided by their mean, and only classes in
    the meta-batch move; both are **ours**. As there, the constants of the authors do not weight
    anything.

    Query losses in results are the weighted ones. Runs in the loop engine.

    Args:
        inner: the meta-gradient.
        mode: as in [`SPSAWeights`][fastmeta.aggregation.SPSAWeights], likewise below.
        alpha: factor of the steps; 0 keeps the weights equal.
        beta: size of the perturbation; positive.
        rescale_every: meta-steps between two rescalings.
        seed: of the signs.

    Raises:
        ValueError: if an argument is out of range, or `inner` is
            [`Augmented`][fastmeta.metagrad.Augmented], which goes around this one; or later, if the
            classes are not known.
    """

    own_state_names = NAMES

    def __init__(
        self,
        inner: MetaGradient,
        mode: Mode = "delta",
        alpha: float = 0.25,
        beta: float = 15.0,
        rescale_every: int = 100,
        seed: int = 0,
    ) -> None:
        super().__init__(inner)
        if isinstance(inner, Augmented):
            raise ValueError(
                "metagrad.ClassWeights weights the losses of one network, and metagrad.Augmented "
                "has several; expected Augmented(ClassWeights(...)), the other way round."
            )
        self._rule = SPSA(mode, alpha, beta, rescale_every, seed)

    @property
    @override
    def closed_form(self) -> bool:
        return self.inner.closed_form

    @override
    def task(
        self,
        losses: TaskLosses,
        params: Sequence[Tensor],
        adaptation: Adaptation,
        context: StepContext,
    ) -> TaskGradient:
        evaluate, ids, labels = losses.weighted_query, losses.ids, losses.query_labels
        if evaluate is None or ids is None or labels is None or int(labels.max()) >= len(ids):
            raise ValueError(
                "metagrad.ClassWeights needs the dataset's class of each label: expected a "
                "TaskBatch with ids (T, ways), as those of fastmeta.data.EpisodeSampler, and class "
                "indices as query targets."
            )
        classes = ids[labels]
        v = _of_all_classes(context, classes)
        scale = context.state.get("spsa_v", v.new_ones(1)).square().reciprocal().mean()
        factors = 1 / (scale * v[classes].square())
        seen: list[Tensor] = []

        def query(fast: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
            value, output, each = evaluate(fast, factors)
            seen.append(each)
            return value, output

        found = self.inner.task(replace(losses, query=query), params, adaptation, context)
        extras = {**found.extras, "class_losses": seen[-1], "classes": classes}
        return replace(found, extras=extras)

    @override
    def combine(
        self, gradients: TaskGradients, extras: Mapping[str, Tensor], context: StepContext
    ) -> TaskGradients:
        others = {name: t for name, t in extras.items() if name not in ("class_losses", "classes")}
        found = super().combine(gradients, others, context)
        losses, classes, finite = extras["class_losses"], extras["classes"], gradients.finite
        known = losses.isfinite()
        if finite is not None:
            known &= finite[:, None]
        if (sharding := context.sharding) is not None:
            losses, classes = sharding.gather(losses), sharding.gather(classes)
            known = sharding.gather(known.byte()).bool()
        v = _of_all_classes(context, classes)
        counts = torch.bincount(classes[known], minlength=len(v)).to(v)
        totals = torch.zeros_like(v).index_add_(0, classes[known], losses[known].to(v))
        if "spsa_losses" in context.state:
            context.state["spsa_losses"] = _longer(context.state["spsa_losses"], len(v))
        share = counts / counts.sum().clamp(min=1)
        self._rule.advance(context.state, v, totals / counts.clamp(min=1), share, len(classes))
        return found


def _of_all_classes(context: StepContext, classes: Tensor) -> Tensor:
    """`v` of all classes up to the largest of these."""
    known = context.state.get("spsa_v", classes.new_ones(0, dtype=torch.float64))
    return _longer(known, int(classes.max()) + 1)


def _longer(values: Tensor, length: int) -> Tensor:
    """The values, then ones up to this length."""
    return torch.cat([values, values.new_ones(max(0, length - len(values)))])


def class_weights_by_name(
    others: Mapping[str, Callable[..., MetaGradient]],
) -> Callable[..., ClassWeights]:
    """Makes the class weights of a meta-gradient that is given by its name.

    Args:
        others: the meta-gradients, by name.
    """

    @forwards_options(named(others, "of", "exact"))
    def class_weights(
        of: str = "exact",
        mode: Mode = "delta",
        alpha: float = 0.25,
        beta: float = 15.0,
        rescale_every: int = 100,
        spsa_seed: int = 0,
        **options: Any,
    ) -> ClassWeights:
        """Another meta-gradient, of a query loss that weights the dataset's classes (SPSA).

        Args:
            of: name of the meta-gradient, whose options are accepted, too.
            mode: delta, or track, which compares with the losses of the meta-step before.
            alpha: factor of the steps; 0 keeps the weights equal.
            beta: size of the perturbation; positive. The default, that of the authors, does not
                weight anything.
            rescale_every: meta-steps between two rescalings.
            spsa_seed: of the signs.
            **options: of this meta-gradient.
        """
        inner = inner_by_name(of, others, options)
        return ClassWeights(inner, mode, alpha, beta, rescale_every, spsa_seed)

    return class_weights
