"""One file of any kind becomes right-side-up RGB of the wanted size, or a reason why not."""

import contextlib
import io
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageFile, PngImagePlugin

from kbaseline.data.decode import BadImageError, decode, kind, probe, quiet

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def quarters():
    """An 8x4 RGB image whose four quarters tell every turn and mirror apart."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:2, :4], pixels[:2, 4:], pixels[2:, :4], pixels[2:, 4:] = RED, GREEN, BLUE, WHITE
    return pixels


def saved(tmp_path, image, name, **options):
    path = tmp_path / name
    image.save(path, **options)
    return path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.gif", "a.tif", "a.TIFF", "a.webp"])
def test_lossless_formats_keep_every_pixel(tmp_path, name):
    """Golden value: what was saved without loss is read bit for bit when no resize is needed."""
    options = {"lossless": True} if name.endswith("webp") else {}
    path = saved(tmp_path, Image.fromarray(quarters()), name, **options)
    assert probe(path)[:2] == (4, 8)
    np.testing.assert_array_equal(decode(path, 4, 8, "squish"), quarters())


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "tif", "jpg"])
def test_exif_orientation_is_undone(tmp_path, orientation, suffix):
    """Whatever way the camera was held, the pixels come out right side up; the header has their size and the camera."""
    inverse = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: np.rot90(a, 1),
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
        8: lambda a: np.rot90(a, -1),
    }[orientation]
    upright = quarters().repeat(8, 0).repeat(8, 1)
    exif = Image.Exif()
    exif.update({0x0112: orientation, 0x010F: "Kodak", 0x0110: "Brownie"})
    stored = Image.fromarray(np.ascontiguousarray(inverse(upright)))
    path = saved(tmp_path, stored, f"a.{suffix}", exif=exif, **({"quality": 100} if suffix == "jpg" else {}))
    assert probe(path) == (32, 64, {"png": "PNG", "tif": "TIFF", "jpg": "JPEG"}[suffix], "Kodak Brownie")
    centres = decode(path, 32, 64, "squish")[8::16, 16::32]
    np.testing.assert_allclose(centres, upright[8::16, 16::32], atol=6)


def test_spoilt_exif_does_not_spoil_the_image(tmp_path):
    """Tags that make no sense are ignored; the pixels are good."""
    path = saved(tmp_path, Image.fromarray(quarters()), "a.jpg", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\xff", quality=95)
    with quiet():
        assert decode(path, 4, 8, "squish").shape == (4, 8, 3)


def test_alpha_is_composited_on_white(tmp_path):
    """Transparent is white, half transparent half way to it: alpha channel and palette alike."""
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, 1, 3], pixels[0, 2, 3] = 128, 255
    path = saved(tmp_path, Image.fromarray(pixels), "a.png")
    np.testing.assert_allclose(decode(path, 1, 3, "squish")[0, :, 0], [255, 127, 0], atol=1)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    path = saved(tmp_path, palette, "p.png", transparency=0)
    np.testing.assert_array_equal(decode(path, 1, 2, "squish")[0], [WHITE, (200, 100, 50)])


def test_sixteen_bit_grey_is_scaled(tmp_path):
    """0-65535 becomes 0-255 in proportion; clipping would make all but the first white."""
    grey = np.array([[0, 257 * 100, 65535]], np.uint16)
    for name in ("a.png", "a.tif"):
        rows = decode(saved(tmp_path, Image.fromarray(grey), name), 1, 3, "squish")
        np.testing.assert_array_equal(rows[0], [[0] * 3, [100] * 3, [255] * 3])


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width, height, depth, colour, pixels):
    """A PNG as Pillow does not write it: of any size, depth and colour type."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


def tiff16(width, height, pixels):
    """A little-endian TIFF of 16-bit RGB."""
    tags = {256: width, 257: height, 258: 134, 259: 1, 262: 2, 273: 140, 277: 3, 278: height, 279: len(pixels)}
    entries = [
        struct.pack("<HHII", tag, 4 if tag in (273, 279) else 3, 3 if tag == 258 else 1, value)
        for tag, value in tags.items()
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(entries) + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8) + directory.ljust(126, b"\0") + struct.pack("<HHH", 16, 16, 16) + pixels


@pytest.mark.parametrize("kind", ["png", "png alpha", "tif"])
def test_sixteen_bit_colour_keeps_the_high_byte(tmp_path, kind):
    """Golden: 16-bit RGB comes out as its high bytes; a transparent 16-bit pixel is white."""
    values = np.array([[65535, 0, 32896], [0, 65535, 257]])
    expected = [(255, 0, 128), (0, 255, 1)]
    if kind == "png":
        content = png(2, 1, 16, 2, b"\0" + values.astype(">u2").tobytes())
    elif kind == "tif":
        content = tiff16(2, 1, values.astype("<u2").tobytes())
    else:
        alpha = np.array([[65535], [0]])
        content = png(2, 1, 16, 6, b"\0" + np.hstack([values, alpha]).astype(">u2").tobytes())
        expected[1] = WHITE
    path = tmp_path / "a.png"
    path.write_bytes(content)
    assert [tuple(pixel) for pixel in decode(path, 1, 2, "squish")[0]] == expected


def test_float_grey_is_0_to_255(tmp_path):
    """Golden: float grey is taken as 0-255; 0-1, which would come out black, is refused."""
    assert (decode(saved(tmp_path, Image.new("F", (4, 4), 200.0), "a.tif"), 4, 4, "crop") == 200).all()
    for value, reason in ((0.7, "got 0-1"), (256.0, "got 256"), (-1.0, "got -1")):
        with pytest.raises(BadImageError, match=f"^values must lie in 0-255; {reason}"):
            decode(saved(tmp_path, Image.new("F", (4, 4), value), "b.tif"), 4, 4, "crop")


def test_the_content_decides_not_the_name(tmp_path):
    """Golden: a GIF called .jpg, as sites give for a photo that is gone, is read as the GIF it is, and says so."""
    path = tmp_path / "gone.jpg"
    Image.fromarray(quarters()).save(path, "GIF")
    assert probe(path) == (4, 8, "GIF", "")
    np.testing.assert_array_equal(decode(path, 4, 8, "squish"), quarters())


def test_cmyk_and_grey_become_rgb(tmp_path):
    """Other colour models are converted, not read as RGB."""
    ink = saved(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "a.jpg", quality=100)
    np.testing.assert_allclose(decode(ink, 8, 8, "squish")[4, 4], (0, 255, 255), atol=6)
    raw = saved(tmp_path, Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "a.tif")
    np.testing.assert_array_equal(decode(raw, 8, 8, "squish")[4, 4], (0, 255, 255))
    grey = saved(tmp_path, Image.new("L", (8, 8), 77), "b.png")
    np.testing.assert_array_equal(decode(grey, 8, 8, "squish")[4, 4], (77, 77, 77))


def test_first_frame_of_an_animation(tmp_path):
    """Of an animated GIF the first frame is the image."""
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, BLUE)]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    np.testing.assert_array_equal(decode(path, 8, 8, "squish")[0, 0], RED)


def test_crop_keeps_the_aspect_and_squish_does_not():
    """Crop shows the centre square only; squish shows everything, narrowed."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :20], pixels[:, 60:] = RED, BLUE
    pixels[:, 20:60] = GREEN

    def centre_row(resize):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        return decode(file, 20, 20, resize)[10]

    assert (centre_row("crop")[1:-1] == GREEN).all()
    assert tuple(centre_row("squish")[0]) == RED
    assert tuple(centre_row("squish")[-1]) == BLUE
    assert (centre_row("squish")[6:14] == GREEN).all()


def test_crop_without_resize_copies_pixels():
    """Where the centre square has the wanted size already, its pixels are the source's own."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    np.testing.assert_array_equal(decode(file, 5, 5, "crop"), pixels[:, 1:6])


def test_shrinking_averages():
    """A fine chequerboard shrinks to grey: the resize is antialiased, not picked pixels."""
    board = (np.indices((256, 256)).sum(0) % 2 * 255).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(board).save(file, "PNG")
    small = decode(file, 16, 16, "squish").astype(int)
    assert abs(small[2:-2, 2:-2] - 128).max() < 8


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file is empty"),
        (b"hello, I am text\n" * 9, "not an image that Pillow can read"),
        ("half", "truncated"),
        ("bomb", "Pillow's limit"),
    ],
)
def test_bad_images_have_a_reason(tmp_path, monkeypatch, content, reason):
    """What cannot be read says why, in one line without the file's name."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, "JPEG")
    path = tmp_path / "a.jpg"
    path.write_bytes({"half": file.getvalue()[:900], "bomb": file.getvalue()}.get(content, content))
    if content == "bomb":
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImageError, match=reason) as caught:
        decode(path, 8, 8, "crop")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) not in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_files_are_bad(kind, share):
    """Invariant: of no format the rest of a file that was cut passes for the image."""
    file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(file, kind)
    content = file.getvalue()
    with quiet(), pytest.raises(BadImageError):
        decode(io.BytesIO(content[: int(share * len(content))]), 8, 8, "crop")


def bomb(kind):
    """A file of a few hundred bytes that says it holds 40,000 x 40,000 pixels."""
    side = struct.pack("<HH", 40_000, 40_000)
    if kind == "png":
        return png(40_000, 40_000, 8, 2, b"")
    if kind == "tif":
        return tiff16(40_000, 40_000, b"\0" * 64)
    if kind == "gif":
        return b"GIF89a" + side + b"\x80\0\0" + bytes(6) + b",\0\0\0\0" + side + b"\0\2\2L\1\0;"
    if kind == "bmp":
        info = struct.pack("<IiiHHIIiiII", 40, 40_000, 40_000, 1, 24, 0, 0, 0, 0, 0, 0)
        return b"BM" + struct.pack("<IHHI", 154, 0, 0, 54) + info + bytes(100)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "JPEG")
    content = bytearray(file.getvalue())
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", 40_000, 40_000)
    return bytes(content)


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "bmp", "tif"])
def test_a_bomb_is_refused_by_its_header(tmp_path, monkeypatch, kind):
    """Invariant: 40,000 x 40,000 pixels are refused before room for them is asked for."""

    def never(*_):
        raise AssertionError("pixels were read")

    monkeypatch.setattr(ImageFile.ImageFile, "load", never)
    monkeypatch.setattr(ImageFile.ImageFile, "load_prepare", never)
    path = tmp_path / f"bomb.{kind}"
    path.write_bytes(bomb(kind))
    for read in (probe, lambda file: decode(file, 8, 8, "crop")):
        with pytest.raises(BadImageError, match="Pillow's limit against decompression bombs"):
            read(path)


def test_missing_file_has_a_reason(tmp_path):
    """A link that leads nowhere is a bad image, not a crash."""
    with pytest.raises(BadImageError, match="no such file"):
        decode(tmp_path / "a.jpg", 8, 8, "crop")


def test_no_other_program_is_started(tmp_path, monkeypatch):
    """Invariant: a PostScript file under an image's name is refused; Pillow would have Ghostscript run it."""
    from PIL import EpsImagePlugin

    def never(*_, **__):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", never)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "EPS")
    for read in (probe, lambda file: decode(file, 8, 8, "crop")):
        with pytest.raises(BadImageError, match="not an image that Pillow can read"):
            read(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt", b"iCCP"])
def test_a_bomb_in_a_text_is_not_unpacked(kind):
    """Invariant: a PNG whose text or profile unpacks to 200 million bytes is read or refused, in a few of them."""
    text = zlib.compress(bytes(200_000_000), 9)
    head = {b"zTXt": b"Comment\0\0", b"iTXt": b"Comment\0\1\0\0\0", b"iCCP": b"icc\0\0"}[kind]
    plain = png(8, 8, 8, 2, bytes(8 * 25))
    bomb = plain[:33] + chunk(kind, head + text) + plain[33:]
    tracemalloc.start()
    try:
        with quiet(), contextlib.suppress(BadImageError):
            decode(io.BytesIO(bomb), 8, 8, "crop")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def test_silly_tags_of_a_tiff_ask_for_no_memory():
    """Invariant: a TIFF whose tags claim 2^32 - 1 strips, values or tile sides is refused; no room is made for them."""
    whole = tiff16(8, 8, bytes(8 * 8 * 6))
    (at,) = struct.unpack_from("<I", whole, 4)
    (count,) = struct.unpack_from("<H", whole, at)
    tracemalloc.start()
    try:
        for entry in range(count):
            for place in (4, 8):  # The number of values; the value, or where it stands.
                spoilt = bytearray(whole)
                struct.pack_into("<I", spoilt, at + 2 + 12 * entry + place, 2**32 - 1)
                with quiet(), contextlib.suppress(BadImageError):
                    decode(io.BytesIO(bytes(spoilt)), 8, 8, "crop")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


def encoded(image, format_, **options):
    file = io.BytesIO()
    image.save(file, format_, **options)
    return file.getvalue()


NOISE = np.random.default_rng(0).integers(0, 256, (32, 48, 3), dtype=np.uint8)


def read(content, resize="squish"):
    """Decodes at the image's own size."""
    file = io.BytesIO(content)
    with quiet():
        return decode(file, *probe(file)[:2], resize)


@pytest.mark.parametrize("damage", ["bit", "zeros", "zeros at the end", "palette", "transparency"])
def test_a_png_with_a_wrong_checksum_is_refused(damage):
    """Pillow tests no checksum of pixels and gives junk; here the image is refused and the damage named."""
    image = Image.fromarray(NOISE)
    if damage in ("palette", "transparency"):
        image = image.quantize(16)
        image.info["transparency"] = 3
    content = bytearray(encoded(image, "PNG", compress_level=0))
    if damage == "bit":
        content[len(content) // 2] ^= 4
    elif damage.startswith("zeros"):
        begin = len(content) // 2 if damage == "zeros" else len(content) - 20
        content[begin:] = bytes(len(content) - begin)
    else:
        content[content.index({"palette": b"PLTE", "transparency": b"tRNS"}[damage]) + 4] ^= 4
    with pytest.raises(BadImageError, match=r"the PNG is damaged: its \w{4} is cut off or has a wrong checksum"):
        read(bytes(content))


def test_the_texts_of_a_png_do_not_matter():
    """Golden: texts that are long, long once unpacked or spoilt leave the pixels as they are."""
    plain, info = encoded(Image.fromarray(NOISE), "PNG"), PngImagePlugin.PngInfo()
    info.add_text("prompt", "masterpiece, " * 200_000, zip=True)
    info.add_itxt("XML:com.adobe.xmp", "history " * 200_000, zip=True)
    long = encoded(Image.fromarray(NOISE), "PNG", pnginfo=info)
    spoilt = plain[:33] + struct.pack(">I", 5) + b"tEXta\0bcd" + b"sums" + plain[33:]
    cut = plain[:-12] + struct.pack(">I", 5_000) + b"tEXta\0bcd"
    for content in (long, spoilt, cut, plain[:-12], plain + bytes(5_000)):
        np.testing.assert_array_equal(read(content), NOISE)


def test_exif_behind_the_pixels_of_a_png_counts():
    """Header and pixels agree on which side is up, wherever the tag stands."""
    exif = Image.Exif()
    exif[0x0112] = 6
    plain = encoded(Image.fromarray(NOISE), "PNG")
    content = plain[:-12] + chunk(b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0")) + plain[-12:]
    np.testing.assert_array_equal(read(content), np.rot90(NOISE, -1))


def test_a_transparent_value_of_16_bits_is_white():
    """Golden: of a grey PNG that value and no other; in colours, where Pillow sees 8 bits of it, it is refused."""
    see_through = chunk(b"tRNS", struct.pack(">H", 30_000))
    plain = png(3, 1, 16, 0, b"\0" + np.array([30_000, 30_001, 65_535], ">u2").tobytes())
    np.testing.assert_array_equal(read(plain[:33] + see_through + plain[33:])[0, :, 0], [255, 117, 255])
    plain = png(1, 1, 16, 2, b"\0" + np.array([30_000, 30_001, 65_535], ">u2").tobytes())
    with pytest.raises(BadImageError, match="16-bit colours, one of which is transparent"):
        read(plain[:33] + chunk(b"tRNS", bytes(6)) + plain[33:])


@pytest.mark.parametrize("alpha", [0, 255])
def test_a_bitmap_whose_fourth_byte_is_zero_is_opaque(alpha):
    """Many programs leave it zero; the image would be all white."""
    four = np.dstack([NOISE, np.full(NOISE.shape[:2], alpha, np.uint8)])
    np.testing.assert_array_equal(read(encoded(Image.fromarray(four), "BMP")), NOISE)


def tiff(values, photometric="rgb", **options):
    """A TIFF as tifffile writes it."""
    file = io.BytesIO()
    tifffile.imwrite(file, values, photometric=photometric, **options)
    return file.getvalue()


def in_full(dtype):
    """`NOISE` as integers of another type, scaled to the whole of its range; as floats it stays."""
    if np.dtype(dtype).kind == "f":
        return NOISE.astype(dtype)
    return (NOISE.astype(np.float64) * (np.iinfo(dtype).max / 255)).astype(dtype)


@pytest.mark.parametrize("compression", [None, "zlib"])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "uint16", "int16", "uint32", "float16", "float32", "float64"])
def test_every_number_of_a_tiff(dtype, order, compression):
    """Golden: grey and colours, in one plane or three, white at either end, tiled or not, give the same pixels."""
    colours = in_full(dtype)
    grey = colours[..., 0]
    white = 255 if colours.dtype.kind == "f" else np.iinfo(dtype).max
    options = {"byteorder": order, "compression": compression}
    most = 2 if dtype == "int8" else 1
    planes = np.moveaxis(colours, -1, 0)
    predicted = [tiff(colours, predictor=True, **options)] if compression and "int" in dtype else []
    for content in (
        tiff(colours, planarconfig="contig", **options),
        tiff(planes, planarconfig="separate", **options),
        tiff(planes, planarconfig="separate", tile=(16, 16), **options),
        *predicted,
    ):
        np.testing.assert_allclose(read(content).astype(int), NOISE, atol=most)
    for content in (tiff(grey, "minisblack", **options), tiff(white - grey, "miniswhite", **options)):
        np.testing.assert_allclose(read(content).astype(int), NOISE[..., :1].repeat(3, -1), atol=most)


@pytest.mark.parametrize("kind_", ["unassalpha", "assocalpha"])
@pytest.mark.parametrize("planes", ["contig", "separate"])
@pytest.mark.parametrize("dtype", ["uint8", "uint16"])
def test_alpha_of_a_tiff(dtype, planes, kind_):
    """Golden: grey and colours on white, the alpha in a plane of its own or not, in the colours or not."""
    for colours, photometric in ((NOISE, "rgb"), (NOISE[..., :1], "minisblack")):
        alpha = np.full((32, 48, 1), 51.0)
        stored = colours * (alpha / 255 if kind_ == "assocalpha" else 1)
        values = np.rint(np.dstack([stored, alpha]) * (1 if dtype == "uint8" else 257)).astype(dtype)
        arranged = values if planes == "contig" else np.moveaxis(values, -1, 0)
        content = tiff(arranged, photometric, planarconfig=planes, extrasamples=[kind_])
        expected = np.broadcast_to(colours * 0.2 + 255 * 0.8, NOISE.shape)
        np.testing.assert_allclose(read(content), expected, atol=1.1)


def test_orientation_of_a_tiff_that_pillow_cannot_read():
    """The same turn as of any other."""
    planes = np.moveaxis(in_full("uint16"), -1, 0)
    content = tiff(planes, planarconfig="separate", extratags=[(0x0112, 3, 1, 6, True)])
    np.testing.assert_allclose(read(content).astype(int), np.rot90(NOISE, -1), atol=1)


def test_twelve_bits():
    """Golden: 12 bits that a TIFF declares are scaled by 12, not by 16."""
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 273: 122, 277: 1, 278: 1, 279: 3}
    entries = b"".join(struct.pack("<HHII", tag, 3, 1, value) for tag, value in tags.items())
    content = b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4) + b"\xff\xf8\0"
    np.testing.assert_array_equal(read(content)[0, :, 0], [255, 128])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (encoded(Image.fromarray(NOISE[..., 0].astype(np.uint16) * 16), "PNG"), "values reach 6.2% of white, 65535"),
        (tiff(NOISE[..., 0].astype(np.uint16) * 16, "minisblack"), "values reach 6.2% of white, 65535"),
        (tiff(NOISE.astype(np.uint16) * 16), "values reach [56].[28]% of white"),
        (tiff(NOISE.astype(np.uint16) * 16, compression="zlib"), "values reach [56].[28]% of white"),
        (
            b"P6 48 32 65535\n" + (NOISE.astype(np.uint16) * 16).astype(">u2").tobytes(),
            "values reach [56].[28]% of white",
        ),
        (png(1, 1, 16, 6, b"\0" + np.array([400, 9, 9, 65_535], ">u2").tobytes()), "values reach 0.4% of white, 65535"),
        (tiff(NOISE.astype(np.uint32), "rgb"), "values reach 0.0% of white, 4294967295"),
        (tiff(-in_full("int16")), "values must lie in 0-32767; got -32767"),
        (tiff(NOISE / np.float32(255)), "values must lie in 0-255; got 0-1"),
        (tiff(np.dstack([NOISE, NOISE[..., 0]]), "minisblack", planarconfig="contig"), "no word on which are red"),
        (
            tiff(np.dstack([NOISE, NOISE[..., 0]]).astype(np.float32), extrasamples=["unassalpha"]),
            "floats with an al",
        ),
        (tiff(np.dstack([in_full("int16")] * 2)[..., :4], "separated"), "convert it to 8-bit RGB"),
        (b"\0\0\0\x18ftypheic" + bytes(99), "HEIC, which Pillow cannot read; convert it to JPEG"),
    ],
)
def test_what_would_come_out_wrong_is_refused(content, reason):
    """Invariant: an image whose values nobody can interpret for certain is left out with its reason, not taken."""
    with pytest.raises(BadImageError, match=reason):
        read(content)


def test_a_black_image_is_an_image():
    """Nothing but zeros says the same in any number of bits."""
    assert not read(tiff(np.zeros((4, 4), np.uint16), "minisblack")).any()
    assert not read(png(1, 1, 16, 2, bytes(7))).any()


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_a_deflated_tiff_with_a_wrong_checksum_is_refused(tile):
    """Pillow tests none; a bit that turned over would pass for a pixel."""
    file = io.BytesIO()
    tifffile.imwrite(file, NOISE, photometric="rgb", compression="zlib", compressionargs={"level": 0}, tile=tile)
    file.seek(0)
    page = tifffile.TiffFile(file).pages.first
    content = bytearray(file.getvalue())
    np.testing.assert_array_equal(read(bytes(content)), NOISE)
    content[page.dataoffsets[-1] + 99] ^= 1
    with pytest.raises(BadImageError, match="incorrect data check"):
        read(bytes(content))


def test_the_kind_of_a_file_is_in_its_bytes(tmp_path):
    """Golden: whatever the name; a photo of a telephone is known though it cannot be read, and text is no image."""
    image = Image.fromarray(NOISE)
    for format_ in ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM"):
        assert kind(io.BytesIO(encoded(image, format_))) == format_
    assert kind(io.BytesIO(encoded(image, "TIFF", big_tiff=True))) == "TIFF"
    assert kind(io.BytesIO(encoded(image, "MPO", save_all=True, append_images=[image]))) == "JPEG"
    assert kind(io.BytesIO(b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic")) == "HEIC"
    for text in (b"", b"GIF", b"Python", b"BMW 320d, estate, blue", b"P5 is a course", b"<html>", b"\0" * 99):
        assert kind(io.BytesIO(text)) is None
    path = tmp_path / "photo.txt"
    path.write_bytes(encoded(image, "JPEG"))
    assert kind(path) == "JPEG"
