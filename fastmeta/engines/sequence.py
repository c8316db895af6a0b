"""The engine for convolutional networks: the whole meta-step in one call, or one CUDA graph."""

from __future__ import annotations

from torch import Tensor
from typing_extensions import override

from fastmeta import ops
from fastmeta.adaptation import SGD
from fastmeta.backend import kernel_devices
from fastmeta.engines._chain import Chain, ChainReader
from fastmeta.engines._one_call import (
    adopt,
    reverse_sweep,
    unsuitable_components,
    unsuitable_loss,
    unsuitable_options,
    unsuitable_params,
    unsuitable_targets,
    unsuitable_tensor,
)
from fastmeta.engines._recognition import loss_name
from fastmeta.engines._traced import Leaves
from fastmeta.engines.base import RAGGED, Engine, StepBuffers, StepResult, StepSpec
from fastmeta.functional import Buffers, FusedModule
from fastmeta.functional._fusion_steps import update_statistics, updates_statistics
from fastmeta.metagrad import StepContext
from fastmeta.metagrad.base import require_inner_steps
from fastmeta.tasks import MetaBatch, TaskBatch


class SequenceEngine(Engine):
    """Runs MAML, FOMAML, mixed order, GSL and corrections of FOMAML on convolutional networks.

    By [`fastmeta.ops.sequence_step`][], which computes the meta-gradients of `Exact`, `Recursion`,
    `GSL` and `FirstOrder`. Suitable for a chain of 3x3 convolutions (padding 1, stride
    1 or 2, not too wide), `BatchNorm2d` with batch statistics or
    [`PerStepBatchNorm2d`][fastmeta.models.PerStepBatchNorm2d], activations, 2x2 pooling, a global
    mean, `Flatten` and `Linear`, in a (nested) `nn.Sequential`,
    [`Conv4`][fastmeta.models.Conv4], or a module whose `forward` calls such layers in turn. Such a
    `forward` is traced by `torch.fx` and not run any more, so that its side effects are left out;
    its layers are compared with it once. No hooks or parametrizations, every parameter trained, a
    loss of torch with default options.

    Its memory, which is kept from one meta-step to the next, is on the CPU that of the tasks that
    run at the same time: one per thread, if there are more than half as many tasks as threads. The
    outputs of a first convolution of up to four channels before a `BatchNorm2d`, the largest ones,
    are computed again where they are needed; so are those of that `BatchNorm2d` where a convolution
    and another `BatchNorm2d` follow it without pooling.

    On CUDA all tasks run at once. The second meta-batch of the same shapes is captured in a CUDA
    graph, which later ones replay; the graphs of up to eight kinds of meta-batches are kept, in one
    memory. Not yet run on a GPU, and there not selected by `engine="auto"`.
    """

    name = "sequence"

    def __init__(self, spec: StepSpec) -> None:
        super().__init__(spec)
        self._chain: Chain | None = None
        self._leaves = Leaves()
        self._loss = loss_name(spec.loss)
        self._workspace = ops.Workspace()

    @override
    def unsuitable(self, batch: MetaBatch) -> str | None:
        spec, self._chain = self.spec, None
        if not isinstance(batch, TaskBatch):
            return RAGGED
        if not isinstance(spec.model, FusedModule):
            return "the learner has fuse=False"
        reason = unsuitable_options(spec.model) or unsuitable_components(spec)
        if reason is not None:
            return reason
        if self._loss is None:
            return unsuitable_loss(spec)
        like = spec.model.params[0]
        for split in ("support", "query"):
            x = getattr(batch, f"{split}_x")
            reason = unsuitable_tensor(x, f"{split}_x", like.dtype, like.device)
            if reason is not None:
                return reason
        shape = tuple(batch.support_x.shape[2:])
        if len(shape) not in (1, 3) or batch.query_x.shape[2:] != shape:
            return f"examples have the shapes {shape} and {tuple(batch.query_x.shape[2:])}"
        leaves = self._leaves.of(spec.model.module, batch.support_x[0])
        if isinstance(leaves, str):
            return leaves
        chain = ChainReader(spec.model.params, shape).read(leaves)
        if isinstance(chain, str):
            return chain
        self._chain = chain
        (outputs,) = chain.shape
        return (
            unsuitable_params(spec.model.params, chain.params, kernel_devices())
            or unsuitable_targets(batch, "support", like, outputs, self._loss)
            or unsuitable_targets(batch, "query", like, outputs, self._loss)
            or _too_few_values(batch, chain)
        )

    @override
    def run(self, batch: MetaBatch, context: StepContext, buffers: StepBuffers) -> StepResult:
        adaptation, chain, loss = self.spec.adaptation, self._chain, self._loss
        assert isinstance(batch, TaskBatch)
        assert isinstance(adaptation, SGD)
        assert chain is not None
        assert loss is not None
        if context.record_support:
            require_inner_steps(adaptation.steps)
        step = ops.sequence_step(
            self.spec.model.params,
            batch.support_x,
            batch.support_y,
            batch.query_x,
            batch.query_y,
            layers=chain.layers,
            loss=loss,
            lr=float(adaptation.lr),
            steps=adaptation.steps,
            record_inner=context.record_support,
            workspace=self._workspace,
            **reverse_sweep(self.spec, context),
        )
        counts = [batch.support_x.shape[1]] * adaptation.steps + [batch.query_x.shape[1]]
        self._update_buffers(chain, step.statistics, counts, buffers)
        return adopt(step, buffers)

    def _update_buffers(
        self, chain: Chain, statistics: Tensor, counts: list[int], buffers: StepBuffers
    ) -> None:
        """The running statistics of all tasks after the evaluations of `counts` examples."""
        model = self.spec.model
        names = {id(buffer): name for name, buffer in model.named_buffers()}
        if not names:
            return
        tasks = len(statistics)
        values = {n: b.expand(tasks, *b.shape).clone() for n, b in model.named_buffers()}
        at = 0
        for norm in chain.norms:
            size = norm.modules[0].num_features
            mean, var = statistics[..., at : at + 2 * size].split(size, dim=-1)
            at += 2 * size
            for k, examples in enumerate(counts):
                adapted = k == len(counts) - 1  # on the query set
                module = norm.modules[-1 if adapted else min(k, len(norm.modules) - 1)]
                if not updates_statistics(module):
                    continue
                tracked = module.num_batches_tracked
                update_statistics(
                    module.momentum,
                    values[names[id(module.running_mean)]],
                    values[names[id(module.running_var)]],
                    None if tracked is None else values[names[id(tracked)]][:, None],
                    mean[:, k],
                    var[:, k],
                    examples * norm.pixels,
                )
        buffers.module_buffers.extend(
            Buffers({name: value[i] for name, value in values.items()}) for i in range(tasks)
        )


def _too_few_values(batch: TaskBatch[Tensor, Tensor], chain: Chain) -> str | None:
    examples = min(batch.support_x.shape[1], batch.query_x.shape[1])
    if not examples or any(examples * norm.pixels == 1 for norm in chain.norms):
        return "a split has no examples, or one value per channel of a BatchNorm2d"
    return None
