"""The complete configuration of a run: every key with its meaning, its bounds and its default, frozen and typed.

Loads neither Keras nor JAX, so `--help` and a misspelt key answer at once.
"""

import math
import os
from collections.abc import Mapping
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from kbaseline.config.paths import expand_home
from kbaseline.errors import ConfigError

FEW_IMAGES = 10_000
"""Training images below which `model.train_bn: auto` leaves BatchNorm. Trained on 1,618 it lost, and with the 50,000
images of the article it does not; nothing between was measured (docs/results.md)."""

Rate = Annotated[float, Field(gt=0, le=100)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


def _weights(value: Any) -> Any:
    """Refuses in one sentence what neither part of the union takes."""
    if isinstance(value, Mapping):
        # A class may be called 0.
        numbers = {name: str(name) for name in value if isinstance(name, Integral) and not isinstance(name, bool)}
        value = {numbers.get(name, name): weight for name, weight in value.items()}
        for name, weight in value.items():
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 < weight <= 10_000:
                raise ValueError(f"a weight must be a number above 0, at most 10,000; got {weight!r} for {name!r}")
    elif value not in ("none", "auto"):
        raise ValueError(f"must be 'none', 'auto' or a weight for each name of a class; got {value!r}")
    return value


ClassWeights = Annotated[Mapping[str, float] | Literal["none", "auto"], BeforeValidator(_weights)]


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class DataConfig(Section):
    """Where the images come from, and how they are read and batched."""

    source: str = "tfds:cifar10"
    """`tfds:NAME`, `folder:PATH`, `csv:PATH` (an existing folder or table needs no prefix), or `digits`."""
    size: int = Field(128, ge=8, le=1024)
    """Side of the square images that the network sees, in pixels."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] | Literal["auto"] = 64
    """Images per step, at most all training images; the last, partial training batch of an epoch is dropped. `auto`:
    the largest power of two that fits the accelerator's memory, 64 on a CPU; learning rates are not adjusted to it."""
    resize: Literal["crop", "squish"] = "crop"
    """How a photo becomes square: `crop` cuts out its centre, `squish` changes its aspect ratio."""
    data_dir: Path | None = None
    """Where TFDS keeps its data. Default: `$TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    limit: int | None = Field(None, ge=2)
    """Use at most this many training images: a seeded, stratified subset, for quick trials."""
    limit_valid: int | None = Field(None, ge=2)
    """The same for the validation and test splits. Default: `limit`."""
    valid_fraction: Fraction | None = None
    """Hold out this fraction of the training split for validation, so that the test split is used only once. Default:
    the source's own validation split, else its test split (as in the article), else a fifth of the training split."""
    fold: tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=2, le=100)]] | None = None
    """`[k, K]`: hold out the k-th of K parts of the training split, counted from 1, for validation; `[0, K]` trains on
    all of them and validates on the first, which then proves nothing. `fit --folds K` sets it."""
    on_bad_image: Literal["skip", "error"] = "skip"
    """What to do with an unreadable image or CSV row: `skip` leaves it out and reports it, `error` ends the run."""
    image_column: str | None = Field(None, min_length=1)
    """CSV column with the image paths, relative to the CSV file; suffixes may be missing. Default: the column called
    `image`, `path`, `file` or similar."""
    label_column: str | None = Field(None, min_length=1)
    """CSV column with the labels. Default: the column called `label`, `class`, `target` or similar."""
    split_column: str | None = Field(None, min_length=1)
    """CSV column that says `train`, `valid` or `test`; `none` ignores it. Default: the column called `split`,
    `fold` or similar, if there is one."""
    group_column: str | None = Field(None, min_length=1)
    """CSV column that names the patient, video or series of an image; a hold-out never divides one."""
    group: Literal["none", "folder", "auto"] = "none"
    """`folder`: photos in one sub-folder of a class folder belong together, and those in sub-folders of one name too,
    whatever their class; a hold-out never divides them. `auto`: the same for near-duplicates, as `kbaseline audit`
    finds them; all images of the source are compared first, whatever `limit` says."""
    class_weights: ClassWeights = "none"
    """Weight of each class in the loss, of the linear probe too: `none`; `auto`, inversely proportional to its number
    of training images, so that every class counts the same; or `{NAME: weight}`, where classes not named weigh 1."""
    cache_dir: Path | None = None
    """Where decoded photos, features and compiled programs are cached. Default: `$KBASELINE_CACHE`, else
    `~/.cache/kbaseline`."""

    @model_validator(mode="after")
    def _fold_exists(self) -> Self:
        if self.fold is not None and self.fold[0] > self.fold[1]:
            raise ValueError(f"fold [k, K]: k must be at most K; got {list(self.fold)}")
        if self.fold is not None and self.valid_fraction is not None:
            raise ValueError("fold and valid_fraction both say what is held out; leave out one of them")
        return self

    @property
    def holds_out(self) -> bool:
        """Whether validation has images that are not trained on; with `fold` `[0, K]` it has none."""
        return self.fold is None or self.fold[0] > 0

    def trains_on(self, split: str) -> bool:
        """Whether the images of a split are trained on, so that their accuracy proves nothing."""
        return split == "train" or (split == "valid" and not self.holds_out)

    @property
    def batch(self) -> int:
        """`batch_size` as a number; the configuration of every `Learner` and every run folder has one."""
        if self.batch_size == "auto":
            raise ConfigError("data.batch_size: 'auto' is resolved by a Learner; give a number here.")
        return self.batch_size

    @property
    def cache_folder(self) -> Path:
        """`cache_dir`, or its default."""
        folder = self.cache_dir or os.environ.get("KBASELINE_CACHE") or "~/.cache/kbaseline"
        return expand_home(folder, "set data.cache_dir")

    @property
    def tfds_folder(self) -> Path:
        """`data_dir`, or its default."""
        folder = self.data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
        return expand_home(folder, "set data.data_dir")


class ModelConfig(Section):
    """The network: a pretrained backbone and a new head."""

    backbone: str = "resnet50"
    """A name from the zoo (`kbaseline backbones` lists them), or the path of a `.keras` model that takes RGB 0-255."""
    weights: str = "auto"
    """`auto`: the backbone's own pretrained weights (`imagenet`; `cifar10` for resnet20; those saved in a `.keras`
    model). Or one of these names, `none` for random weights, or the path of a weights file."""
    train_bn: bool | Literal["auto"] = "auto"
    """Train the backbone's BatchNorm layers in every stage, also while it is frozen, as fastai does. `false` leaves
    pretrained ones as they are in every stage: on some hundred or thousand photos the statistics of their own batches
    cost more than they bring. `auto`: `false` for pretrained weights and fewer than 10,000 training images,
    else `true`; the run folder's configuration has the choice."""
    bn_momentum: float = Field(0.9, gt=0, lt=1)
    """Momentum of the running statistics in the backbone's BatchNorm layers; PyTorch calls 0.9 momentum 0.1."""
    head: Literal["fastai", "linear"] = "fastai"
    """`fastai`: average and maximum pooling, then two layers with BatchNorm. `linear`: average pooling, then one layer,
    as a linear probe has."""
    hidden: int = Field(512, ge=1)
    """Units of the hidden layer of fastai's head."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout rate before the last layer; half of it before the hidden layer."""


class TransformsConfig(Section):
    """Random augmentation of the training images: fastai's `get_transforms`."""

    do_flip: bool = False
    """Mirror left to right with probability 0.5."""
    flip_vert: bool = False
    """Instead of `do_flip`: one of the eight combinations of mirrors and quarter turns, at random."""
    max_rotate: float = Field(10.0, ge=0, le=180)
    """Largest rotation, in degrees, either way."""
    max_zoom: float = Field(1.1, ge=1, le=10)
    """Largest magnification."""
    max_lighting: float = Field(0.2, ge=0, lt=1)
    """Strength of the brightness and contrast changes."""
    max_warp: float = Field(0.2, ge=0, lt=1)
    """Strength of the perspective warp."""
    p_affine: Probability = 0.75
    """Probability of each of warp, rotation and zoom."""
    p_lighting: Probability = 0.75
    """Probability of each of brightness and contrast."""
    train_size: int | None = Field(None, ge=8, le=1024)
    """Side of the images in training, in pixels, if `data.size`, at which everything else sees them, is larger; `null`:
    `data.size`. It saves time (docs/recipe.md)."""


class OptimizerConfig(Section):
    """AdamW, with fastai's settings."""

    weight_decay: float = Field(0.01, ge=0, le=1)
    """Decoupled weight decay: at each step every variable shrinks by this times its layer group's rate."""
    beta_2: Fraction = 0.99
    """Decay rate of the running average of squared gradients."""
    epsilon: float = Field(1e-8, gt=0, le=1)
    """Added to the denominator of the update, after bias correction."""
    momentum: tuple[Fraction, Fraction] = (0.95, 0.85)
    """beta_1 at the ends and at the peak of one-cycle: `[ends, peak]`."""


class LRFindConfig(Section):
    """The learning-rate finder's sweep."""

    start_lr: Rate = 1e-7
    """First learning rate of the sweep."""
    end_lr: Rate = 10.0
    """Learning rate at which the sweep would end."""
    steps: int = Field(100, ge=20, le=100_000)
    """Training steps of the sweep."""
    suggestion: Literal["valley", "steep", "slide", "minimum"] = "valley"
    """The rule that `max_lr: auto` uses."""
    stop_factor: float = Field(4.0, gt=1)
    """Stop when the smoothed loss exceeds its best value so far by this factor; the first tenth of the sweep
    does not count towards the best."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.end_lr <= self.start_lr:
            raise ValueError(f"end_lr must exceed start_lr {self.start_lr:g}; got {self.end_lr:g}")
        return self


class StageConfig(Section):
    """One stage of training."""

    name: str = Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name shown in tables; must be unique."""
    freeze: bool
    """Freeze the backbone; its BatchNorm layers too, unless `model.train_bn` is set. `true` by default for
    `init: probe`."""
    epochs: int = Field(ge=0, le=100_000)
    """Passes over the training images. 0, the default for `init: probe`: the head is the probe and is not trained."""
    steps: PositiveInt | None = None
    """So many steps are enough: of a large data set the stage has no more epochs than it takes to reach them, but at
    least two. The number is saved as `epochs` in the run folder's configuration."""
    init: Literal["probe"] | None = None
    """`probe`: the head starts as a linear probe, a logistic regression on the frozen features, and not from random
    numbers; for the first stage and `model.head: linear`."""
    max_lr: Rate | Literal["auto"] | tuple[Rate | None, Rate] = 1e-3
    """Peak learning rate. A number: the same for all layers. `[lo, hi]`: spread geometrically over the layer groups,
    lo for the first, hi for the head. `[null, hi]`: hi for the head and a tenth of it for the body. `auto`: the
    finder's suggestion."""
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    """How the rate changes over the steps: one-cycle, or constant at `max_lr`."""
    lr_find: bool | Literal["auto"] = "auto"
    """Run the learning-rate finder before the stage and keep its curve. `auto`: if `max_lr` is `auto`, on an
    accelerator, or if the sweep has at most half as many steps as the stage."""
    pct_start: Fraction = 0.3
    """Fraction of the steps during which the rate rises."""
    div: float = Field(25.0, gt=1)
    """The first rate is `max_lr / div`."""
    final_div: float = Field(2.5e5, gt=1)
    """The last rate is `max_lr / final_div`."""

    def sweeps(self, steps: int, stage_steps: int, accelerator: bool) -> bool:
        """Whether the finder runs before the stage.

        Args:
            steps: of the sweep.
            stage_steps: of the stage.
            accelerator: whether the stage is trained on one.
        """
        if self.lr_find == "auto":
            return bool(self.epochs) and (self.max_lr == "auto" or accelerator or 2 * steps <= stage_steps)
        return self.lr_find

    def with_enough_steps(self, steps_per_epoch: int) -> Self:
        """The stage with the epochs that `steps` leaves it."""
        if self.steps is None:
            return self
        return self.model_copy(update={"epochs": min(self.epochs, max(2, math.ceil(self.steps / steps_per_epoch)))})

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_a_probe(cls, given: Any) -> Any:
        probe = isinstance(given, Mapping) and given.get("init") == "probe"
        return {"freeze": True, "epochs": 0, **given} if probe else given

    @model_validator(mode="after")
    def _epochs_or_probe(self) -> Self:
        if not self.epochs and self.init is None:
            raise ValueError(f"epochs of {self.name!r} must be at least 1; only a stage with `init: probe` may have 0")
        return self

    @model_validator(mode="after")
    def _auto_needs_the_finder(self) -> Self:
        if self.max_lr == "auto" and not self.lr_find:
            raise ValueError("max_lr 'auto' needs the finder; set lr_find to true or max_lr to a number")
        if isinstance(self.max_lr, tuple) and self.max_lr[0] is not None and self.max_lr[0] > self.max_lr[1]:
            raise ValueError(f"max_lr [lo, hi] must rise; got [{self.max_lr[0]:g}, {self.max_lr[1]:g}]")
        return self


class TTAConfig(Section):
    """Test-time augmentation: predictions averaged over several views of each image."""

    views: int = Field(8, ge=1, le=64)
    """Augmented views of each image: the four corners, then the same mirrored if `flip` is on, then again from the
    start."""
    beta: Probability = 0.4
    """Weight of the plain prediction; the mean over the views gets the rest."""
    scale: float = Field(1.35, ge=1, le=10)
    """Magnification of the corner views."""
    flip: bool | Literal["auto"] = "auto"
    """Mirror every second group of four views; fastai always does. `auto`: on, unless a mirror is known to change the
    source's classes, as for `digits`. Set it to false for text and the like."""

    def mirrors(self, source: str) -> bool:
        """What `flip` comes to for images of a source."""
        return source != "digits" if self.flip == "auto" else self.flip


class RuntimeConfig(Section):
    """How a run uses the machine."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on GPUs that have it, float32 elsewhere. Head and loss are always float32."""
    compilation_cache: bool = True
    """Keep JAX's compiled programs in `data.cache_dir`, at most 2 GB of them, so that later runs start faster."""
    log: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Trackers that log every epoch, besides `history.csv`: any of `tensorboard`, `wandb`, `mlflow`."""
    checkpoint_minutes: float = Field(10.0, gt=0)
    """Minutes between checkpoints within an epoch; there is also one after every epoch."""
    deterministic: bool = False
    """Make results on a GPU bit-identical from run to run, at some cost in speed; on a CPU they always are."""
    devices: PositiveInt | Literal["all"] = 1
    """Number of devices that share every batch, out of those a process sees, or `all`."""
    coordinator: str | None = Field(None, pattern=r"^\S+:\d+$")
    """`HOST:PORT` of the first of several processes, the same for all of them. Under SLURM this and the next two keys
    need not be set."""
    num_processes: int | None = Field(None, ge=1)
    """Number of processes that train together; 1 makes each task of a SLURM step train alone."""
    process_id: int | None = Field(None, ge=0)
    """Index of this process, from 0; only process 0 writes files."""

    @model_validator(mode="after")
    def _processes_are_numbered(self) -> Self:
        if self.process_id is not None and self.process_id >= (self.num_processes or 1):
            raise ValueError(f"process_id must be less than num_processes; got {self.process_id}")
        if self.coordinator is not None and (self.num_processes is None or self.process_id is None):
            raise ValueError("coordinator needs num_processes and process_id; set all three")
        return self


class Config(Section):
    """All settings of a run. The defaults are the article's recipe."""

    name: str = Field("baseline", min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the run folder under `runs/`."""
    seed: int = Field(42, ge=0, lt=2**31)
    """Seed of the initial weights, splits, image order, augmentation and dropout."""
    minutes: float | None = Field(None, gt=0, le=100_000)
    """The time that a run may take. The run is then `light` with network, size and epochs that fit it, chosen by a few
    timed steps (docs/recipe.md); leave out `stages`. Its `config.yaml` holds the choice, and no `minutes`."""
    data: DataConfig = DataConfig()
    model: ModelConfig = ModelConfig()
    transforms: TransformsConfig = TransformsConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    lr_find: LRFindConfig = LRFindConfig()
    stages: tuple[StageConfig, ...] = Field(
        (
            StageConfig(name="head", freeze=True, epochs=3, max_lr=1e-3),
            StageConfig(name="finetune", freeze=False, epochs=3, max_lr=(1e-6, 1e-4)),
        ),
        min_length=1,
    )
    keep: Literal["last", "best"] = "last"
    """The model of a run: after the `last` stage, or after the one with the `best` validation accuracy, the earlier of
    equals; the linear probe is among them where a stage starts from it. `best` also leaves out test-time augmentation
    that is worse than plain predictions on validation. Accuracy counts every image the same, also with
    `data.class_weights`. With `data.fold` `[0, K]` it is the last: of images that were
    trained on, nothing can be chosen."""
    probe: bool = True
    """Before training, measure what it must beat: a linear probe on the backbone's frozen features, beside the majority
    class. It is fitted to at most 5,000 training images, a stratified part, or to all where a stage starts from it.
    With `data.fold` `[0, K]` there is nothing to measure it on."""
    tta: TTAConfig | None = TTAConfig()
    """`null` turns it off."""
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _stage_names_differ(self) -> Self:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"stage names must differ; {name!r} appears {names.count(name)} times")
        return self

    @model_validator(mode="after")
    def _can_start_from_a_probe(self) -> Self:
        for number, stage in enumerate(self.stages):
            if stage.init is None:
                continue
            key = f"stages.{number}.init 'probe'"
            if number:
                raise ValueError(f"{key}: only the first stage can start from a probe; later the features have changed")
            if self.model.head != "linear":
                raise ValueError(f"{key}: a probe is a linear head; set model.head to linear, got {self.model.head!r}")
            if self.model.weights == "none":
                raise ValueError(f"{key}: features of random weights are random; set model.weights to others than none")
            if not self.probe:
                raise ValueError(f"{key}: needs the probe; set probe to true")
        return self

    @property
    def chooses_best(self) -> bool:
        """Whether validation chooses the model: `keep` is `best`, and there are images to choose on."""
        return self.keep == "best" and self.data.holds_out

    def with_train_bn(self, images: int) -> Self:
        """The configuration with `true` or `false` for `model.train_bn`.

        Args:
            images: number of training images.
        """
        if self.model.train_bn != "auto":
            return self
        # Random weights have no statistics worth keeping.
        trained = images >= FEW_IMAGES or self.model.weights == "none"
        model = self.model.model_copy(update={"train_bn": trained})
        return self.model_copy(update={"model": model})

    def to_yaml(self) -> str:
        """The whole configuration as YAML that `load_config` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)
