"""Arguments of every registered op, made from a (3, 7) matrix."""

from __future__ import annotations

import torch


def planes(height: int = 4, width: int = 5) -> torch.Tensor:
    return torch.randn(3, 2, height, width)


def heads(queries: int = 0, keys: int = 0) -> list[torch.Tensor]:
    """Tensors like queries, followed by some like keys and values."""
    return [*torch.randn(queries, 2, 4, 5, 3), *torch.randn(keys, 2, 2, 6, 3)]


def rows(count: int) -> list[torch.Tensor]:
    return list(torch.randn(count, 2, 3, 7))


SAMPLES = {
    "gram": lambda g: (g, (0, 2, 7)),
    "row_similarity": lambda g: (g, g + 1, (0, 2, 7)),
    "mean_similarity": lambda g: (g,),
    "combine": lambda g: ([g, g + 1], torch.randn(3, 2, 2), (0, 2, 7)),
    "combine_": lambda g: (
        [torch.zeros(2), torch.zeros(5)],
        [g],
        torch.randn(3, 1, 1),
        (0, 7),
    ),
    "pack": lambda g: ([g[0], g[1], g[2]], 3),
    "pack_": lambda g: (torch.zeros(3, 7), [g[0], g[1], g[2]]),
    "unpack_": lambda g: ([torch.zeros(7) for _ in range(3)], g),
    "inner_step": lambda g: ([g, g[0]], [g + 1, g[1]], [torch.tensor(0.1)] * 2, [0, 1]),
    "inner_step_": lambda g: (
        [g.clone(), g[0].clone()],
        [g + 1, g[1]],
        [torch.tensor(0.1)] * 2,
        [0, 1],
    ),
    "adamw_step": lambda g: (
        *([g, g[0]], [g + 1, g[1]], [g - 1, g[2]], [g.abs(), g[0].abs()]),
        *(0.1, 0.9, 0.99, 1e-3, 0.2, 3),
    ),
    "adamw_adjoint": lambda g: (
        *([g, g[0]], [g + 1, g[1]], [g.abs(), g[0].abs()]),
        *([g - 1, g[2]], [g + 2, g[1]], [g + 3, g[0]], 0.1, 0.9, 0.99, 1e-3, 0.2, 3),
    ),
    "hvp_perturb": lambda g: (g, g + 1, torch.rand(3)),
    "hvp_difference": lambda g: (g, g + 1, g + 2, torch.rand(3), torch.rand(7)),
    "mlp_step": lambda g: (
        [torch.randn(4, 7), torch.randn(4), torch.randn(2, 4)],
        *(torch.randn(3, 5, 7), torch.randn(3, 5, 2), torch.randn(3, 6, 7), torch.randn(3, 6, 2)),
        *([1], 0, 0.1, 2, [0, 1, 1, 1], 0.7, 0.4, 0.3, True),
    ),
    "sequence_step": lambda g: (
        [torch.randn(4, 1, 3, 3), *torch.randn(3, 4), torch.randn(2, 16), torch.randn(2)],
        *([0, 1, 0, 1, 1, 1, 1, 2, 3, 1, 5, 0, 4, 5, 1], [0.0, 1e-5, 0.0]),
        *(torch.randn(3, 5, 1, 4, 4), torch.randint(2, (3, 5))),
        *(torch.randn(3, 6, 1, 4, 4), torch.randint(2, (3, 6))),
        *(1, 0.1, 2, [0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1], 0.7, 0.4, 0.3),
        *(2, torch.zeros(30_000), torch.zeros(3, 82), torch.zeros(3, 82)),
        *(torch.zeros(3), torch.zeros(3), torch.zeros(3, 6, 2), torch.zeros(3, 3, 8)),
    ),
    "head_similarity": lambda g: (
        *(torch.randn(3, 5, 7), torch.randn(3, 5, 2), torch.randint(2, (3, 5))),
        *(torch.randn(3, 2, 7), torch.randn(3, 2, 7), g[:, :2], 1, 0.7, 0.4, 0.2),
    ),
    "gsl_coefficients": lambda g: (
        torch.rand(3, 2, 3),
        torch.rand(3),
        torch.rand(1),
        *(1.0, 0.1, 1, 1.0, 1e-12, 1e-5),
    ),
    "conv_forward": lambda g: (planes(), torch.randn(4, 2, 3, 3), g[0, :4], 1),
    "conv_input": lambda g: (planes(2, 3), torch.randn(3, 2, 4, 3, 3), 4, 5, 2),
    "conv_weight": lambda g: (planes(), planes(2, 3), 2, 3),
    "attention_forward": lambda g: (*heads(1, 2), None, True, 0, 0.5),
    "attention_backward": lambda g: (
        *heads(2, 2),
        torch.rand(5, 6)[None, None] > 0.5,
        *heads(1),
        torch.rand(2, 4, 2, 5),
        *(False, 3, 0.5),
    ),
    "attention_tangent": lambda g: (
        *(*heads(1, 2), *heads(1, 2), torch.rand(1, 4, 1, 6), *heads(1), torch.rand(2, 4, 2, 5)),
        *(False, 0, 0.5),
    ),
    "attention_second": lambda g: (
        *(*heads(2), *heads(1, 2), *heads(1, 2), None, *heads(1), torch.rand(2, 4, 2, 5)),
        *(True, 0, 0.5),
    ),
    "norm_forward": lambda g: (planes(), torch.rand(2), g[0, :2], 1e-5, False),
    "norm_backward": lambda g: (planes(), planes(), *torch.rand(4, 3, 2), 1e-5, False),
    "norm_second": lambda g: (
        *(planes(2, 2), planes(), *torch.rand(2, 2), planes(), *torch.rand(4, 2), 1e-5, True),
    ),
    "norm_tangent": lambda g: (
        planes(),
        *torch.rand(2, 2),
        planes(),
        *torch.rand(4, 2),
        1e-5,
        True,
    ),
    "row_norm_forward": lambda g: (*rows(1), *torch.randn(2, 2, 7), True, 1e-5),
    "row_norm_backward": lambda g: (*rows(2), torch.randn(2, 7), torch.rand(2, 2, 3), False),
    "row_norm_tangent": lambda g: (
        *(*rows(1), *torch.randn(2, 2, 7), *rows(1), torch.randn(2, 7), torch.rand(2, 2, 3)),
        False,
    ),
    "row_norm_second": lambda g: (
        *(*rows(1), None, *rows(1), *torch.randn(2, 2, 7)),
        *(*rows(1), torch.randn(2, 7), torch.rand(2, 2, 3), True),
    ),
    "activation_forward": lambda g: (g, 3),
    "activation_backward": lambda g: (g, g + 1, 5),
    "activation_second": lambda g: (g, g + 1, g + 2, 6),
    "activation_backward_tangent": lambda g: (g, g + 1, g + 2, g + 3, 3),
    "cross_entropy_forward": lambda g: (g, torch.tensor([0, 6, -1]), -1, 0.1),
    "cross_entropy_backward": lambda g: (
        *(torch.rand(3), g, torch.tensor([0, 6, -1]), torch.rand(3), -1, 0.1),
    ),
    "cross_entropy_tangent": lambda g: (
        *(g, g + 1, torch.tensor([0, 6, -1]), torch.rand(3), -1, 0.1),
    ),
    "cross_entropy_second": lambda g: (
        *(torch.rand(3), None, g, g + 1, torch.tensor([0, 6, -1]), torch.rand(3), -1, 0.1),
    ),
    "task_weights": lambda g: (torch.rand(3, 2), 0, 1.0, 0.0, 1.0),
}
