"""The configuration: what it reads, what it refuses and in which words, and that nothing else ever comes out."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kbaseline.config.load import bundled_configs, describe, dotted, load_config, parse_assignments
from kbaseline.config.schema import Config, StageConfig
from kbaseline.errors import ConfigError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").rglob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("epochs", "per_epoch", "left"), [(5, 63, 5), (5, 100, 3), (5, 299, 2), (5, 4000, 2), (1, 4000, 1)]
)
def test_so_many_steps_are_enough(epochs, per_epoch, left):
    """Golden: of 300 steps, as many epochs as reach them, at least two and at most those given; and no others later."""
    stage = StageConfig(name="a", freeze=True, epochs=epochs, steps=300).with_enough_steps(per_epoch)
    assert stage.epochs == left
    assert stage.with_enough_steps(per_epoch) == stage


@pytest.mark.parametrize(
    ("source", "model", "images", "trained"),
    [
        ("folder:photos", {}, 9_999, False),
        ("csv:table.csv", {}, 100, False),
        ("folder:photos", {}, 10_000, True),
        ("folder:photos", {"weights": "none"}, 100, True),
        ("folder:photos", {"train_bn": True}, 100, True),
        ("tfds:cifar10", {}, 100, False),
        ("tfds:cifar10", {}, 50_000, True),
        ("tfds:cifar10", {"train_bn": False}, 50_000, False),
        ("digits", {}, 1_438, False),
    ],
)
def test_batchnorm_of_few_photos_stays(source: str, model: dict, images: int, trained: bool) -> None:
    """Golden: `auto` leaves pretrained statistics of few images, whatever their source; what is set holds."""
    config = load_config({"data": {"source": source}, "model": model}).with_train_bn(images)
    assert config.model.train_bn is trained
    assert config.with_train_bn(images) == config


@pytest.mark.parametrize(
    ("changes", "stage_steps", "accelerator", "swept"),
    [
        ({}, 200, False, True),
        ({}, 199, False, False),
        ({}, 10, True, True),
        ({"max_lr": "auto"}, 10, False, True),
        ({"lr_find": True}, 10, False, True),
        ({"lr_find": False}, 10_000, True, False),
        ({"init": "probe", "epochs": 0}, 0, True, False),
    ],
)
def test_the_finder_runs_where_it_costs_less_than_half_the_stage(changes, stage_steps, accelerator, swept):
    """Golden: a sweep of 100 steps before a stage of so many."""
    stage = StageConfig.model_validate({"name": "a", "freeze": True, "epochs": 1, **changes})
    assert stage.sweeps(100, stage_steps, accelerator) is swept


def test_the_defaults_are_the_articles_recipe() -> None:
    """Golden: the article's numbers, each as the parity document has it."""
    config = load_config()
    assert config == Config()
    assert (config.data.source, config.data.size, config.data.batch_size) == ("tfds:cifar10", 128, 64)
    assert (config.model.backbone, config.model.weights, config.model.train_bn) == ("resnet50", "auto", "auto")
    assert (config.model.hidden, config.model.dropout, config.model.bn_momentum) == (512, 0.5, 0.9)
    draw = config.transforms
    assert (draw.max_rotate, draw.max_zoom, draw.max_lighting, draw.max_warp) == (10, 1.1, 0.2, 0.2)
    assert (draw.p_affine, draw.p_lighting, draw.do_flip, draw.flip_vert) == (0.75, 0.75, False, False)
    optimizer = config.optimizer
    assert (optimizer.weight_decay, optimizer.beta_2, optimizer.epsilon) == (0.01, 0.99, 1e-8)
    assert optimizer.momentum == (0.95, 0.85)
    assert [(s.freeze, s.epochs, s.max_lr) for s in config.stages] == [(True, 3, 1e-3), (False, 3, (1e-6, 1e-4))]
    assert [(s.pct_start, s.div, s.final_div, s.schedule) for s in config.stages] == [(0.3, 25, 2.5e5, "one_cycle")] * 2
    assert config.tta is not None
    assert (config.tta.views, config.tta.beta, config.tta.scale, config.tta.flip) == (8, 0.4, 1.35, "auto")
    sweep = config.lr_find
    assert (sweep.start_lr, sweep.end_lr, sweep.steps, sweep.stop_factor) == (1e-7, 10, 100, 4)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_committed_config_loads_and_says_what_it_is(path: Path) -> None:
    """Invariant: each file in configs/ is valid, and its header gives purpose, command, hardware and expectation."""
    assert load_config(path) == load_config(load_config(path))
    header = path.read_text(encoding="utf-8")
    for word in ("Purpose:", "Command:", "Hardware:", "Expected:"):
        assert word in header


def test_there_are_configs() -> None:
    """Invariant: the parametrised test above ran on something, and the same files are the bundled ones."""
    assert {"cifar10", "quickstart", "pretrain-resnet20"} <= {path.stem for path in CONFIGS}
    # Installed, the bundled files are copies; in a checkout they are these files themselves.
    bundled = {name: path.read_bytes() for name, path in bundled_configs().items()}
    folder = Path(__file__).parents[2] / "configs"
    assert bundled == {path.relative_to(folder).with_suffix("").as_posix(): path.read_bytes() for path in CONFIGS}


def test_cifar10_is_the_default() -> None:
    """Golden: configs/cifar10.yaml spells out exactly the built-in defaults, as they are for all its images."""
    assert load_config("cifar10") == Config().with_train_bn(50_000)


def test_yaml_round_trip(tmp_path: Path) -> None:
    """Invariant: what `to_yaml` and `describe` write reads back to an equal configuration."""
    changed = load_config(
        {"name": "x", "seed": 7, "tta": None, "data": {"limit": 10, "data_dir": "~/a b", "valid_fraction": 0.1}},
        {"stages.0.max_lr": [None, 1e-3], "stages.1.max_lr": "auto", "lr_find.start_lr": 1e-9},
    )
    for config in (Config(), changed, load_config("quickstart")):
        assert load_config(write(tmp_path, config.to_yaml())) == config
        assert load_config(write(tmp_path, describe(config))) == config


def test_the_comments_say_what_a_key_takes() -> None:
    """Golden: choices, bounds and default; a choice beside other values begins with `or`."""
    text = describe(load_config())
    for key, rule in (
        ("batch_size", "(or 'auto'; default 64)"),
        ("resize", "('crop' | 'squish'; default crop)"),
        ("size", "(≥ 8, ≤ 1024; default 128)"),
        ("log", "('tensorboard' | 'wandb' | 'mlflow'; default [])"),
    ):
        (line,) = (line for line in text.splitlines() if line.startswith(f"  {key}:"))
        assert line.endswith(rule), line


def test_numbers_are_read_as_everyone_writes_them(tmp_path: Path) -> None:
    """Golden: `1e-3`, which YAML 1.1 takes for a text, is a number, in a file and on the command line."""
    path = write(tmp_path, "stages: [{name: a, freeze: true, epochs: 1, max_lr: 1e-3}]\nlr_find: {end_lr: 1E1}\n")
    config = load_config(path, parse_assignments(["optimizer.weight_decay=5e-2", "stages.0.max_lr=[1e-5, 2e-4]"]))
    assert config.lr_find.end_lr == 10.0
    assert config.optimizer.weight_decay == 0.05
    assert config.stages[0].max_lr == (1e-5, 2e-4)
    assert load_config(path).stages[0].max_lr == 1e-3


def test_overrides_reach_every_level() -> None:
    """Golden: a dotted key changes one value and leaves its neighbours, lists by position, null included."""
    config = load_config(None, parse_assignments(["seed=3", "data.size=96", "stages.1.epochs=5", "tta=null"]))
    assert (config.seed, config.data.size, config.stages[1].epochs, config.tta) == (3, 96, 5, None)
    assert (config.data.batch_size, config.stages[0], config.stages[1].name) == (64, Config().stages[0], "finetune")


@pytest.mark.parametrize("name", ["0", "10", "no", "null", "1e5", "st. bernard", "a.b", "2020-01-01", "ünï"])
def test_any_class_can_be_weighted(tmp_path: Path, name: str) -> None:
    """Golden: a class is called what is written, unquoted or not, in a file, on the command line and from Python."""
    expected = {name: 2.0, "cat": 5.0}
    text = f"{{{name}: 2.0, cat: 5.0}}"
    ways = (
        load_config(write(tmp_path, f"data: {{class_weights: {text}}}")),
        load_config(None, parse_assignments([f"data.class_weights={text}"])),
        load_config("quickstart", parse_assignments([f"data.class_weights.{name}=2.0", "data.class_weights.cat=5"])),
        load_config(Config(), dotted({"data": {"class_weights": expected}})),
        load_config(Config(), dotted({"data.class_weights": expected})),
        load_config({"data": {"class_weights": {int(name) if name.isdigit() else name: 2.0, "cat": 5}}}),
    )
    for config in ways:
        assert config.data.class_weights == expected
        assert load_config(write(tmp_path, config.to_yaml())) == config


def test_one_more_weight_joins_those_there_are() -> None:
    """Golden: a weight for one class leaves the others; a whole mapping takes their place."""
    weighted = load_config({"data": {"class_weights": {"cat": 2.0}}})
    assert load_config(weighted, {"data.class_weights.dog": 3.0}).data.class_weights == {"cat": 2.0, "dog": 3.0}
    assert load_config(weighted, dotted({"data": {"class_weights": {"dog": 3.0}}})).data.class_weights == {"dog": 3.0}


def test_overrides_win_over_the_file(tmp_path: Path) -> None:
    """Golden: the file wins over the defaults, the override over the file."""
    path = write(tmp_path, "seed: 1\ndata: {size: 32, batch_size: 8}\n")
    config = load_config(path, {"data.size": 64})
    assert (config.seed, config.data.size, config.data.batch_size) == (1, 64, 8)


def test_a_config_is_frozen() -> None:
    """Invariant: no section can be changed in place."""
    config = Config()
    with pytest.raises(ValueError, match="frozen"):
        config.data.size = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({"sede": 1}, "unknown key 'sede'.*Did you mean 'seed'"),
        ({"data": {"batchsize": 1}}, "unknown key 'data.batchsize'.*Did you mean 'batch_size'"),
        ({"model": {"backbne": "x"}}, "unknown key 'model.backbne'.*Did you mean 'backbone'"),
        ({"transforms": {"rotate": 3}}, "unknown key 'transforms.rotate'.*Did you mean 'max_rotate'"),
        ({"optimizer": {"weightdecay": 3}}, "unknown key 'optimizer.weightdecay'.*Did you mean 'weight_decay'"),
        ({"lr_find": {"step": 3}}, "unknown key 'lr_find.step'.*Did you mean 'steps'"),
        ({"tta": {"view": 3}}, "unknown key 'tta.view'.*Did you mean 'views'"),
        ({"runtime": {"precison": 3}}, "unknown key 'runtime.precison'.*Did you mean 'precision'"),
        (
            {"stages": [{"name": "a", "freeze": True, "epoch": 1}]},
            "unknown key 'stages.0.epoch'.*Did you mean 'epochs'",
        ),
        ({"stages": []}, "stages.*at least 1"),
        ({"stages": [{"name": "a", "freeze": True}]}, "stages.0.*required"),
        ({"seed": -1}, "seed.*greater than or equal to 0; got -1"),
        ({"seed": "x"}, "seed.*integer.*got 'x'"),
        ({"seed": 2**31}, "seed.*less than"),
        ({"name": "../x"}, "name.*pattern"),
        ({"name": ""}, "name.*at least 1 character"),
        ({"data": {"size": 7}}, "data.size.*greater than or equal to 8; got 7"),
        ({"data": {"size": 2.5}}, "data.size.*integer.*got 2.5"),
        ({"data": {"resize": "stretch"}}, "data.resize.*'crop' or 'squish'; got 'stretch'"),
        ({"data": {"valid_fraction": 1.0}}, "data.valid_fraction.*less than 1"),
        ({"data": 3}, "data.*got 3"),
        ({"data": None}, "data.*got None"),
        ({"optimizer": {"momentum": [0.9]}}, "optimizer.momentum"),
        ({"optimizer": {"beta_2": 1.0}}, "optimizer.beta_2.*less than 1; got 1.0"),
        ({"optimizer": {"epsilon": float("nan")}}, "optimizer.epsilon"),
        ({"lr_find": {"start_lr": 1.0, "end_lr": 0.5}}, "lr_find: end_lr must exceed start_lr 1; got 0.5"),
        ({"tta": {"beta": 1.1}}, "tta.beta.*less than or equal to 1; got 1.1"),
        ({"stages": [{"name": "a", "freeze": True, "epochs": 1, "max_lr": -1}]}, "stages.0.max_lr.*got -1"),
        ({"stages": [{"name": "a", "freeze": True, "epochs": 1, "max_lr": "fast"}]}, "stages.0.max_lr.*got 'fast'"),
        ({"stages": [{"name": "a", "freeze": True, "epochs": 1, "max_lr": [1e-3, 1e-4]}]}, "must rise"),
        (
            {"stages": [{"name": "a", "freeze": True, "epochs": 1, "max_lr": "auto", "lr_find": False}]},
            "'auto' needs the finder",
        ),
        ({"stages": [{"name": "a", "freeze": True, "epochs": 1}] * 2}, "stage names must differ; 'a' appears 2 times"),
        (
            {"stages": [{"name": "a", "freeze": True, "epochs": 0}]},
            "stages.0.*only a stage with `init: probe` may have 0",
        ),
        (
            {"stages": [{"name": "a", "init": "probe"}]},
            "a probe is a linear head; set model.head to linear, got 'fastai'",
        ),
        (
            {"model": {"head": "linear", "weights": "none"}, "stages": [{"name": "a", "init": "probe"}]},
            "features of random weights are random",
        ),
        (
            {"model": {"head": "linear"}, "probe": False, "stages": [{"name": "a", "init": "probe"}]},
            "needs the probe; set probe to true",
        ),
        (
            {"model": {"head": "linear"}}
            | {"stages": [{"name": "a", "freeze": True, "epochs": 1}, {"name": "b", "init": "probe"}]},
            "stages.1.init.*only the first stage",
        ),
    ],
)
def test_bad_values_are_named_with_rule_and_remedy(tree: dict[str, Any], said: str) -> None:
    """Golden: an unknown key or a bad value is one line with its full key, the rule and a suggestion."""
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(tree)
    assert "\n" not in str(caught.value)
    assert "pydantic" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\nseed: 2\n", "key 'seed' appears twice"),
        ("data: {size: 32, size: 64}", "key 'size' appears twice"),
        ("seed: [1", "not valid YAML"),
        ("1: 2", "unknown key '1'"),
        ("? [a, b]\n: 2", r"key \['a', 'b'\] is not a string|unhashable"),
        ("- 1", "top level must be a mapping; got list"),
        ("a: &x {b: *x}", "YAML|unknown key"),
        ("!!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_bad_files_are_named(tmp_path: Path, text: str, said: str) -> None:
    """Golden: a file that is no configuration is one line with its path."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_an_empty_file_is_the_default(tmp_path: Path) -> None:
    """Golden: nothing said is nothing changed."""
    assert load_config(write(tmp_path, "# only a comment\n")) == Config()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    """Golden: a missing file suggests a bundled one; a folder and a binary file are refused by name."""
    with pytest.raises(ConfigError, match=r"no such file.*Did you mean 'quickstart'"):
        load_config(tmp_path / "quickstrat.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        load_config(tmp_path)
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match=r"binary\.yaml"):
        load_config(tmp_path / "binary.yaml")


@pytest.mark.parametrize(
    ("items", "said"),
    [
        (["seed"], "must be KEY=VALUE"),
        (["=3"], "must be KEY=VALUE"),
        (["seed=[1"], "not valid YAML"),
        (["stages.2.epochs=1"], "must be an index from 0 to 1"),
        (["stages.x.epochs=1"], "must be an index from 0 to 1"),
        (["seed.x=1"], "seed"),
        (["data.size.x=1"], "data.size"),
        (["data.sizes=1"], "unknown key 'data.sizes'.*Did you mean 'size'"),
        (["stages.0.epoch=1"], "unknown key 'stages.0.epoch'.*Did you mean 'epochs'"),
    ],
)
def test_bad_overrides_are_named(items: list[str], said: str) -> None:
    """Golden: an override that cannot be is one line that names it."""
    with pytest.raises(ConfigError, match=said) as caught:
        load_config(None, parse_assignments(items))
    assert "\n" not in str(caught.value)


KEYS = st.sampled_from(
    [*Config.model_fields, "size", "limit", "data_dir", "weights", "max_lr", "momentum", "epochs", "freeze", "x", "0"]
)
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.sampled_from(["auto", "1e-3", "none"])
)
NAMES = KEYS | st.text(max_size=5)
TREES = st.recursive(
    LEAVES, lambda t: st.lists(t, max_size=3) | st.dictionaries(NAMES | LEAVES, t, max_size=4), max_leaves=12
)
QUICK = settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


def complaint(load: Callable[[], Config]) -> str:
    """The ConfigError's text, or nothing; what loads must load again from itself."""
    try:
        config = load()
    except ConfigError as error:
        return str(error)
    assert load_config(config) == config
    return ""


@QUICK
@given(st.dictionaries(NAMES | LEAVES, TREES, max_size=5))
def test_any_mapping_loads_or_is_a_config_error(tree: dict[Any, Any]) -> None:
    """Property: whatever the mapping holds, it is a configuration or a one-line ConfigError."""
    said = complaint(lambda: load_config(tree))
    assert len(said.splitlines()) <= 1


@QUICK
@given(st.text(max_size=40) | TREES.map(yaml.safe_dump), st.sampled_from(["utf-8", "utf-16", "latin-1"]))
def test_any_file_loads_or_is_a_config_error(tmp_path_factory: pytest.TempPathFactory, text: str, code: str) -> None:
    """Property: whatever a file holds, it is a configuration or a ConfigError that names the file."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    path.write_bytes(text.encode(code, "replace"))
    said = complaint(lambda: load_config(path))
    assert not said or str(path) in said


@QUICK
@given(st.lists(st.text(max_size=12) | st.builds("{}.{}={}".format, KEYS, KEYS, TREES), max_size=3))
def test_any_override_loads_or_is_a_config_error(items: list[str]) -> None:
    """Property: whatever is written after --set, it is a configuration or a one-line ConfigError."""
    said = complaint(lambda: load_config(None, parse_assignments(items)))
    assert len(said.splitlines()) <= 1


def test_nesting_without_end_is_a_config_error(tmp_path: Path) -> None:
    """Golden: ten thousand brackets exhaust no stack."""
    with pytest.raises(ConfigError):
        load_config(write(tmp_path, "data: " + "[" * 10_000))
