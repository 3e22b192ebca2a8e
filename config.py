"""Everything a user may change for a run. Edit the defaults here, or give them on the command line."""

from dataclasses import dataclass
from typing import Literal

from hyperparameters import HYPERPARAMETERS

# A study is the trees of cells it needs: <results-dir>/<tree>/<dataset>/<task>/<method>/seed<k>.json.
STUDIES = {
    "plain": ("cells", "audit"),
    "floor": ("cells", "audit"),  # with the audit's floor
    "ablation": ("cells", "ablation", "audit"),
    "relearn": ("cells", "audit", "relearn"),
    "efficiency": ("efficiency",),
    "paper": ("cells", "ablation", "audit", "relearn", "efficiency"),
}
TREES = STUDIES["paper"]
BESIDE_ABLATION = ("Retrain", "Original", "CaMU")  # what the rows of the ablation are compared with


@dataclass(frozen=True)
class Config:
    """The settings of a run."""

    dataset: tuple[str, ...] = ("OptDigits",)
    """OptDigits, Digit, Fashion, CIFAR10, CIFAR100; your own image folder or .npz file under --data-root; or
    the name of another of torchvision's data sets"""
    tasks: tuple[str, ...] = ("random10", "class0")
    """what to forget: random<percent>, class<k> (several: class0,3), or ids:<file> with an index or path per line;
    requests one after another: class0>class1"""
    methods: tuple[Literal[("all", *HYPERPARAMETERS)], ...] = ("all",)
    """which methods; an ablation has its own"""
    seeds: tuple[int, ...] = (0,)
    """each seed has its own forget set, randomness in the methods, and Retrain"""
    study: Literal[tuple(STUDIES)] = "plain"
    """what to measure; paper is all of the others"""
    label_noise: float = 0
    """percent of the training labels to replace by wrong ones, as memorised mistakes for the audit to find"""
    model: str = ""
    """an architecture of your own, with fresh weights: torchvision:<name>, or <file>.py:<function of the number of
    classes>; by default the CNN or ResNet-18"""
    layer: str = ""
    """with --model: the layer whose output is the representation, what the classifier's head reads"""
    pool: Literal["flatten", "mean", "first"] = "flatten"
    """with --model: how the layer's output becomes one vector a sample. mean is over pixels or tokens, first the class
    token"""
    weights: str = ""
    """with --model torchvision:<name>: torchvision's weights of this name, such as DEFAULT, under a fresh head. Every
    training starts from them, Retrain's too"""
    checkpoint: str = ""
    """trained weights in place of pretraining: a state dict saved by torch.save, or a model file of this program"""
    data_root: str = "data"
    """where the data sets are looked for, and downloaded to"""
    results_dir: str = "runs"
    """where the finished cells go: <results-dir>/cells/<dataset>/<task>/<method>/seed<k>.json"""
    checkpoints_dir: str = "checkpoints"
    """where the pre-unlearning models, the outputs for the audit and, with --save-models, the unlearned models are"""
    device: str = "auto"
    """cpu, cuda, cuda:<number of the GPU> or mps; auto uses CUDA where it is available"""
    precision: Literal["float32", "bf16"] = "float32"
    """of training; evaluation is in float32. On CUDA, float32 has TF32 convolutions"""
    kernels: Literal["native", "portable"] = "native"
    """of the CPU: native ones are the fastest here, portable ones give the same bits on any x86 processor with AVX2"""
    threads: int = 1
    """CPU threads per cell. One and two give results that differ in the last bits; --jobs uses several cores better"""
    jobs: int = 1
    """cells computed at a time, each with its own threads"""
    cluster: str = ""
    """run the cells as Ray tasks: the address of a Ray cluster, or local for one started here"""
    gpus_per_cell: float = 0
    """with --cluster: share of a GPU that a cell takes"""
    batch_size: int = 32
    """samples (for CaMU: tuples) per training step; 32 in the paper"""
    image_size: int | None = None
    """side of the images ResNet-18 sees, in pixels; by default 224 for CIFAR, 64 for own data"""
    pretrain_epochs: int | None = None
    """epochs of pretraining; by default the data set's row of TRAINING"""
    retrain_epochs: int | None = None
    """epochs of Retrain and SISA; by default the data set's row of TRAINING"""
    lr: float | None = None
    """learning rate of pretraining, Retrain, SISA, relearning and rows without one; by default that of TRAINING"""
    time_limit: float | None = None
    """seconds for the run: a cell starts only if its last recorded time still fits. Retrain and CaMU come first. What
    all cells need, such as the pre-unlearning model and SISA's shards, is always made"""
    override: tuple[str, ...] = ()
    """hyperparameters to use instead of the table's, each METHOD.NAME=VALUE, such as CaMU.lr_ce=1e-4"""
    save_models: bool = False
    """keep the unlearned models of the plain cells under <checkpoints-dir>/unlearned/"""
    overwrite: bool = False
    """redo finished cells that were made with another configuration"""
    dry_run: bool = False
    """only list which cells are done, missing, or made with another configuration"""
    quiet: bool = False
    """no progress bars"""
