"""The page of a run: what it says, that it needs nothing but itself, and that a real browser agrees."""

import base64
import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import browser
import keras
import numpy as np
import pytest
from keras import layers
from PIL import Image
from rich.console import Console

from kbaseline.config.load import load_config
from kbaseline.console.format import percent
from kbaseline.data import ImageData
from kbaseline.data.pictures import File, FilePictures, Provenance
from kbaseline.doubt import fit_doubt
from kbaseline.lr_finder import LRCurve
from kbaseline.metrics import evaluate_predictions
from kbaseline.runs import report
from kbaseline.runs.record import fitted_temperatures
from kbaseline.runs.report import ReportData, render_report, write_report
from kbaseline.runs.results import Sweep, build_result
from kbaseline.storage.run_folder import RunFolder

EVIL = "<script>document.title='pwned'</script>"
NAMES = (EVIL, '"><img src=x onerror=alert(1)>', "&amp; $x_1$", "猫とてもかわいい", "a" * 120)
VOID = {"meta", "link", "img", "source", "br"}


def contents(names=NAMES, number=60, size=12, wrong=20, tta=True, split="valid", skipped=()):
    """A run of two stages, trained by nobody: `wrong` of its images are predicted wrong."""
    rng, classes = np.random.default_rng(7), len(names)
    labels = (np.arange(number) % classes).astype(np.int32)
    images = rng.integers(0, 256, (number, size, size, 3), dtype=np.uint8)
    data = ImageData.from_arrays((images, labels), (images, labels), class_names=names, source=f"folder:/x/{EVIL}")
    logits = rng.normal(size=(number, classes))
    # The first `wrong` images have another class in front, all others their own.
    logits[np.arange(number), (labels + (np.arange(number) < wrong)) % classes] += 9
    plain = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    kinds = {"plain": plain} | ({"tta": 0.9 * plain + 0.1 / classes} if tta else {})
    found = {kind: evaluate_predictions(p, labels, names) for kind, p in kinds.items()}
    evaluations = {"valid": found} | ({split: found} if split != "valid" else {})
    image = keras.Input((None, None, 3), dtype="uint8")
    x = layers.Conv2D(4, 3, 2, activation="relu")(layers.Rescaling(1 / 255)(image))
    model = keras.Model(image, layers.Dense(classes)(layers.GlobalAveragePooling2D()(x)))
    seconds = {"data": 1.0, "head": 61.0, "finetune": 30.0, "valid tta": 2.0, "test tta": 3.0}
    curve = LRCurve(np.geomspace(1e-7, 1, 30), np.linspace(3, 1, 30), np.linspace(3, 1, 30))
    data = replace(data, skipped=tuple(skipped), test=data.valid if split == "test" else None)
    config = load_config({"name": "trial", "data": {"size": size}, "model": {"backbone": f"{EVIL}.keras"}})
    sweeps = {"head": Sweep(curve, {"valley": 1e-3}, 2e-3), "finetune": Sweep(curve, {})}
    stages = {"head": 0.5, "finetune": 0.625}
    history = [
        {
            **{"stage": stage, "epoch": 1, "train_loss": 2.5, "valid_loss": 1.25, "accuracy": accuracy},
            **{"images_per_s": 1234.4, "seconds": 9.0},
        }
        for stage, accuracy in stages.items()
    ]
    result = build_result(
        stages=stages,
        evaluations=evaluations,
        sweeps=sweeps,
        history=history,
        seconds=seconds,
        data=data,
        config=config,
        folder=Path("runs/trial"),
    )
    applied = [{"stage": "head", "step": i, "lr": 1e-3 * i, "momentum": 0.9} for i in range(8)]
    probabilities = {kind: one.probabilities for kind, one in found.items()}
    features = rng.normal(size=(2, number, 8))
    temperatures = fitted_temperatures(found, config.data)
    doubt = fit_doubt(temperatures, probabilities, labels, features[0], labels, features[1])
    return ReportData(result, config, data, model, evaluations, sweeps, applied, doubt)


class Page(HTMLParser):
    """Elements, text and nesting of a page."""

    def __init__(self, html):
        super().__init__()
        self.elements, self.open, self.words = [], [], []
        self.feed(html)
        self.close()
        assert self.open == []
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" not in self.open:
            self.words.append(data)

    def all(self, *tags):
        return [attributes for tag, attributes in self.elements if tag in tags]


@pytest.fixture(scope="module")
def run():
    return contents()


@pytest.fixture(scope="module")
def html(run):
    return render_report(run)


@pytest.fixture(scope="module")
def page(html):
    return Page(html)


def test_the_page_needs_nothing_but_itself(html, page):
    """Invariant: every picture is a data URI; no script, no style sheet, no address of the network."""
    sources = [image["src"] for image in page.all("img")]
    assert len(sources) > 50
    assert all(re.fullmatch(r"data:image/(png|jpeg|svg\+xml);base64,[A-Za-z0-9+/=]+", source) for source in sources)
    assert [link["href"] for link in page.all("link")] == ["data:,"]
    assert not page.all("script", "iframe", "object", "embed", "form", "base")
    assert not [name for _, attributes in page.elements for name in attributes if name.startswith("on")]
    assert not re.search(r"https?://|url\(|@import", html)
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_whatever_a_name_holds_is_text(html, page):
    """Invariant: markup in the names of classes, data and backbone is shown, and never becomes an element."""
    assert "<script" not in html
    assert "onerror" not in {name for _, attributes in page.elements for name in attributes}
    for name in (*NAMES, f"{EVIL}.keras, weights auto", f"folder:/x/{EVIL}"):
        assert name in page.text


def test_everyone_can_read_it(page):
    """Accessible: language, viewport, one h1, headings without gaps, alternative texts, links that lead somewhere."""
    assert page.all("html") == [{"lang": "en"}]
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    assert all(image.get("alt", "").strip() for image in page.all("img"))
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(set(names)) == len(names)
    assert {link["href"][1:] for link in page.all("a")} <= set(names)


def test_figures_are_those_of_the_last_step(run, page):
    """Reference: accuracy and wrong images counted here, from the augmented probabilities."""
    probabilities, labels = run.evaluations["valid"]["tta"].probabilities, run.evaluations["valid"]["tta"].labels
    right = int((probabilities.argmax(axis=1) == labels).sum())
    assert right == 40
    low, high = run.evaluations["valid"]["tta"].interval
    assert (
        f"{100 * right / 60:.2f} % of 60 validation images are correct with test-time augmentation, 20 wrong"
        in page.text
    )
    assert f"The 95 % interval is {100 * low:.2f} – {100 * high:.2f} %" in page.text
    assert (
        "head 50.00 % 50.00 % 01:01 1,234 finetune 62.50 % 37.50 % 00:30 1,234 tta 66.67 % 33.33 % 00:02 -" in page.text
    )
    assert "corrected 0 predictions and broke 0" in page.text
    assert "head 1 2.5000 1.2500 50.00 % 1,234 00:09" in page.text
    assert " ".join(run.config.to_yaml().split()) in page.text
    assert "the rate chosen is 2.0e-03" in {image["alt"].split("; ")[-1].rstrip(".") for image in page.all("img")}


def test_doubt_is_counted_on_the_images_shown(run, page):
    """Reference: temperature, and sets counted here, image by image; 60 images show 95 and 98.4 % of familiar ones."""
    p, labels = run.evaluations["valid"]["tta"].probabilities, run.evaluations["valid"]["tta"].labels
    temperature = run.evaluations["valid"]["tta"].calibration.temperature
    scaled = p.astype(float) ** (1 / temperature)
    scaled /= scaled.sum(axis=1, keepdims=True)
    assert f"temperature of the probabilities: {temperature:.2f} " in page.text
    assert "unfamiliarity above 1: at most 2 of 60 validation images" in page.text
    assert re.search(r"unfamiliarity above 1\.\d+: at most 0 of 60 validation images", page.text)
    for level in (0.9, 0.95):
        threshold = run.doubt.thresholds["tta"][level]
        sets = [{int(row.argmax())} | set(np.flatnonzero(row >= threshold * (1 - 1e-6))) for row in scaled]
        size = np.mean([len(inside) for inside in sets])
        right = np.mean([label in inside for label, inside in zip(labels, sets, strict=True)])
        assert right >= level
        assert f"{100 * level:g} % {threshold:.4f} {size:.2f} {percent(right)}" in page.text
    assert "Doubt" not in Page(render_report(replace(run, doubt=None))).text


def cards(html, section):
    """Of each picture card: the numbers of its image and its probabilities, and its pictures."""
    body = html.split(f'<section id="{section}">')[1].split("</section>")[0]
    for card in body.split('<li class="card">')[1:]:
        index = int(re.search(r'<figcaption title="image \d+">image (\d+)<', card).group(1))
        yield index, re.findall(r"([\d.]+ %)</dd>", card), re.findall(r'src="([^"]+)"', card)


def test_worst_mistakes_come_first_with_their_own_pixels(run, html):
    """Reference: the wrong images by the probability of their class, each with its pixels and two heat maps."""
    p, labels = run.evaluations["valid"]["tta"].probabilities, run.evaluations["valid"]["tta"].labels
    own = p[np.arange(60), labels]
    expected = sorted(np.flatnonzero(p.argmax(axis=1) != labels), key=lambda i: own[i])[:12]
    found = list(cards(html, "mistakes"))
    assert [index for index, *_ in found] == expected
    for index, probabilities, sources in found:
        assert probabilities == [percent(p[index].max()), percent(own[index])]
        assert [source[:15] for source in sources] == ["data:image/png;", "data:image/jpeg", "data:image/jpeg"]
        with Image.open(io.BytesIO(base64.b64decode(sources[0].split(",")[1]))) as image:
            np.testing.assert_array_equal(np.asarray(image), run.data.valid.images[index])


def test_images_from_files_are_called_by_them(run):
    """Golden: every picture's caption is its file's path, as text, so that a wrong label can be put right."""
    count = len(run.data.valid)
    files = FilePictures(Path("photos"), [File(f"<b>/{number}.png", 0, 0) for number in range(count)])
    provenance = Provenance(files, np.arange(count)[::-1], np.zeros(count, np.uint64))
    valid = replace(run.data.valid, provenance=provenance)
    page = render_report(replace(run, data=replace(run.data, valid=valid)))
    named = re.findall(r'<figcaption title="&lt;b&gt;/(\d+).png">&lt;b&gt;/\1.png<', page)
    shown = [index for part in ("mistakes", "uncertain") for index, *_ in cards(render_report(run), part)]
    assert [int(number) for number in named] == [count - 1 - index for index in shown]


def test_least_certain_come_first(run, html):
    """Reference: images by their highest probability, the lowest first; right ones say so."""
    top = run.evaluations["valid"]["tta"].probabilities.max(axis=1)
    assert [index for index, *_ in cards(html, "uncertain")] == np.argsort(top, kind="stable")[:12].tolist()


def test_heat_maps_are_of_the_named_and_the_true_class(run, monkeypatch):
    """Invariant: Grad-CAM is asked about the prediction of the last step, then about the truth, of the worst images."""
    asked = []

    def fake(model, images, classes):
        asked.extend(zip(images, classes, strict=True))
        return np.zeros((len(images), 2, 2))

    monkeypatch.setattr("kbaseline.runs.examples.grad_cam", fake)
    page = render_report(run)
    p, labels = run.evaluations["valid"]["tta"].probabilities, run.evaluations["valid"]["tta"].labels
    worst = [index for index, *_ in cards(page, "mistakes")]
    assert [label for _, label in asked] == [*p[worst].argmax(axis=1), *labels[worst]]
    np.testing.assert_array_equal([image for image, _ in asked], run.data.valid.images[[*worst, *worst]])


def test_a_perfect_run_without_tta_on_a_test_split():
    """Nothing wrong, no augmentation, no sweep: the page says so, and names the split that decides."""
    bare = replace(contents(wrong=0, tta=False, split="test"), sweeps={})
    page = Page(render_report(bare))
    assert "of 60 test images are correct, 0 wrong" in page.text
    assert "every test image is predicted correctly" in page.text
    assert "augmentation" not in page.text
    assert "Learning-rate finder" not in page.text
    assert "Most confused" not in page.text


def test_a_thousand_classes_stay_bounded():
    """Golden: 1,000 classes, large images and 5,000 unreadable ones: under 2 MB, and what is left out is said."""
    names = [f"class {i}" for i in range(1000)]
    html = render_report(contents(names, 1000, size=70, wrong=400, skipped=[f"bad-{i}.jpg" for i in range(5000)]))
    page = Page(html)
    assert len(html) < 2_000_000
    assert "The 50 of 1,000 classes with the lowest F1" in page.text
    assert "The 12 of 400 wrong images" in page.text
    assert "Left out or missing: 5,000" in page.text
    assert page.text.count("bad-") == 100
    assert len(re.findall(r"class \d+( [\d.]+ %){3} 1\b", page.text)) == 50


def test_a_page_that_cannot_be_drawn_costs_a_line(run, tmp_path, monkeypatch):
    """The run goes on; the line names the reason; no half page is left."""

    def fails(_):
        raise ValueError("no\nsuch font")

    monkeypatch.setattr(report, "render_report", fails)
    text = io.StringIO()
    write_report(RunFolder(tmp_path), run, Console(file=text, width=40))
    assert text.getvalue() == ("report.html: not written (ValueError: no such font); result.json has all results\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(None in browser.PROGRAMS, reason="Chromium and chromedriver are not installed")
@pytest.mark.parametrize(("width", "dark"), [(360, True), (1280, False)])
def test_a_real_browser_shows_it(html, tmp_path, width, dark):
    """In Chromium: no error in the console, every picture there, the text there, nothing sticks out sideways."""
    file = tmp_path / "report.html"
    file.write_text(html, encoding="utf-8")
    with browser.Browser(tmp_path / "profile", width, dark) as chromium:
        chromium.open(file.as_uri())
        chromium.run("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert chromium.console() == []
        missing = "return [...document.images].filter(i => !i.complete || !i.naturalWidth).map(i => i.alt)"
        assert chromium.run(missing) == []
        assert chromium.run("return document.images.length") > 50
        assert chromium.run("return document.documentElement.scrollWidth") == width
        outside = """return [...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll, .unseen')
            && (e.getBoundingClientRect().right > innerWidth || e.getBoundingClientRect().left < 0))
            .map(e => e.outerHTML.slice(0, 80))"""
        assert chromium.run(outside) == []
        words = chromium.run("return document.body.innerText")
        assert "66.67 %" in words
        assert EVIL in words
        assert chromium.run("return document.title") == "trial: 66.67 %"
        colour = chromium.run("return getComputedStyle(document.body).backgroundColor")
        assert colour == ("rgb(15, 15, 17)" if dark else "rgb(246, 246, 247)")
        inverted = chromium.run("return getComputedStyle(document.querySelector('.chart img')).filter")
        assert inverted == ("invert(1) hue-rotate(180deg)" if dark else "none")
