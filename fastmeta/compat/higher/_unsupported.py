"""What to use instead of missing names and modules of higher 0.2.1."""

from __future__ import annotations

INSTEAD = {
    "use higher.monkeypatch.": "patch",
    "use torch; the copy of a module is an nn.Module.": "utils",
    "use SGD, Adam or AdamW in the inner loop.": """
        optim.DifferentiableASGD optim.DifferentiableAdadelta optim.DifferentiableAdagrad
        optim.DifferentiableAdamax optim.DifferentiableRMSprop optim.DifferentiableRprop
        register_optim optim.register_optim
    """,
    "create the optimizer and use get_diff_optim.": "create_diff_optim optim.create_diff_optim",
    "pass override= with tensors that require gradients.": "optim.get_trainable_opt_params",
    "write the values into the param_groups of the optimizer.": (
        "optim.apply_trainable_opt_params"
    ),
}
