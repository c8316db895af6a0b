"""What a learner runs for the parameters that are trainable now."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from fastmeta.adaptation import Adaptation
from fastmeta.engines import EngineName, EngineSelector, StepBuffers, StepSpec
from fastmeta.functional import FunctionalModule
from fastmeta.learners._checks import check_closed_form


@dataclass(frozen=True)
class TrainableStep:
    """Components and memory of meta-steps, for one set of trainable parameters.

    Attributes:
        spec: the module and the components.
        learned: the trainable parameters, then the learned rates.
        engines: what runs the tasks.
        buffers: the tasks' gradients.
        prepared: what the meta-gradient knows of the network.
    """

    spec: StepSpec
    learned: list[nn.Parameter]
    engines: EngineSelector
    buffers: StepBuffers
    prepared: Any

    @classmethod
    def of(cls, built: StepSpec, engine: EngineName) -> TrainableStep:
        """For the parameters that are trainable now.

        Args:
            built: the components of the learner, for the parameters that were trainable when it was
                built.
            engine: what runs the tasks.

        Raises:
            ValueError: if a parameter is trainable that was not, or a component does not suit
                the trainable ones or another component.
        """
        check_closed_form(built)
        spec = _restricted(built, built.model.current())
        model = spec.model
        learned = [*model.params, *learned_rates(spec.adaptation)]
        return cls(
            spec,
            learned,
            EngineSelector(engine, spec),
            StepBuffers(learned),
            spec.metagrad.prepare(model.params, model.names),
        )

    def current(self, built: StepSpec) -> TrainableStep:
        """This, or another one if `requires_grad` of a parameter has changed; see `of`."""
        model = self.spec.model
        return self if model.current() is model else TrainableStep.of(built, self.engines.name)


def _restricted(built: StepSpec, model: FunctionalModule) -> StepSpec:
    if model is built.model:
        return built
    positions = {param: i for i, param in enumerate(built.model.params)}
    for name, param in zip(model.names, model.params, strict=True):
        if param not in positions:
            raise ValueError(
                f"the parameter {name!r} requires a gradient, but did not when the learner was "
                "built, so that its optimizer does not have it. Freeze it again with "
                "requires_grad_(False), or unfreeze it first and build the learner then."
            )
    kept = [positions[param] for param in model.params]
    adaptation = built.adaptation.restricted(kept, model.params, model.names)
    return replace(built, model=model, adaptation=adaptation)


def learned_rates(adaptation: Adaptation) -> list[nn.Parameter]:
    """What the adaptation learns, for an outer optimizer.

    Raises:
        TypeError: if it is computed from other tensors.
    """
    for rate in adaptation.rates:
        if not isinstance(rate, nn.Parameter):
            raise TypeError(
                f"a learned setting of {type(adaptation).__name__} is a plain tensor; expected an "
                "nn.Parameter, which the outer optimizer can train. Wrap it: "
                "nn.Parameter(torch.tensor(0.1)). fastmeta.metagradient accepts others."
            )
    return [rate for rate in adaptation.rates if isinstance(rate, nn.Parameter)]
