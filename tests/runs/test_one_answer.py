"""One photo, one answer: whatever is in the call beside it, and whoever asks."""

import io
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_run import save_doubt

import kbaseline
from kbaseline.commands.predict import predict_files
from kbaseline.data.decode import decode
from kbaseline.export.export import export_run
from kbaseline.export.formats import FORMATS
from kbaseline.models.classifier import build_classifier
from kbaseline.serve.predictor import Predictor

SIDE = 16


def save_photo(path: Path, height: int, width: int, mode: str = "RGB", **options: Any) -> Path:
    """A photo with edges at many scales, so that how it is shrunk can be seen."""
    rng = np.random.default_rng([height, width])
    coarse = rng.integers(0, 256, (3, 4, 3), dtype=np.uint8)
    pixels = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.NEAREST)).copy()
    pixels[::2, ::3] = 255 - pixels[::2, ::3]
    if mode == "I;16":
        Image.fromarray(pixels[..., 0].astype(np.uint16) * 257).save(path, **options)
    elif mode == "RGBA":
        alpha = rng.integers(0, 256, (height, width, 1), dtype=np.uint8)
        Image.fromarray(np.concatenate([pixels, alpha], axis=-1)).save(path, **options)
    else:
        Image.fromarray(pixels).convert(mode).save(path, **options)
    return path


def turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Smaller than, as large as, 1.5, 2.1 and 10 times as large as what the run takes, and of every kind of pixel."""
    folder = tmp_path_factory.mktemp("photos")
    sides = [(9, 9), (16, 16), (24, 24), (34, 34), (160, 160), (9, 21), (16, 30), (40, 24), (170, 95)]
    files = [save_photo(folder / f"{height}x{width}.png", height, width) for height, width in sides]
    files += [
        save_photo(folder / f"{mode.replace(';', '')}.png", 40, 57, mode) for mode in ("L", "I;16", "P", "LA", "RGBA")
    ]
    files.append(save_photo(folder / "cmyk.jpg", 90, 70, "CMYK", quality=95))
    files.append(save_photo(folder / "turned.jpg", 120, 50, quality=95, exif=turned()))
    files.append(save_photo(folder / "large.jpg", 400, 300, quality=95))
    return files


@pytest.fixture(scope="module", params=["crop", "squish"])
def run(request: Any, shared_run: Callable[..., Path], tiny_backbone: str) -> kbaseline.runs.run.SavedRun:
    """A run of three classes at 16 pixels, its weights drawn."""
    changes = {"data.size": SIDE, "data.resize": request.param, "data.batch_size": 4}
    folder = shared_run(request.param, image_size=(SIDE, SIDE), **changes)
    build_classifier(3, SIDE, tiny_backbone, hidden=16, seed=5).save(folder / "model.keras")
    if request.param == "crop":  # with and without
        save_doubt(folder, 32)
    return kbaseline.load(folder)


@pytest.mark.parametrize("tta", [False, True])
def test_alone_in_company_and_served(run, photos: list[Path], tta: bool, tmp_path: Path) -> None:
    """Invariant: a photo's probabilities are the same alone, among others, from another folder and served.

    Alone and served bit by bit; a batch of another size is another program, which may round the last bit otherwise.
    """
    together = predict_files(run, photos, tta=tta)
    assert together.bad == {}
    assert np.ptp(together.probabilities, axis=0).max() > 1e-3  # they do depend on the photo
    shutil.copy(photos[3], tmp_path / "elsewhere.png")
    with Predictor(run) as served:
        for photo, expected in zip(photos, together.probabilities, strict=True):
            alone = predict_files(run, [photo], tta=tta).probabilities[0]
            np.testing.assert_allclose(alone, expected, atol=1e-6, err_msg=photo.name)
            answer = served._predict_encoded(photo.read_bytes(), tta, 3)
            ranked = (answer["tta"] if tta else answer)["classes"]
            by_name = {one["name"]: one["probability"] for one in ranked}
            assert [by_name[name] for name in run.class_names] == [float(p) for p in alone], photo.name
            (row,) = predict_files(run, [photo], tta=tta).rows(3)
            assert (answer["tta"] if tta else answer)["set"] == row.get("set"), photo.name
            assert answer["unfamiliarity"] == row.get("unfamiliarity"), photo.name
    pair = predict_files(run, [photos[-1], tmp_path / "elsewhere.png"], tta=tta).probabilities[1]
    np.testing.assert_allclose(pair, together.probabilities[3], atol=1e-6)


def test_arrays_are_fitted_like_files(run, photos: list[Path]) -> None:
    """Invariant: the pixels of a PNG, given as an array, get the answer of the file."""
    for photo in photos[:9]:
        with Image.open(photo) as image:
            pixels = np.asarray(image)[None]
        np.testing.assert_array_equal(run.predict(pixels)[0], predict_files(run, [photo]).probabilities[0])


def code_of(card: Path) -> str:
    (code,) = re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    return code


@pytest.mark.parametrize("kind", list(FORMATS))
def test_an_export_with_its_cards_code(kind: str, run, photos: list[Path], tmp_path: Path) -> None:
    """Reference: the card's `load_photo` gives the pixels of training bit by bit, and the file the answer to 1e-4."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("jax2onnx")
    done = export_run(run.folder, kind, tmp_path / "out")
    functions: dict[str, Any] = {}
    exec(code_of(done.card).split("\nphoto = load_photo")[0], functions)  # noqa: S102 - our own card
    predict, _ = FORMATS[kind].read(done.path)
    expected = predict_files(run, photos).probabilities
    for photo, wanted in zip(photos, expected, strict=True):
        pixels = functions["load_photo"](photo)
        np.testing.assert_array_equal(pixels, decode(photo, SIDE, SIDE, run.config.data.resize), err_msg=photo.name)
        np.testing.assert_allclose(predict(pixels[None])["probabilities"][0], wanted, atol=1e-4, err_msg=photo.name)


@pytest.mark.parametrize("kind", list(FORMATS))
@pytest.mark.parametrize("size", [(65, 65), (40, 31), (9, 50)])
def test_an_export_for_another_size_fits_photos_itself(
    kind: str, size: tuple[int, int], run, tmp_path: Path, rng: np.random.Generator
) -> None:
    """Reference: raw pixels of a size that divides by nothing get the answer that `predict` gives them."""
    if kind == "onnx":
        pytest.importorskip("onnxruntime")
        pytest.importorskip("jax2onnx")
    done = export_run(run.folder, kind, tmp_path / "out", input_size=size)
    predict, _ = FORMATS[kind].read(done.path)
    pixels = np.stack(
        [np.asarray(Image.open(io.BytesIO(save_bytes(*size)))), rng.integers(0, 256, (*size, 3), dtype=np.uint8)]
    )
    np.testing.assert_allclose(predict(pixels)["probabilities"], run.predict(pixels), atol=1e-4)


def save_bytes(height: int, width: int) -> bytes:
    file = io.BytesIO()
    save_photo(file, height, width, format="PNG")  # type: ignore[arg-type]
    return file.getvalue()
