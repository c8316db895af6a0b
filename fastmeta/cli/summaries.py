"""One line about each method and dataset; those of components are in their docstrings."""

METHODS = {
    "anil": "ANIL: MAML that adapts the head only (Raghu et al. 2020)",
    "boil": "BOIL: MAML that adapts all layers but the head (Oh et al. 2021)",
    "cml": "CML: MAML with a co-learner, a second head for query sets (Shin et al. 2024)",
    "fomaml": "first-order MAML: the query gradient at the fast weights (Finn et al. 2017)",
    "gradient-agreement": "MAML, tasks weighted by gradient agreement (Eshratifar et al. 2018)",
    "gradient-agreement-reptile": "Reptile, tasks weighted by gradient agreement",
    "gsl": "FOMAML plus the gradient of a similarity loss (Tak & Hong 2024, reconstructed)",
    "imaml": "iMAML: proximal inner loop, implicit meta-gradient (Rajeswaran et al. 2019)",
    "lambda": "MAML that adapts the layers of a Lambda pattern (Khabarlak 2022)",
    "maml": "MAML: exact meta-gradient (Finn et al. 2017)",
    "maml++": "MAML++: learned inner rates, loss after every inner step (Antoniou et al. 2019)",
    "meta-sgd": "Meta-SGD: a learned inner rate per parameter element (Li et al. 2017)",
    "reptile": "Reptile: the displacement of the inner loop (Nichol et al. 2018)",
}

DATASETS = {
    "banking77": "Banking77: 77 intents of one domain, texts (Casanueva et al. 2020)",
    "cifar-fs": "CIFAR-FS: 64/16/20 classes of CIFAR-100 (Bertinetto et al. 2019)",
    "citeseer": "CiteSeer: a citation graph with 6 classes of nodes",
    "clinc150": "CLINC150: 150 intents of 10 domains, texts (Larson et al. 2019)",
    "cora": "Cora: a citation graph with 7 classes of nodes",
    "csv": "your own texts: a CSV file with the columns text and label (--data-root FILE)",
    "digits": "8x8 digits of scikit-learn; needs no files",
    "fashion-mnist": "Fashion-MNIST: classes of clothes held out for test (Xiao et al. 2017)",
    "fc100": "FC100: 60/20/20 classes of CIFAR-100 (Oreshkin et al. 2018)",
    "features": "your own features: arrays features and labels in .npz or .safetensors",
    "folder": "your own images: one folder per class (--data-root DIR)",
    "glyphs": "characters of many scripts in the fonts of matplotlib; needs no files",
    "mini-imagenet": "mini-ImageNet: 64/16/20 classes of photos (Ravi & Larochelle 2017)",
    "mnist": "MNIST: digits held out for test (LeCun et al. 1998)",
    "omniglot": "Omniglot: 1,623 handwritten characters (Lake et al. 2015)",
    "sine": "regression of sine waves, generated; needs no files (Finn et al. 2017)",
}
