"""Defaults that depend on the data set and the method."""

from __future__ import annotations

from typing import Any

from fastmeta.learners import MethodSpec, method_spec

_IMAGES: dict[str, Any] = {
    "ways": 5,
    "shots": 1,
    "queries": 5,
    "eval_queries": 15,
    "meta_batch": 8,
    "jitter_shift": 3.0,
    "jitter_degrees": 10.0,
    "jitter_zoom": 0.15,
    "jitter_flip": 0.0,
    "inner_lr": 0.4,
    "inner_steps": 1,
    "eval_inner_steps": 3,
    "untrained_inner_steps": 20,
    "steps": 2000,
    "lr": 1e-3,
    "backbone": "conv4",
    "hidden": (64,),
}

_NO_JITTER: dict[str, Any] = {
    "jitter_shift": 0.0,
    "jitter_degrees": 0.0,
    "jitter_zoom": 0.0,
    "jitter_flip": 0.0,
}

# A first guess: one inner step and 15 queries, as others train this network with; mirror images are
# the only jitter. After 75 meta-steps of FOMAML on a third of mini-ImageNet inner_lr 0.05, 0.1 and
# 0.3 had 29, 24 and 21 % (+- 2) of validation queries right.
_PHOTOS: dict[str, Any] = {
    **_IMAGES,
    **_NO_JITTER,
    "queries": 15,
    "meta_batch": 4,
    "jitter_flip": 0.5,
    "inner_lr": 0.05,
    "steps": 10000,
    "val_every": 500,
}

# Measured: hidden layers and larger vocabularies are slower and no better; training overfits the 25
# to 50 intents after some 400 meta-steps.
_TEXTS: dict[str, Any] = {
    **_IMAGES,
    **_NO_JITTER,
    "inner_lr": 0.3,
    "steps": 400,
    "lr": 3e-3,
    "lr_schedule": "linear",
    "val_every": 50,
    "backbone": "text",
    "hidden": (128,),
}

# Inner steps, rates, width and gamma are those of Shin et al. 2024 (CML); training overfits the two
# or three classes after some 60 meta-steps.
_NODES: dict[str, Any] = {
    **_IMAGES,
    **_NO_JITTER,
    "ways": 2,
    "queries": 10,
    "meta_batch": 4,
    "inner_lr": 0.05,
    "inner_steps": 20,
    "eval_inner_steps": 20,
    "untrained_inner_steps": 100,
    "steps": 100,
    "lr": 1e-3,
    "val_every": 10,
    "backbone": "gcn",
    "hidden": (16, 16),
    "gamma": 0.2,
}

# Networks, inner learning rates and sine are those of Finn et al. 2017 (appendix A.1, their code),
# who train Omniglot 5-way 1-shot for 60,000 meta-steps of 32 tasks and sine for 70,000 of 25. The
# shorter runs here show the benefit in minutes; jitter makes up for many of the steps.
_DATASETS: dict[str, dict[str, Any]] = {
    "digits": {**_IMAGES, "hidden": (32,), "steps": 1000, "jitter_shift": 1.0},
    "mnist": {**_IMAGES, "downsample": "stride"},
    "fashion-mnist": {**_IMAGES, "downsample": "stride"},
    "omniglot": {
        **_IMAGES,
        "downsample": "stride",
        "eval_inner_steps": 40,
        "untrained_inner_steps": 0,
        "steps": 16000,
        "lr": 3e-3,
        "lr_schedule": "linear",
        "val_every": 1000,
    },
    "mini-imagenet": {**_PHOTOS, "hidden": (32,)},
    "cifar-fs": _PHOTOS,
    "fc100": _PHOTOS,
    "banking77": _TEXTS,
    "clinc150": _TEXTS,
    "citeseer": _NODES,
    "cora": _NODES,
    "sine": {
        **_NO_JITTER,
        "ways": 1,
        "shots": 10,
        "queries": 10,
        "eval_queries": 50,
        "meta_batch": 25,
        "inner_lr": 0.01,
        "inner_steps": 1,
        "eval_inner_steps": 10,
        "untrained_inner_steps": 100,
        "steps": 5000,
        "lr": 1e-3,
        "backbone": "mlp",
        "hidden": (40, 40),
        "gamma": 0.2,
    },
}

# Of inputs that nothing is known about.
_PLUGIN: dict[str, Any] = {**_IMAGES, **_NO_JITTER, "hidden": (32,)}

# With one inner step Reptile is joint training (Nichol et al. 2018, section 3). MAML++ and iMAML
# have the inner steps of their authors' code for Omniglot, MAML++ also its schedule and BatchNorm.
_METHODS: dict[str, dict[str, Any]] = {
    "cml": {"co_learner": True},
    "gradient-agreement-reptile": {"inner_steps": 5},
    "imaml": {"inner_steps": 16, "eval_inner_steps": 16},
    "maml++": {
        "inner_steps": 5,
        "eval_inner_steps": 5,
        "lr_schedule": "cosine",
        "per_step_batch_norm": True,
    },
    "reptile": {"inner_steps": 5},
}

# iMAML's inner rate and damping are those of its authors' code for Omniglot, too: the many steps of
# the pulled loop have to converge, and the Hessians of these networks are far from positive. On
# Omniglot outer rates of 1e-3 without damping and 3e-3 with it diverged within 250 meta-steps.
_IMAGE_METHODS: dict[str, dict[str, Any]] = {
    "imaml": {"inner_lr": 0.1, "lr": 1e-3, "metagrad_options": {"damping": 10.0}},
}


def defaults_for(dataset: str, method: str) -> dict[str, Any]:
    """The options that depend on data set and method; for a plug-in's data set a guess.

    An unknown name is for :class:`fastmeta.train.TrainConfig` to complain about.
    """
    inputs = _DATASETS.get(dataset, _PLUGIN)
    return {
        **inputs,
        **_words(method)._asdict(),
        **_METHODS.get(method, {}),
        **(_IMAGE_METHODS.get(method, {}) if inputs["backbone"] == "conv4" else {}),
    }


def _words(method: str) -> MethodSpec:
    try:
        return method_spec(method)
    except ValueError:
        return MethodSpec()
