"""An adapted network as an ordinary module."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from fastmeta.engines import StepSpec
from fastmeta.functional import FunctionalModule, Network, Predictor
from fastmeta.learners._inference import adapt_to_task
from fastmeta.tasks import Examples


def adapted_module(spec: StepSpec, x: Examples, y: Examples, steps: int | None) -> nn.Module:
    """The network adapted to a task, see `fastmeta.MetaLearner.adapted_module`."""
    model = spec.model
    buffers = model.clone_buffers()
    fast = adapt_to_task(spec, x, y, buffers, steps)
    module = copy.deepcopy(model.module)
    own = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    new = dict(buffers)
    if not isinstance(fast, Predictor):
        new.update(zip(model.names[: model.own], fast[: model.own], strict=True))
    with torch.no_grad():
        for name in own.keys() & new.keys():
            own[name].copy_(new[name])
    return PredictorModule(module, fast) if isinstance(fast, Predictor) else module


class PredictorModule(nn.Module):
    """A predictor as a module.

    Args:
        network: the network that it was fitted for.
        predictor: its tensors are copied to buffers.
    """

    def __init__(self, network: nn.Module, predictor: Predictor) -> None:
        super().__init__()
        self.network = network
        self.training = network.training
        self._predictor = predictor.like(())
        self._model = FunctionalModule(network)
        self._names = [f"tensor_{i}" for i in range(len(predictor))]
        for name, tensor in zip(self._names, predictor, strict=True):
            self.register_buffer(name, tensor.detach().clone())

    def forward(self, x: Examples) -> Tensor:
        """The adapted outputs, `(n, *output)`."""
        predictor = self._predictor.like([getattr(self, name) for name in self._names])
        return predictor.outputs(Network(self._model, self._model.clone_buffers(), x))
