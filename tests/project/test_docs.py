"""The pages a reader follows: generated ones are current, blocks run, command lines exist, links lead somewhere."""

import contextlib
import itertools
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from click.testing import CliRunner

from kbaseline.cli import main
from kbaseline.cli.options import resolve
from kbaseline.config.load import load_config, parse_assignments
from kbaseline.config.schema import Config
from kbaseline.data import ImageData

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LOOKING = {"backbones", "compare", "config", "data", "doctor", "evaluate", "predict"}
"""Commands that are run wherever they stand; `fit` runs where docs/start.md says so."""


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[tuple[list[str], str]]:
    """Every command line of a page, as words, with the output that stands under it."""
    found = []
    for block in blocks(page, "console"):
        for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            line, _, output = part.partition("\n")
            words = shlex.split(line, comments=True)
            while "&&" in words:
                found.append((words[: words.index("&&")], ""))
                words = words[words.index("&&") + 1 :]
            found.append((words, output))
    return found


def masked(text: str) -> str:
    """The text without its numbers, which another processor may round otherwise."""
    return re.sub(r"[\d.,e+-]*\d", "#", text)


def test_generated_pages_are_current(tmp_path: Path) -> None:
    """Golden: cli.md, config.md and architecture.svg are what today's commands, schema and modules make."""
    program = ROOT / "docs/reference.py"
    done = subprocess.run([sys.executable, program, tmp_path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for made in sorted(tmp_path.iterdir()):
        committed = (ROOT / "docs" / made.name).read_text(encoding="utf-8")
        assert committed == made.read_text(encoding="utf-8"), f"docs/{made.name} is stale: run python docs/reference.py"
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    """Invariant: every relative link of a page is a file, and every place in it a heading."""
    for target, place in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", page.read_text(encoding="utf-8")):
        other = page.parent / target if target else page
        assert other.exists(), target
        headings = re.findall(r"^#+ (.*)$", other.read_text(encoding="utf-8"), re.MULTILINE) if place else []
        assert not place or place in {re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings}, place


@pytest.mark.parametrize("number", range(len(blocks(ROOT / "docs/parts.md", "python"))))
def test_each_part_runs_alone_and_prints_what_the_page_shows(number, capsys) -> None:
    """Golden: a block of parts.md runs in a namespace of its own; its output is the page's, apart from the digits."""
    page = ROOT / "docs/parts.md"
    exec(blocks(page, "python")[number], {"__name__": "__main__"})  # noqa: S102 - our own page
    assert masked(capsys.readouterr().out) == masked(blocks(page, "text")[number])


def test_the_recipe_in_keys_is_the_default() -> None:
    """Golden: the configuration that recipe.md shows is the built-in one, as it is for the article's images."""
    (block,) = blocks(ROOT / "docs/recipe.md", "yaml")
    import yaml

    assert load_config(yaml.safe_load(block)) == Config().with_train_bn(50_000)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_command_lines_exist(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Invariant: of every command line, the command, its options and its configuration are real ones."""
    monkeypatch.chdir(ROOT)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for words, _ in commands(page):
        match words:
            case ["kbaseline", name, *arguments]:
                given = main.commands[name].make_context(name, arguments).params
                if "assignments" in given:
                    resolve(given.get("config"), given.get("source"), given["assignments"])
            case ["pip", "install", *_, what]:
                extra = re.fullmatch(r"\.(?:\[(\w+)\])?", what)
                assert extra, what
                assert extra[1] in {None, *extras}
            case ["python", program, *_] if program != "-m":
                assert (ROOT / program).is_file(), program


@contextlib.contextmanager
def cifar10_made_up() -> Iterator[None]:
    """A world whose CIFAR-10 is noise in ten colours."""
    rng = np.random.default_rng(0)
    labels = np.arange(2000) % 10
    images = (
        rng.integers(0, 128, (2000, 32, 32, 3), dtype=np.uint8) + (labels * 12).astype(np.uint8)[:, None, None, None]
    )
    names = tuple("0123456789")
    made = ImageData.from_arrays((images[:20], labels[:20]), (images, labels), class_names=names, size=32)
    with mock.patch.object(ImageData, "from_source", lambda source, size: made if source == "tfds:cifar10" else 1 / 0):
        yield


@pytest.fixture(scope="module")
def followed(
    tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str
) -> tuple[Path, list[tuple[list[str], str, str]]]:
    """docs/start.md followed word by word in an empty folder: its path, and what each command says on paper and here.

    Only the network and the number of steps are smaller; the second `fit` is the first's folder with its own settings.
    """
    start, page, seen = tmp_path_factory.mktemp("start"), ROOT / "docs/start.md", []
    small = {"model.backbone": tiny_backbone, "model.weights": "auto", "lr_find.steps": 20, "data.limit": 200}
    small |= {"data.batch_size": 32, "stages.0.epochs": 2, "stages.1.epochs": 2, "tta.views": 1, "data.size": 16}
    smaller = [word for key, value in small.items() for word in ("--set", f"{key}={value}")]
    with contextlib.chdir(start):
        (block,) = blocks(page, "python")
        with cifar10_made_up():
            exec(block, {"__name__": "__main__"})  # noqa: S102 - our own page
        for words, on_paper in commands(page):
            if words[1] == "fit" and Path("runs/first").exists():
                folder = shutil.copytree("runs/first", words[-1])
                changes = [after for word, after in itertools.pairwise(words) if word == "--set"]
                config = load_config("runs/first/config.yaml", parse_assignments(changes))
                Path(folder, "config.yaml").write_text(config.to_yaml())
            elif words[0] == "kbaseline":
                here = CliRunner().invoke(main, words[1:] + smaller * (words[1] == "fit"))
                assert here.exit_code == 0, (words, here.output)
                seen.append((words, on_paper, here.output))
            elif words[0] == "find":
                subprocess.run(words, check=True)
    return start, seen


def test_start_can_be_followed(followed) -> None:
    """Golden: `kbaseline data` prints what start.md shows, letter by letter; the other commands use the same words."""
    for words, on_paper, here in followed[1]:
        if words[1] == "data":
            assert on_paper.strip() == here.strip()
        else:
            missing = set(re.findall(r"[a-z]{4,}", on_paper)) - set(re.findall(r"[a-z]{4,}", here))
            # The small network has another name, and names other classes.
            assert not missing - {"resnet", *(path.name for path in (followed[0] / "photos").iterdir())}, words


def test_commands_that_look_run_as_they_stand(followed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: every command line of every page that reads a run or a folder runs, where those are."""
    folder = followed[0]
    monkeypatch.chdir(folder)
    for name in ("baseline", "a", "b"):
        shutil.copytree("runs/first", f"runs/{name}")
    shutil.copytree("photos/deer", "more")
    shutil.copytree("photos", "new-photos")
    shutil.copy("photos/cat/cat-0.jpg", "photo.jpg")
    Path("labels.csv").write_text(
        "image,label\n" + "".join(f"photos/{n}/{n}-{i}.jpg,{n}\n" for n in ("cat", "deer") for i in (0, 2))
    )
    monkeypatch.setenv("KERAS_HOME", str(folder))
    ran = 0
    for words, _ in [line for page in PAGES if page.name != "start.md" for line in commands(page)]:
        if words[0] == "kbaseline" and words[1] in LOOKING:
            done = CliRunner().invoke(main, words[1:])
            assert done.exit_code == 0, (words, done.output)
            ran += 1
    assert ran > 5


def test_how_the_bundled_weights_were_taken_out(followed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: the block of pretrained.md takes a backbone's weights out of a run."""
    monkeypatch.chdir(followed[0])
    shutil.copytree("runs/first", "runs/pretrain-resnet20")
    Path("kbaseline/models/weights").mkdir(parents=True)
    (block,) = blocks(ROOT / "docs/pretrained.md", "python")
    exec(block, {})  # noqa: S102 - our own page
    assert Path("kbaseline/models/weights/resnet20_cifar10.weights.h5").stat().st_size > 1000


def test_readme_says_what_was_measured() -> None:
    """Golden: the README's accuracies and speeds are those the benchmarks wrote into results.md and performance.md."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    results = (ROOT / "docs/results.md").read_text(encoding="utf-8")
    steps = [float(found) for found in re.findall(r"^\| \d \|(?:[^|]*\|){2} ([\d.]+) \|", results, flags=re.MULTILINE)]
    *first, last = (f"{accuracy:.0f}" for accuracy in steps)
    assert f"interval: {', '.join(first)} and {last} %]" in readme
    speeds = (ROOT / "docs/performance.md").read_text(encoding="utf-8")
    rows = re.findall(
        r"^\| (?:head|everything)[^|]*\|[^|]*\|[^|]*\| ([\d.]+) \|[^|]*\| ([\d.]+) \|$", speeds, re.MULTILINE
    )
    assert len(rows) == 2
    keras, fastai = (sorted({f"{1 / float(ratio):.1f}" for ratio in side}) for side in zip(*rows, strict=True))
    row = next(line for line in readme.splitlines() if line.startswith("| relative training speed"))
    assert f"| 1 | {' – '.join(fastai)} |" in row
    assert f"| {' – '.join(keras)} (stock Keras) |" in row
