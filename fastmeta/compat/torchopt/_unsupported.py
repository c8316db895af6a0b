"""Aliases of modules of TorchOpt 0.7.3, and what to use instead of missing names."""

from __future__ import annotations

ALIASES = {
    "base": "transform",
    "combine": "transform",
    "diff.implicit.nn": "nn",
    "optim.func": "optim",
    "optim.meta": "optim",
    "update": "optim",
}

INSTEAD = {
    "use sgd, adam, adamw or rmsprop.": """
        adadelta adagrad adamax radam
        alias.adadelta alias.adagrad alias.adamax alias.radam
    """,
    "use SGD, Adam, AdamW or RMSprop, or torch.optim.": """
        AdaDelta AdaGrad AdaMax Adadelta Adagrad Adamax RAdam
        optim.AdaDelta optim.AdaGrad optim.AdaMax optim.Adadelta optim.Adagrad optim.Adamax
        optim.RAdam
    """,
    "use MetaSGD, MetaAdam, MetaAdamW or MetaRMSprop.": """
        MetaAdaDelta MetaAdaGrad MetaAdaMax MetaAdadelta MetaAdagrad MetaAdamax MetaRAdam
        optim.MetaAdaDelta optim.MetaAdaGrad optim.MetaAdaMax optim.MetaAdadelta
        optim.MetaAdagrad optim.MetaAdamax optim.MetaRAdam
    """,
    "use linear_solve.solve_cg or linear_solve.solve_inv(ns=True).": "linalg",
    "use torch.utils._pytree, or the package optree.": "pytree",
    "use the package torchviz.": "visual",
    "use torch.distributed, or fastmeta.distributed.Sharding for meta-learners.": "distributed",
    "estimate the gradient from differences of the function, or use "
    "fastmeta.metagrad.CentralDifference, which differences gradients.": """
        diff.zero_order nn.ZeroOrderGradientModule
    """,
    "use torch.func.functional_call.": "nn.reparametrize nn.reparameterize nn.swap_state",
    "leave it out.": "accelerated_op accelerated_op_available",
    "annotate with torch.Tensor.": "typing",
}
