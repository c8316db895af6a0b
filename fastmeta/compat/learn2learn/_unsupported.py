"""Aliases of modules of learn2learn 0.2.0, and what to use instead of missing names."""

from __future__ import annotations

ALIASES = {
    "nn.misc": "nn",
    "optim.transforms.metacurvature_transform": "optim.transforms",
    "optim.transforms.module_transform": "optim.transforms",
    "optim.update_rules": "optim.parameter_update",
    "optim.update_rules.differentiable_sgd": "optim.parameter_update",
    "vision.datasets.cifarfs": "vision.datasets",
    "vision.datasets.fc100": "vision.datasets",
    "vision.datasets.full_omniglot": "vision.datasets",
    "vision.datasets.mini_imagenet": "vision.datasets",
    "vision.models.cnn4": "vision.models",
}

INSTEAD = {
    "use Gymnasium environments and adapt the policy with MAML.": "gym",
    "use fastmeta.data.load_clinc150 or load_banking77.": "text",
    "create the distribution from the parameters of a cloned module.": """
        clone_distribution utils.clone_distribution
        detach_distribution utils.detach_distribution
    """,
    "use dataclasses.asdict.": "flatten_config utils.flatten_config",
    "write the loop with MAML, or train a fastmeta.MetaLearner with "
    "fastmeta.lightning.LightningLearner.": """
        algorithms.lightning algorithms.LightningEpisodicModule
        algorithms.LightningANIL algorithms.LightningMAML
        utils.lightning
    """,
    "implement the classifier in your own loop; fastmeta covers gradient-based methods only.": """
        algorithms.LightningMetaOptNet algorithms.LightningPrototypicalNetworks
        nn.metaoptnet nn.SVClassifier
        nn.protonet nn.PrototypicalClassifier
    """,
    "iterate over the Taskset; each item is a task.": "data.samplers",
    "use two nn.Linear layers, one for each side of the gradient as a matrix.": """
        nn.kroneckers nn.KroneckerLinear nn.KroneckerLSTM nn.KroneckerRNN
    """,
    "use torch.nn.utils.parametrize.": "nn.metalayers nn.MetaModule nn.ParameterTransform",
    "compute updates with ParameterUpdate and apply them with update_module.": """
        optim.learnable_optimizer optim.LearnableOptimizer
    """,
    "pass a function from a parameter to your module, or None, as the transform.": """
        optim.KroneckerTransform optim.TransformDictionary
        optim.transforms.kronecker_transform optim.transforms.KroneckerTransform
        optim.transforms.transform_dictionary optim.transforms.TransformDictionary
    """,
    "use vision.benchmarks.get_tasksets.": """
        vision.benchmarks.cifarfs_benchmark vision.benchmarks.cifarfs_tasksets
        vision.benchmarks.fc100_benchmark vision.benchmarks.fc100_tasksets
        vision.benchmarks.mini_imagenet_benchmark vision.benchmarks.mini_imagenet_tasksets
        vision.benchmarks.omniglot_benchmark vision.benchmarks.omniglot_tasksets
    """,
    "read the images into a torch Dataset of (x, y) and pass it to data.MetaDataset.": """
        vision.benchmarks.tiered_imagenet_benchmark vision.benchmarks.tiered_imagenet_tasksets
        vision.datasets.cu_birds200 vision.datasets.CUBirds200
        vision.datasets.describable_textures vision.datasets.DescribableTextures
        vision.datasets.fgvc_aircraft vision.datasets.FGVCAircraft
        vision.datasets.fgvc_fungi vision.datasets.FGVCFungi
        vision.datasets.quickdraw vision.datasets.Quickdraw
        vision.datasets.tiered_imagenet vision.datasets.TieredImagenet
        vision.datasets.vgg_flowers vision.datasets.VGGFlower102
    """,
    "use fastmeta.models.ResNet12, whose parameters have other names.": """
        vision.models.resnet12 vision.models.ResNet12 vision.models.ResNet12Backbone
    """,
    "pass your own nn.Module to MAML.": """
        vision.models.wrn28 vision.models.WRN28 vision.models.WRN28Backbone
    """,
    "load the weights into your module with load_state_dict.": """
        vision.models.get_pretrained_backbone
    """,
}
