"""The public surface: every example in a docstring runs, and docstrings and pages name what is really there."""

import ast
import contextlib
import doctest
import io
import pkgutil
import re
from inspect import cleandoc
from pathlib import Path

import pytest
from small_run import save_quickstart

import kbaseline

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "docs/article.py"]
PACKAGE = Path(kbaseline.__file__).parent
MODULES = sorted(PACKAGE.rglob("*.py"))
RETURNED = ("metrics.Evaluation", "render.notebook.Table", "runs.inference.TTAResult", "runs.run.SavedRun")
RETURNED += ("training.history.History",)
"""Classes of what the public functions return, whose `help()` has an example too."""

BESIDE = ("gradcam.grad_cam", "lr_finder.LRCurve", "optimizer.layer_group_lrs")
"""Names that docs/parts.md shows and `__all__` does not hold."""


def assert_backend_is_chosen(code: str) -> None:
    """kbaseline comes before Keras, which takes TensorFlow where nothing has chosen, as here conftest.py has."""
    imports = re.findall(r"^ *(?:>>> )?(?:import|from) (keras|kbaseline)", code, flags=re.MULTILINE)
    assert imports[:1] != ["keras"], "import kbaseline first"


def problems(name: str) -> str:
    """Runs the example in a docstring as a user would who copied it, and says what came out otherwise than it shows."""
    text = pkgutil.resolve_name(f"kbaseline.{name}").__doc__
    assert_backend_is_chosen(text)
    example = doctest.DocTestParser().get_doctest(text, {}, name, None, None)
    assert example.examples, f"{name} has no example"
    said = io.StringIO()
    doctest.DocTestRunner(verbose=False).run(example, out=said.write)
    return said.getvalue()


@pytest.fixture(scope="module")
def quickstart(tmp_path_factory: pytest.TempPathFactory, tiny_backbone: str) -> tuple[Path, str]:
    """A folder in which `run_baseline`'s example has run, on a smaller network, and what was wrong with it."""
    folder = tmp_path_factory.mktemp("examples")
    save_quickstart(folder, tiny_backbone)
    with contextlib.chdir(folder):
        return folder, problems("run_baseline")


@pytest.mark.parametrize("name", [*kbaseline.__all__, *BESIDE, *RETURNED])
def test_examples_run(name: str, quickstart: tuple[Path, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden: the example of every public name runs by itself, and prints what it shows."""
    folder, of_run_baseline = quickstart
    monkeypatch.chdir(folder)
    found = of_run_baseline if name == "run_baseline" else problems(name)
    assert not found, found


def first_line(name: str) -> str:
    return cleandoc(getattr(kbaseline, name).__doc__).split("\n")[0]


def test_the_docs_list_the_public_names() -> None:
    """Golden: the table in parts.md is `__all__`, each name with the first line of its docstring."""
    page = (ROOT / "docs/parts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| (.*) \|$", page, flags=re.MULTILINE)
    assert rows == [(name, first_line(name)) for name in kbaseline.__all__]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_imports_or_names_exists(page: Path) -> None:
    """Invariant: pages import from kbaseline only names of `__all__`, and from its modules only what is there."""
    text = page.read_text(encoding="utf-8")
    imported = re.findall(r"^ *from (kbaseline[\w.]*) import ([\w, ]+)", text, flags=re.MULTILINE)
    for module, names in imported:
        for name in names.split(","):
            known = kbaseline.__all__ if module == "kbaseline" else vars(pkgutil.resolve_name(module))
            assert name.split()[0] in known, f"{page.name}: from {module} import {name}"
    lines = re.findall(r"^ *from kbaseline.*", text, flags=re.MULTILINE)
    assert len(imported) == len(lines), f"{page.name}: one of {lines} was not read"
    for dotted in re.findall(r"`(kbaseline(?:\.\w+)+)", text):
        pkgutil.resolve_name(dotted)


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda page: page.name
)
def test_pages_choose_the_backend(page: Path) -> None:
    """Invariant: no Python block imports Keras before kbaseline, so that it runs where KERAS_BACKEND is not set."""
    for block in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE):
        assert_backend_is_chosen(block)


def entries(doc: str, section: str) -> list[str]:
    """The names that the lines of a docstring's section begin with, one or several a line, without stars."""
    found = re.search(rf"^{section}:\n((?: {{4}}.*\n?|\n)+)", cleandoc(doc), flags=re.MULTILINE)
    lines = re.findall(r"^ {4}(\*{0,2}\w+(?:, \*{0,2}\w+)*):", found[1], flags=re.MULTILINE) if found else []
    return [name.lstrip("*") for line in lines for name in line.split(", ")]


def taken(node: ast.AST) -> tuple[str, list[str]] | None:
    """What a function or a class takes, after the section of a docstring where that stands."""
    match node:
        case ast.ClassDef() if any("dataclass" in ast.unparse(decorator) for decorator in node.decorator_list):
            return "Attributes", [item.target.id for item in node.body if isinstance(item, ast.AnnAssign)]
        case ast.ClassDef():
            made = [item for item in node.body if isinstance(item, ast.FunctionDef) and item.name == "__init__"]
            return taken(made[0]) if made else None
        case ast.FunctionDef(args=args) | ast.AsyncFunctionDef(args=args):
            every = (*args.posonlyargs, *args.args, args.vararg, *args.kwonlyargs, args.kwarg)
            return "Args", [arg.arg for arg in every if arg and arg.arg not in ("self", "cls")]
    return None


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_documented_parameters_are_those_taken(path: Path) -> None:
    """Invariant: where a docstring lists parameters, or fields of a dataclass, it lists all there are and no other."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if (found := taken(node)) and (named := entries(ast.get_docstring(node) or "", found[0])):
            assert sorted(named) == sorted(found[1]), f"{node.name}: {found[0]}"


@pytest.mark.parametrize("name", [*kbaseline.__all__, *BESIDE])
def test_public_names_document_their_parameters(name: str) -> None:
    """Invariant: none of them leaves the list out."""
    doc = pkgutil.resolve_name(f"kbaseline.{name}").__doc__
    assert entries(doc, "Args") or entries(doc, "Attributes")
