"""The command line: what a person types, reads and gets as an exit code."""

import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner

from kbaseline.cli import launch, main
from kbaseline.config.load import load_config

TRACEBACK = re.compile(r"Traceback \(most recent call last\)")


def call(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def fails(*arguments: str, code: int = 2) -> str:
    """The one line a wrong call prints."""
    result = call(*arguments)
    assert result.exit_code == code, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert not TRACEBACK.search(result.output)
    return lines[0]


def test_help_is_complete_and_loads_nothing_heavy():
    """`--help` names every option and imports neither Keras nor JAX nor Matplotlib."""
    script = (
        "import json, sys; from click.testing import CliRunner; from kbaseline.cli import main\n"
        "heavy = {'keras', 'jax', 'matplotlib', 'tensorflow_datasets', 'sklearn', 'pydantic'}\n"
        "for command in ([], ['fit'], ['find-lr'], ['config'], ['doctor']):\n"
        "    result = CliRunner().invoke(main, [*command, '--help']); assert result.exit_code == 0, result.output\n"
        "    print(json.dumps([result.output, sorted(heavy & set(sys.modules))]))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    whole, *each = (json.loads(line) for line in done.stdout.splitlines())
    assert all(name in whole[0] for name in ("fit", "find-lr", "config", "doctor", "backbones"))
    assert all(option in text for text, _ in each for option in ("--config", "--set", "--data"))
    assert [heavy for _, heavy in (whole, *each)] == [[]] * 5


def test_config_prints_what_it_reads_back():
    """`kbaseline config` prints the resolved configuration as YAML, with every change in it."""
    result = call("config", "--config", "quickstart", "--set", "stages.0.epochs=7", "--data", "folder:x")
    assert result.exit_code == 0
    tree = yaml.safe_load(result.stdout)
    expected = load_config("quickstart", {"stages.0.epochs": 7, "data.source": "folder:x"})
    assert load_config(tree) == expected
    assert "# Passes over the training images." in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "--set", "data.sise=3"], r"unknown key 'data.sise'.*Did you mean 'size'"),
        (["fit", "--set", "data.size"], r"--set 'data.size': must be KEY=VALUE"),
        (["fit", "--set", "data.size=tiny"], r"data.size: .*'tiny'"),
        (["fit", "--config", "quickstrat"], r"'quickstrat': no such file.*Did you mean 'quickstart'"),
        (["fit", "--data", "floder:x"], r"floder"),
        (["fit", "--data", "folder:/no/such/place"], r"/no/such/place"),
        (["fit", "--data", "digits", "--set", "model.backbone=resnet5"], r"backbone 'resnet5'.*Did you mean"),
        (["fit", "--data", "digits", "--set", "model.weights=lost.h5"], r"weights 'lost.h5': no such file"),
        (["find-lr", "--data", "digits", "--stage", "hed"], r"stage 'hed'.*'head'"),
        (["fit", "--resume", "nowhere"], r"run folder 'nowhere': holds no config.yaml.*start one"),
        (["fit", "--resume", "nowhere", "--log", "wandb"], r"--resume: .* no other option but --data and --set"),
        (["fit", "--resume", "nowhere", "--set", "seed=1"], r"resume: .* only runtime.devices, .* may change"),
    ],
)
def test_wrong_input_is_one_line_and_code_2(arguments, message, tmp_path, monkeypatch):
    """A wrong argument is named with its value, the rule and the remedy; nothing is written."""
    monkeypatch.chdir(tmp_path)
    assert re.search(message, fails(*arguments))
    assert not list(tmp_path.iterdir())


def test_another_backend_is_refused(monkeypatch):
    """A run on another Keras backend is refused in one line rather than trusted."""
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    assert "torch" in fails("fit", "--data", "digits")


def test_debug_shows_the_traceback():
    """`--debug` lets the exception through."""
    result = call("--debug", "fit", "--set", "data.sise=3")
    assert type(result.exception).__name__ == "ConfigError"


def test_doctor_tells_what_is_here_and_what_is_missing(tmp_path, monkeypatch):
    """`doctor` names versions and device, and says of data and weights whether they are here."""
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    result = call("doctor", "--set", f"data.data_dir={tmp_path}")
    assert result.exit_code == 0, result.output
    assert "keras" in result.stdout
    assert result.stdout.count("missing") == 2
    here = call("doctor", "--config", "quickstart")
    assert here.stdout.count("here:") == 2
    prepared = tmp_path / "cifar10" / "3.0.2"
    prepared.mkdir(parents=True)
    (prepared / "dataset_info.json").write_text("{}")
    assert call("doctor", "--set", f"data.data_dir={tmp_path}").stdout.count("missing") == 1


def test_fit_and_find_lr_write_their_folders(fit_in_a_shell, tmp_path):
    """The two commands run on digits, `fit` from the shell, print accuracy by step, and leave whole folders."""
    said = (fit_in_a_shell / "said.txt").read_text()
    for word in ("train_loss", "valid_loss", "images/s", "head", "tta", "suggested"):
        assert word in said, said
    assert {path.name for path in (fit_in_a_shell / "run").iterdir()} >= {"result.json", "model.keras", "lr_find.png"}
    sweep = ["find-lr", "--config", str(fit_in_a_shell / "recipe.yaml"), "--out", str(tmp_path / "sweep")]
    found = call(*sweep)
    assert found.exit_code == 0, found.output
    assert "valley" in found.stdout
    assert (tmp_path / "sweep" / "lr_find.csv").is_file()


MEMORY = ("LD_PRELOAD", "GLIBC_TUNABLES")
MADVISE, ALWAYS, NEVER = "always [madvise] never", "[always] madvise never", "always madvise [never]"
HUGE_PAGES = {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=1"}
PRELOADED = {"LD_PRELOAD": "libjemalloc.so.2"}


@pytest.mark.parametrize(
    ("linux", "before", "plugins", "after"),
    [
        (MADVISE, {}, [], HUGE_PAGES),
        (MADVISE, {"GLIBC_TUNABLES": "a.b=1"}, [], {"GLIBC_TUNABLES": "a.b=1:glibc.malloc.hugetlb=1"}),
        (MADVISE, {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}, [], {"GLIBC_TUNABLES": "glibc.malloc.hugetlb=0"}),
        (MADVISE, PRELOADED, [], PRELOADED),
        (MADVISE, {"LD_PRELOAD": "libother.so"}, [], {"LD_PRELOAD": "libother.so", **HUGE_PAGES}),
        (MADVISE, {}, ["cuda12"], {}),
        (ALWAYS, {}, [], {}),
        (NEVER, {}, [], {}),
        (None, {}, [], {}),
    ],
)
def test_huge_pages_are_asked_for(
    linux: str | None, before: dict[str, str], plugins: list[str], after: dict[str, str], tmp_path: Path
):
    """Golden: the process starts anew, once and with its arguments, only where that is how huge pages are had."""
    file = tmp_path / "enabled"
    if linux is not None:
        file.write_text(linux)
    script = (
        "import importlib.metadata, json, os, sys; from pathlib import Path; from kbaseline.devices import memory\n"
        f"memory._LINUX = Path({str(file)!r}); importlib.metadata.entry_points = lambda group: {plugins}\n"
        "memory.ask_for_huge_pages()\n"
        f"found = {{name: os.environ[name] for name in {MEMORY} if name in os.environ}}\n"
        "print(json.dumps([os.getpid(), sys.argv[1:], found]))"
    )
    environment = {name: value for name, value in os.environ.items() if name not in MEMORY} | before
    command = [sys.executable, "-c", script, "fit", "an argument"]
    # ld.so says on stderr that a library is not here.
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            said = process.communicate(timeout=120)[0]
        finally:
            process.kill()  # one that starts anew for ever
    assert process.returncode == 0
    assert json.loads(said) == [process.pid, ["fit", "an argument"], after]


@pytest.mark.parametrize(
    ("environment", "source"),
    [
        ({}, "glibc"),
        (HUGE_PAGES, "glibc, in huge pages"),
        (PRELOADED, "libjemalloc.so.2"),
        ({"LD_PRELOAD": "libother.so:libjemalloc.so.2"}, "libjemalloc.so.2"),
    ],
)
def test_doctor_names_the_allocator(environment: dict[str, str], source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: the allocator, and whether its pages are huge."""
    monkeypatch.setattr(platform, "libc_ver", lambda: ("glibc", "2.36"))
    for name in MEMORY:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert re.search(rf"allocator +{source} *\n", call("doctor", "--config", "quickstart").stdout)


@pytest.mark.parametrize(
    ("arguments", "asks"), [(["config"], True), (["--debug", "fit"], True), (["fit", "--help"], False), ([], False)]
)
def test_help_does_not_start_anew(arguments: list[str], asks: bool, monkeypatch: pytest.MonkeyPatch):
    """Golden: a command asks for huge pages before it begins; `--help` stays instant."""
    told: list[str] = []
    monkeypatch.setattr(launch, "ask_for_huge_pages", lambda: told.append("asked"))
    monkeypatch.setattr(launch, "main", lambda: told.append("began"))
    monkeypatch.setattr(sys, "argv", ["kbaseline", *arguments])
    launch.program()
    assert told == ["asked", "began"][not asks :]
