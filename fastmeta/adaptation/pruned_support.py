"""Inner loops that learn from a part of the support set, chosen anew in each step (GradNCP)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.autograd import forward_ad
from typing_extensions import override

from fastmeta._checks import check_bool, check_choice, check_in_range
from fastmeta._options import construct, forwards_options, named
from fastmeta.adaptation.base import Adaptation, SupportLoss, is_task_batchable
from fastmeta.adaptation.tape import Grads, Pullback
from fastmeta.adaptation.wrappers import Wrapper
from fastmeta.functional import Buffers, FunctionalModule, Loss
from fastmeta.tasks import Examples, map_tensors, named_tensors

By = Literal["gradient-norm", "random"]


class PrunedSupport(Wrapper):
    """Another adaptation, each step of which learns from a part of the support set.

    Tack et al. 2023, "Learning Large-scale Neural Fields via Context Pruned Meta-Learning"
    (GradNCP, arXiv 2302.00617). Each step of a meta-step keeps the `int(keep * n)` of `n` support
    examples (at least one) whose gradient of the last layer has the largest norm,

        s_j = |e_j| sqrt(|phi_j|^2 + 1),

    with `e_j` the derivative of the loss with respect to the output for example `j` (for the
    squared error proportional to the error, for cross-entropy `softmax - one-hot`) and `phi_j` the
    input of the last layer; without a bias there is no `+ 1`. The scores need one forward pass of
    all examples without a graph; the graph is that of the chosen ones alone.

    In `adapt`, `predict` and `evaluate` of a learner all examples are used, and with `rescale` the
    gradient `g` of each task's loss is multiplied by `|g of the chosen part| / |g|`, so that its
    steps are as long as those of meta-training.

    Args:
        inner: the adaptation.
        keep: share of the support examples that are kept, in `(0, 1]`; with 1 nothing changes.
        by: `"gradient-norm"`, or `"random"`: as many examples drawn from torch's generator, the
            control of the paper.
        rescale: see above; costs a second gradient.

    Raises:
        ValueError: if an argument is out of range, or `inner` chooses support examples itself; or
            in a meta-step, if the last layer is not a plain `nn.Linear` whose outputs `(n, d)` are
            those of the network (needed by `"gradient-norm"`).
    """

    task_batchable = True

    def __init__(
        self, inner: Adaptation, keep: float = 0.25, by: By = "gradient-norm", rescale: bool = True
    ) -> None:
        super().__init__(inner)
        if inner.support_loss is not None:
            raise ValueError(f"{type(inner).__name__} chooses support examples itself.")
        self.support_loss = PrunedLoss(keep, by, rescale)
        self.task_batchable = is_task_batchable(inner)

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


class PrunedLoss(SupportLoss):
    """The loss of the chosen support examples; arguments as of `PrunedSupport`."""

    def __init__(self, keep: float, by: By, rescale: bool) -> None:
        check_in_range("keep", keep, 0, 1, closed=True)
        if not keep:
            raise ValueError("keep must be above 0, got 0.")
        check_choice("by", by, get_args(By))
        check_bool("rescale", rescale)
        self.keep = keep
        self.by: By = by
        self.rescale = rescale

    @override
    def evaluate(
        self,
        model: FunctionalModule,
        loss: Loss,
        params: Sequence[Tensor],
        buffers: Buffers,
        x: Examples,
        y: Examples,
        meta_training: bool,
    ) -> tuple[Tensor, Tensor]:
        count = len(next(named_tensors(x, ""))[1])
        kept = max(1, int(self.keep * count))
        if kept == count or not (meta_training or self.rescale):
            return model.evaluate(loss, params, buffers, x, y)
        before = {name: buffer.clone() for name, buffer in buffers.items()}
        if self.by == "random":
            like = next(iter(params))
            chosen = torch.randperm(count, device=like.device)[:kept]
        else:
            scores = gradient_norms(model, loss, params, dict(before), x, y)
            chosen = scores.topk(kept).indices
        part = [map_tensors(lambda t: t.index_select(0, chosen), examples) for examples in (x, y)]
        if meta_training:
            return model.evaluate(loss, params, buffers, *part)
        value, output = model.evaluate(loss, params, buffers, x, y)
        return _rescaled(value, model.evaluate(loss, params, before, *part)[0], params), output


def gradient_norms(
    model: FunctionalModule,
    loss: Loss,
    params: Sequence[Tensor],
    buffers: Buffers,
    x: Examples,
    y: Examples,
) -> Tensor:
    """The norms `(n,)` of the last layer's gradients of single examples, times one constant.

    Args:
        model: the module, whose last layer is a plain `nn.Linear`.
        loss: the mean over examples of a function of output and target.
        params: of the module.
        buffers: of the module; updated.
        x: inputs, `(n, *input)`.
        y: targets.

    Raises:
        ValueError: if it is not, or its outputs are not those of the network.
    """
    head = model.find_head()
    features = None
    if head is not None:
        values = [forward_ad.unpack_dual(p).primal for p in params]
        with torch.no_grad():
            found = model.evaluate_with_features(loss, values, buffers, x, y, head)
        _, output, features = found
    if head is None or features is None or not isinstance(y, Tensor):
        raise ValueError(
            "by='gradient-norm' needs a network whose outputs (n, d) are those of its last layer, "
            "a plain nn.Linear without hooks that runs once, and targets in one tensor. Use "
            "by='random', or such a network."
        )
    errors: Tensor = torch.func.grad(lambda o: loss(o, y))(output)
    squares = features.square().sum(1) + (0 if head.bias is None else 1)
    return (errors.square().sum(1) * squares).sqrt()


def _rescaled(value: Tensor, part: Tensor, params: Sequence[Tensor]) -> Tensor:
    """The loss, with a gradient of the norm that the gradient of `part` has."""
    leaves = [p for p in params if p.requires_grad]
    if not leaves:
        return value
    full, pruned = (torch.autograd.grad(v, leaves, allow_unused=True) for v in (value, part))
    factor = _norm(pruned) / _norm(full).clamp(min=1e-16)
    # Linear in the parameters: no second backward pass of all examples.
    pairs = zip(full, leaves, strict=True)
    terms = [(factor * g * (p - p.detach())).sum() for g, p in pairs if g is not None]
    return value.detach() + torch.stack(terms).sum()


def _norm(grads: Grads) -> Tensor:
    return torch.stack([g.square().sum() for g in grads if g is not None]).sum().sqrt()


def pruned_support_by_name(
    inner: Mapping[str, Callable[..., Adaptation]],
) -> Callable[..., PrunedSupport]:
    """Makes an adaptation with a pruned support set of one that is given by its name.

    Args:
        inner: the adaptations, by name.
    """
    inner = dict(inner)

    @forwards_options(named(inner, "of", "sgd"))
    def pruned_support(
        lr: float,
        steps: int = 1,
        *,
        of: str = "sgd",
        keep: float = 0.25,
        by: By = "gradient-norm",
        rescale: bool = True,
        **options: Any,
    ) -> PrunedSupport:
        """Each step learns from the support examples of largest last-layer gradients (GradNCP).

        Args:
            lr: inner learning rate.
            steps: inner steps during meta-training.
            of: name of the adaptation, whose options are accepted, too.
            keep: share of the support examples that are kept in training.
            by: gradient-norm, or random.
            rescale: whether gradients at test, of all examples, get the norm of those of the part.
            **options: of this adaptation.
        """
        check_choice("of", of, inner)
        arguments = {"lr": lr, "steps": steps}
        adaptation = construct(f"adaptation {of!r}", inner[of], options, **arguments)
        return PrunedSupport(adaptation, keep, by, rescale)

    return pruned_support
