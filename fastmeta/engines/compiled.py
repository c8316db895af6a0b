"""The engine that compiles the whole meta-gradient of a task by `torch.compile`."""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from typing_extensions import override

from fastmeta.adaptation import ClosedForm
from fastmeta.engines._fingerprint import Fingerprint, Fingerprints, Layout, difference
from fastmeta.engines._head import HeadFinder
from fastmeta.engines._inductor import InductorRegion
from fastmeta.engines._regions import Program, compile_regions
from fastmeta.engines._task_trace import TaskTrace, trace_task
from fastmeta.engines.base import RAGGED, Engine, StepBuffers, StepResult, StepSpec
from fastmeta.engines.loop import LoopEngine
from fastmeta.functional import Buffers, FunctionalModule
from fastmeta.functional._inspection import globally_hooked, is_compiled
from fastmeta.metagrad import StepContext, TaskGradient
from fastmeta.tasks import MetaBatch, Task, TaskBatch, named_tensors

# Up to so many parameters, calls of operations take much of the time, and all tasks run at once:
# 1.4 times as fast with 0.6 million (benchmarks/NOTES.md); larger networks are not measured.
MAX_STACKED = 2**20
# So many compilations warn that shapes or settings keep changing.
_MANY = 8
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True)
class Compilation:
    """What was compiled, and why.

    Attributes:
        reason: what differs from what was compiled before, `name: old -> new`; empty at first.
        operations: number of operations of the meta-gradient of one task.
        distinct: number of operations in different regions, which are compiled.
        regions: number of calls of compiled regions.
        seconds: that it took, tracing included.
    """

    reason: str
    operations: int
    distinct: int
    regions: int
    seconds: float


@dataclass(frozen=True)
class _Compiled:
    key: Fingerprint
    trace: TaskTrace
    program: Program

    def run(
        self, params: list[Tensor], buffers: Buffers, examples: Any
    ) -> tuple[TaskGradient, Buffers]:
        """Runs it, with the result of one task or those of all tasks, stacked."""
        inputs = self.trace.inputs(params, buffers, examples)
        kind = params[0].device.type
        autocast = torch.is_autocast_enabled(kind)
        with torch.no_grad(), torch.autocast(kind, enabled=False) if autocast else nullcontext():
            return self.trace.results(self.program.run(*inputs))


class CompiledEngine(Engine):
    """Runs a task as one graph, compiled by Inductor, the compiler of `torch.compile`.

    The loop engine's computation, with all its derivatives, is traced once on fake tensors, below
    autograd: no derivative is left for `torch.compile`, which refuses second ones. Any network,
    adaptation and meta-gradient whose operations do not depend on values can be traced. Regions of
    operations that repeat, as the blocks of a network and inner steps do, are compiled once. Tasks
    run one after another; those of small networks without convolutions at once, where `torch.vmap`
    supports the operations.

    Compilation takes seconds to minutes, which a line on stderr reports, and less when torch
    finds the result in its cache on disk. Other shapes, training modes or settings are compiled
    anew: see `compilations`. Numbers, texts and flags in the attributes of module, loss and
    components, in lists and mappings there and in variables that functions have captured are
    compared before each meta-step; those in global variables, or deeper than six levels, are
    constants. The operations are torch's own: `fuse` has no effect.

    On CUDA the kernels are captured in CUDA graphs (`mode="reduce-overhead"`); not measured.

    `run` raises `NotImplementedError` if something cannot be traced or compiled, with the reason.

    Attributes:
        compilations: what was compiled, in order.
    """

    name = "compiled"

    def __init__(self, spec: StepSpec) -> None:
        model = spec.model
        plain = FunctionalModule(
            model.module, model.autocast, False, model.co_learner, model.penalty
        )
        super().__init__(replace(spec, model=plain))
        self.compilations: list[Compilation] = []
        self._checkpoint = model.checkpoint
        self._compiled: list[_Compiled] = []
        self._fingerprints = Fingerprints()
        self._warned = False
        self._stacks = sum(p.numel() for p in model.params) <= MAX_STACKED

    @override
    def unsuitable(self, batch: MetaBatch) -> str | None:
        if not isinstance(batch, TaskBatch):
            return RAGGED
        if self._checkpoint:
            return "the learner has checkpoint; the compiler decides by itself what it keeps"
        model, metagrad = self.spec.model, self.spec.metagrad
        if isinstance(self.spec.adaptation, ClosedForm):
            return f"{type(self.spec.adaptation).__name__} adapts in closed form, not traced"
        if metagrad.state_names:
            return f"{type(metagrad).__name__} keeps a state between meta-steps"
        if globally_hooked():
            return "a global module hook is registered, which would run in compilation only"
        for name, part in model.module.named_modules():
            if any(getattr(part, kind) for kind in _HOOKS):
                where = name or type(part).__name__
                return f"a hook is registered on {where}, which would run in compilation only"
            if is_compiled(part):
                return "a part of the network is compiled already; expected an ordinary module"
        for name, buffer in model.named_buffers():
            if buffer.layout is not torch.strided:
                return f"the buffer {name} is {buffer.layout}; expected a dense tensor"
        return None

    @override
    def run(self, batch: MetaBatch, context: StepContext, buffers: StepBuffers) -> StepResult:
        assert isinstance(batch, TaskBatch)
        device = self.spec.model.params[0].device
        compiled = self._find(batch, context)
        if device.type == "cuda":
            torch.compiler.cudagraph_mark_step_begin()
        parts = [_examples(batch)] if self._stacks else [tuple(task) for task in batch]
        results: list[TaskGradient] = []
        for examples in parts:
            result, own = compiled.run(*self._inputs(examples))
            if self._stacks:
                return _unstack(result, own, len(batch), buffers)
            # The memory of outputs may be used again by the next task.
            buffers.append(result, {name: buffer.clone() for name, buffer in own.items()})
            results.append(result)
        return StepResult(
            torch.stack([r.support_loss for r in results]),
            torch.stack([r.query_loss for r in results]),
            torch.stack([r.query_output for r in results]),
        )

    def _inputs(self, examples: Any) -> tuple[list[Tensor], dict[str, Tensor], Any]:
        model = self.spec.model
        return [p.detach() for p in model.params], dict(model.named_buffers()), examples

    def _find(self, batch: TaskBatch[Any, Any], context: StepContext) -> _Compiled:
        """The compiled task for the present shapes and settings."""
        key = self._key(batch, context)
        for compiled in self._compiled:
            if compiled.key == key:
                return compiled
        earlier = [difference(compiled.key, key) for compiled in self._compiled]
        changes = min(earlier, key=len, default=[])
        began = time.perf_counter()
        with _progress("; ".join(changes)) as report:
            trace = self._trace(batch, context)
            if changed := difference(key, self._key(batch, context)):
                raise NotImplementedError(
                    "engine 'compiled' cannot run a module, loss or component that changes its "
                    f"attributes in each call: {changed[0]}. Use engine='loop'."
                )
            if self._stacks and not trace.stacked:
                self._stacks = False
                key = self._key(batch, context)
            program = compile_regions(trace.graph, self._compile_region)
            compiled = _Compiled(key, trace, program)
            examples = _examples(batch) if self._stacks else tuple(batch[0])
            compiled.run(*self._inputs(examples))
            report(f"{program.operations} operations, {program.distinct} distinct")
        seconds = time.perf_counter() - began
        self.compilations.append(
            Compilation(
                "; ".join(changes), program.operations, program.distinct, program.regions, seconds
            )
        )
        self._compiled.append(compiled)
        self._warn_if_many()
        return compiled

    def _key(self, batch: TaskBatch[Any, Any], context: StepContext) -> Fingerprint:
        spec, device = self.spec, self.spec.model.params[0].device.type
        task = batch if self._stacks else batch[0]
        mkldnn: Any = torch.backends.mkldnn
        examples = {
            name: Layout.of(tensor)
            for field in Task._fields
            for name, tensor in named_tensors(getattr(task, field), field)
        }
        return {
            **examples,
            "support gradients": context.record_support,
            "autocast": torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
            # get_float32_matmul_precision raises if these are set one by one.
            "matmul precision": (
                torch.backends.cuda.matmul.fp32_precision,
                mkldnn.matmul.fp32_precision,
            ),
            "deterministic": torch.are_deterministic_algorithms_enabled(),
            "threads": torch.get_num_threads(),
            **self._fingerprints.of(
                module=spec.model.module,
                co_learner=spec.model.co_learner,
                penalty=spec.model.penalty,
                loss=spec.loss,
                adaptation=spec.adaptation,
                metagrad=spec.metagrad,
                layers=context.prepared,
            ),
        }

    def _trace(self, batch: TaskBatch[Any, Any], context: StepContext) -> TaskTrace:
        spec = self.spec
        loop, heads = LoopEngine(spec), HeadFinder(spec)

        def run(params: Any, buffers: Any, examples: Any, context: StepContext) -> TaskGradient:
            losses = loop.losses(Task(*examples), buffers, heads)
            return spec.metagrad.task(losses, params, spec.adaptation, context)

        with spec.model.planned():
            inputs = self._inputs(tuple(batch[0]))
            return trace_task(run, *inputs, context, _examples(batch) if self._stacks else None)

    def _compile_region(self, region: GraphModule, alone: bool) -> Callable[..., Any]:
        on_cuda = self.spec.model.params[0].is_cuda
        # As mode="reduce-overhead" of torch.compile.
        options = {"triton.cudagraphs": on_cuda}
        if alone and self._stacks and not on_cuda:
            # Hundreds of calls that take microseconds each: C++ calls them, not Python.
            options["cpp_wrapper"] = True
        return InductorRegion(region, options)

    def _warn_if_many(self) -> None:
        if len(self.compilations) >= _MANY and not self._warned:
            self._warned = True
            last = self.compilations[-1].reason
            warnings.warn(
                f"engine 'compiled' has compiled {len(self.compilations)} times, last because of "
                f"{last}. Give all meta-batches the same shape, or use engine='loop'.",
                RuntimeWarning,
                stacklevel=7,
            )


def _examples(batch: TaskBatch[Any, Any]) -> tuple[Any, ...]:
    return tuple(getattr(batch, field) for field in Task._fields)


def _unstack(result: TaskGradient, own: Buffers, count: int, buffers: StepBuffers) -> StepResult:
    """Fills the buffers with the stacked results of all tasks."""
    buffers.outer.extend(result.outer, count)
    if result.support is not None:
        buffers.support.extend(result.support, count)
    buffers.module_buffers = [{n: b[i].clone() for n, b in own.items()} for i in range(count)]
    buffers.extras = {name: list(extra) for name, extra in result.extras.items()}
    losses = result.support_loss, result.query_loss, result.query_output
    return StepResult(*(part.clone() for part in losses))


@contextmanager
def _progress(reason: str) -> Iterator[Callable[[str], None]]:
    """One line on stderr, which begins before and ends after the context."""
    began, what = time.perf_counter(), ["failed"]
    again = f" again ({reason:.200})" if reason else ""
    print(f"fastmeta: compiling the meta-step{again} ... ", end="", file=sys.stderr, flush=True)
    try:
        yield lambda text: what.__setitem__(0, text)
    finally:
        print(f"{what[0]}, {time.perf_counter() - began:.1f} s", file=sys.stderr, flush=True)
