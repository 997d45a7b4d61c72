"""The complete configuration of a run, every key with its meaning, its bounds and its default: frozen and typed.

Loads neither Keras nor JAX, so that `--help` and a bad key answer at once.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, model_validator

from kbaseline.errors import ConfigError

Rate = Annotated[float, Field(gt=0, le=100)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Probability = Annotated[float, Field(ge=0, le=1)]


def _weights(value: Any) -> Any:
    """Refuses in one sentence what neither part of the union takes."""
    if isinstance(value, Mapping):
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
    """Where the images come from and how they are fed."""

    source: str = "tfds:cifar10"
    """`tfds:NAME`, `folder:PATH`, `csv:PATH`, or `digits`."""
    size: int = Field(128, ge=8, le=1024)
    """Side of the square the network sees, in pixels."""
    batch_size: Annotated[int, Field(ge=1, le=65536)] | Literal["auto"] = 64
    """Images per step; the last partial training batch of an epoch is dropped. `auto`: the largest power of two
    that fits the accelerator's memory, 64 on a CPU; learning rates stay as they are set."""
    resize: Literal["crop", "squish"] = "crop"
    """How a photo that is not square becomes square: centre crop, or change of aspect."""
    data_dir: Path | None = None
    """Where TFDS keeps its data; default `TFDS_DATA_DIR`, else `~/tensorflow_datasets`."""
    limit: int | None = Field(None, ge=2)
    """At most this many training images: a seeded, stratified subset, for trying things out."""
    limit_valid: int | None = Field(None, ge=2)
    """The same for validation and for test; default: `limit`."""
    valid_fraction: Fraction | None = None
    """Hold this fraction of train out as validation, so that test is touched once. Default: the
    source's own validation split, else its test split (as the article does), else a fifth of train."""
    on_bad_image: Literal["skip", "error"] = "skip"
    """What an unreadable image or row of a CSV file does: it is named, counted and left out, or it ends the run."""
    image_column: str | None = Field(None, min_length=1)
    """The column of a CSV file that holds the path of the image, from the file's folder. Default: the one
    called `image`, `path`, `file` or the like."""
    label_column: str | None = Field(None, min_length=1)
    """The column that holds the label. Default: the one called `label`, `class`, `target` or the like."""
    split_column: str | None = Field(None, min_length=1)
    """The column that holds `train`, `valid` or `test`; `none` ignores it. Default: the one called `split`,
    `fold` or the like, if there is one."""
    class_weights: ClassWeights = "none"
    """Weight of each image in the training loss by its class: `none`; `auto`, inverse to the number of
    training images, so that every class counts the same; or `{NAME: weight}`, 1 for classes not named."""
    cache_dir: Path | None = None
    """Where decoded photos are kept; default `KBASELINE_CACHE`, else `~/.cache/kbaseline`."""

    @property
    def batch(self) -> int:
        """`batch_size` as a number, which it is in the configuration of every learner and run folder."""
        if self.batch_size == "auto":
            raise ConfigError("data.batch_size: 'auto' is settled by a Learner; give a number here.")
        return self.batch_size

    @property
    def cache_folder(self) -> Path:
        """`cache_dir`, or its default."""
        return (self.cache_dir or Path(os.environ.get("KBASELINE_CACHE") or "~/.cache/kbaseline")).expanduser()

    @property
    def tfds_folder(self) -> Path:
        """`data_dir`, or its default."""
        return (self.data_dir or Path(os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")).expanduser()


class ModelConfig(Section):
    """The network."""

    backbone: str = "resnet50"
    """A name from the zoo, or the path of a saved `.keras` model that takes RGB 0-255."""
    weights: str = "auto"
    """`auto`: what the backbone comes with (`imagenet`; `cifar10` for resnet20; those a `.keras` model
    was saved with). Or one of these names, `none` for random ones, or the path of a weights file."""
    train_bn: bool = True
    """Keep BatchNorm of a frozen body training, as fastai does."""
    bn_momentum: float = Field(0.9, gt=0, lt=1)
    """Momentum of the running statistics of the backbone's BatchNorm; 0.9 is what PyTorch calls 0.1."""
    hidden: int = Field(512, ge=1)
    """Units of the head's hidden layer."""
    dropout: float = Field(0.5, ge=0, lt=1)
    """Dropout before the last layer; half of it before the hidden layer."""


class TransformsConfig(Section):
    """Random transforms of the training images: fastai's `get_transforms`."""

    do_flip: bool = False
    """Mirror left-right with probability a half."""
    flip_vert: bool = False
    """Any of the eight flips and quarter turns instead."""
    max_rotate: float = Field(10.0, ge=0, le=180)
    """Degrees, either way."""
    max_zoom: float = Field(1.1, ge=1, le=10)
    """Largest magnification."""
    max_lighting: float = Field(0.2, ge=0, lt=1)
    """Strength of brightness and contrast."""
    max_warp: float = Field(0.2, ge=0, lt=1)
    """Strength of the perspective warp."""
    p_affine: Probability = 0.75
    """Probability of each of warp, rotation and zoom."""
    p_lighting: Probability = 0.75
    """Probability of each of brightness and contrast."""


class OptimizerConfig(Section):
    """AdamW, as fastai sets it."""

    weight_decay: float = Field(0.01, ge=0, le=1)
    """Decoupled: every variable shrinks by this times its group's rate at each step."""
    beta_2: Fraction = 0.99
    """Decay of the squared gradient's average."""
    epsilon: float = Field(1e-8, gt=0, le=1)
    """Added to the denominator, after bias correction."""
    momentum: tuple[Fraction, Fraction] = (0.95, 0.85)
    """beta_1 at the ends and at the peak of one-cycle."""


class LRFindConfig(Section):
    """The learning-rate finder's sweep."""

    start_lr: Rate = 1e-7
    """First rate."""
    end_lr: Rate = 10.0
    """Rate the sweep heads for."""
    steps: int = Field(100, ge=20, le=100_000)
    """Training steps."""
    suggestion: Literal["valley", "steep", "slide", "minimum"] = "valley"
    """The rule behind `max_lr: auto`."""
    stop_factor: float = Field(4.0, gt=1)
    """Stop when the smoothed loss exceeds this times its best after the first tenth of the sweep."""

    @model_validator(mode="after")
    def _rises(self) -> Self:
        if self.end_lr <= self.start_lr:
            raise ValueError(f"end_lr must exceed start_lr {self.start_lr:g}; got {self.end_lr:g}")
        return self


class StageConfig(Section):
    """One stage of training."""

    name: str = Field(min_length=1, max_length=40, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Shown in tables; unique."""
    freeze: bool
    """Freeze the backbone (all but its BatchNorm, see model.train_bn)."""
    epochs: int = Field(ge=1, le=100_000)
    """Passes over the training images."""
    max_lr: Rate | Literal["auto"] | tuple[Rate | None, Rate] = 1e-3
    """One rate for all layers; `[lo, hi]` spread geometrically over the layer groups; `[null, hi]`: hi
    for the head and a tenth of it for the body; `auto`: the finder's suggestion."""
    schedule: Literal["one_cycle", "constant"] = "one_cycle"
    """One-cycle, or a constant rate."""
    lr_find: bool = True
    """Run the finder before the stage and keep its curve."""
    pct_start: Fraction = 0.3
    """Fraction of the steps in which the rate rises."""
    div: float = Field(25.0, gt=1)
    """The first rate is max_lr / div."""
    final_div: float = Field(2.5e5, gt=1)
    """The last rate is max_lr / final_div."""

    @model_validator(mode="after")
    def _auto_needs_the_finder(self) -> Self:
        if self.max_lr == "auto" and not self.lr_find:
            raise ValueError("max_lr 'auto' needs the finder; set lr_find to true or max_lr to a number")
        if isinstance(self.max_lr, tuple) and self.max_lr[0] is not None and self.max_lr[0] > self.max_lr[1]:
            raise ValueError(f"max_lr [lo, hi] must rise; got [{self.max_lr[0]:g}, {self.max_lr[1]:g}]")
        return self


class TTAConfig(Section):
    """Test-time augmentation."""

    views: int = Field(8, ge=1, le=64)
    """Augmented views: the four corners, then the same mirrored if flip is set, then round again."""
    beta: Probability = 0.4
    """Weight of the plain prediction; the mean over the views has the rest."""
    scale: float = Field(1.35, ge=1, le=10)
    """Magnification of a corner view."""
    flip: bool | Literal["auto"] = "auto"
    """Mirror every second four views, as the original always does. `auto`: unless the source is
    `digits`, where a mirrored image shows another thing; set it to false for text and the like."""

    def mirrors(self, source: str) -> bool:
        """What `flip` comes to for images of a source."""
        return source != "digits" if self.flip == "auto" else self.flip


class RuntimeConfig(Section):
    """The machine."""

    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """`auto`: bfloat16 on GPUs that have it, float32 elsewhere. Head and loss are always float32."""
    compilation_cache: bool = True
    """Keep JAX's compiled programs in the user's cache folder, so that a second run starts faster."""
    log: tuple[Literal["tensorboard", "wandb", "mlflow"], ...] = ()
    """Trackers that get every epoch's figures besides `history.csv`: any of `tensorboard`, `wandb`, `mlflow`."""
    checkpoint_minutes: float = Field(10.0, gt=0)
    """Minutes between two checkpoints within an epoch; there is one after every epoch besides."""
    deterministic: bool = False
    """Make a GPU compute the same bits twice, at a price in speed; a CPU does in any case."""
    devices: PositiveInt | Literal["all"] = 1
    """Devices that share every batch, of those a process sees: how many, or `all`."""
    coordinator: str | None = Field(None, pattern=r"^\S+:\d+$")
    """`HOST:PORT` of the first of several processes, the same for each. A SLURM step needs none of these three."""
    num_processes: int | None = Field(None, ge=1)
    """How many processes train together; 1 keeps the processes of a SLURM step apart."""
    process_id: int | None = Field(None, ge=0)
    """Which of them this one is, from 0; the first alone writes."""

    @model_validator(mode="after")
    def _processes_are_numbered(self) -> Self:
        if self.process_id is not None and self.process_id >= (self.num_processes or 1):
            raise ValueError(f"process_id must be less than num_processes; got {self.process_id}")
        if self.coordinator is not None and (self.num_processes is None or self.process_id is None):
            raise ValueError("coordinator needs num_processes and process_id; set all three")
        return self


class Config(Section):
    """Everything a run depends on. The defaults are the article's recipe."""

    name: str = Field("baseline", min_length=1, max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Name of the run folder under `runs/`."""
    seed: int = Field(42, ge=0, lt=2**31)
    """Fixes initial weights, splits, order of images, transforms and dropout."""
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
    tta: TTAConfig | None = TTAConfig()
    """`null` leaves it out."""
    runtime: RuntimeConfig = RuntimeConfig()

    @model_validator(mode="after")
    def _stage_names_differ(self) -> Self:
        names = [stage.name for stage in self.stages]
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"stage names must differ; {name!r} stands {names.count(name)} times")
        return self

    def to_yaml(self) -> str:
        """The whole configuration as YAML that `load_config` reads back to an equal one."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, default_flow_style=None, width=100)
