import io
import os
import random
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from client.patients import photos
from client.patients.photos import PhotoRef, decode_bytes, decode_image, encode_png, read_image
from common.errors import BadFileError

PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image, format_: str = "PNG", **options: object) -> Path:
    image.save(path, format_, **options)
    return path


def png_header(width: int, height: int) -> bytes:
    head = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = b"IDAT" + zlib.compress(b"")
    chunks = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (head, body)
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


@pytest.mark.parametrize("format_", ["PNG", "TIFF", "BMP"])
def test_files_without_loss_decode_to_their_pixels(tmp_path: Path, format_: str) -> None:
    path = save(tmp_path / "photo", Image.fromarray(PIXELS), format_)
    assert (decode_image(path) == PIXELS).all()


@pytest.mark.parametrize("format_", ["JPEG", "WEBP"])
def test_files_with_loss_decode_to_their_shape(tmp_path: Path, format_: str) -> None:
    decoded = decode_image(save(tmp_path / "photo", Image.fromarray(PIXELS), format_))
    assert (decoded.shape, decoded.dtype) == (PIXELS.shape, np.uint8)


def test_png_bytes_decode_to_the_same_pixels_and_hold_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    path.write_bytes(encode_png(PIXELS))
    assert (decode_image(path) == PIXELS).all()
    with Image.open(path) as image:
        assert not image.info


def test_a_photo_is_upright_and_its_exif_stays_behind(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: the top of the face is at the right
    exif[0x010E] = "John Smith"
    path = save(tmp_path / "photo.png", Image.fromarray(PIXELS), exif=exif)
    decoded = decode_image(path)
    assert (decoded == np.rot90(PIXELS, -1)).all()
    assert b"John" not in encode_png(decoded)


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.png", Image.new("RGBA", (2, 2), (255, 0, 0, 0)))
    assert (decode_image(path) == 255).all()


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "CMYK"])
def test_eight_bit_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    path = save(tmp_path / "photo.tif", Image.fromarray(PIXELS).convert(mode), "TIFF")
    assert decode_image(path).shape == (5, 7, 3)


def test_a_telephone_jpeg_with_a_second_frame_gives_the_first(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    path = save(tmp_path / "photo.jpg", first, "MPO", save_all=True, append_images=[second])
    assert decode_image(path)[0, 0, 0] > 200


def refused(path: Path) -> str:
    with pytest.raises(BadFileError) as caught:
        decode_image(path)
    return caught.value.reason


def test_a_missing_photo_is_refused(tmp_path: Path) -> None:
    assert refused(tmp_path / "photo.png") == "missing"


def test_a_folder_and_a_pipe_are_no_photos(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    assert refused(tmp_path) == "not a file"
    assert refused(tmp_path / "pipe") == "not a file"


def test_other_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_text("not a photo")
    assert refused(path).startswith("no image of the formats JPEG")
    save(path, Image.fromarray(PIXELS), "EPS")
    assert refused(path).startswith("no image of the formats JPEG")


def test_a_truncated_photo_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.jpg", Image.fromarray(PIXELS.repeat(40, 0).repeat(40, 1)), "JPEG")
    path.write_bytes(path.read_bytes()[:-2000])
    assert refused(path) == "damaged image data"


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_000, 12_000, 60_000])
def test_none_beyond_max_pixels_is_decoded_whatever_its_header_says(tmp_path: Path, side: int) -> None:
    path = tmp_path / "bomb.png"
    path.write_bytes(png_header(side, side))
    assert "decompression bomb" in refused(path)


def test_no_file_beyond_max_file_bytes_is_opened(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    with path.open("wb") as file:
        file.truncate(photos.MAX_FILE_BYTES + 1)
    assert (
        refused(path)
        == f"{photos.MAX_FILE_BYTES + 1} bytes, too large: at most {photos.MAX_FILE_BYTES} are read"
    )


def test_sixteen_bit_pixels_are_refused_not_clipped(tmp_path: Path) -> None:
    path = save(tmp_path / "photo.png", Image.fromarray(np.full((2, 2), 40_000, dtype=np.uint16)))
    assert refused(path) == "pixels of mode I;16, expected 8 bits a channel"


def test_bytes_decode_as_their_file_does_under_the_same_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = save(tmp_path / "photo.png", Image.fromarray(PIXELS))
    data = read_image(path)
    assert data == path.read_bytes()
    assert (decode_bytes(data, path) == PIXELS).all()
    with pytest.raises(BadFileError, match="damaged image data"):
        decode_bytes(data[:-30], path)
    with pytest.raises(BadFileError, match="decompression bomb"):
        decode_bytes(png_header(60_000, 60_000), path)
    monkeypatch.setattr(photos, "MAX_FILE_BYTES", len(data) - 1)
    for read in (lambda: decode_bytes(data, path), lambda: read_image(path)):
        with pytest.raises(BadFileError, match=f"{len(data)} bytes, too large"):
            read()


def test_a_film_is_refused(tmp_path: Path) -> None:
    frame = Image.fromarray(PIXELS)
    path = save(tmp_path / "photo.tif", frame, "TIFF", save_all=True, append_images=[frame])
    assert refused(path) == "2 frames, expected one"


def encoded(format_: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(PIXELS.repeat(3, 0)).save(buffer, format_)
    return buffer.getvalue()


FILES = {format_: encoded(format_) for format_ in photos.FORMATS}


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow speaks of damaged tags before it refuses them
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(format_=st.sampled_from(photos.FORMATS), seed=st.integers(0, 2**32), cut=st.booleans())
def test_damaged_bytes_give_an_image_or_one_refusal(
    tmp_path: Path, format_: str, seed: int, cut: bool
) -> None:
    chance = random.Random(seed)
    data = bytearray(FILES[format_])
    for _ in range(chance.randint(1, 8)):
        data[chance.randrange(len(data))] = chance.randrange(256)
    path = tmp_path / "photo"
    path.write_bytes(data[: chance.randrange(len(data))] if cut else data)
    try:
        assert decode_image(path).shape[2] == 3
    except BadFileError as error:
        assert str(error)


def test_a_reference_decodes_when_it_is_asked(tmp_path: Path) -> None:
    photo = PhotoRef(path=tmp_path / "photo.png")
    save(tmp_path / "photo.png", Image.fromarray(PIXELS))
    assert (photo.pixels() == PIXELS).all()


def test_pixels_cannot_be_written_to() -> None:
    with pytest.raises(ValueError, match="read-only"):
        PhotoRef(array=PIXELS).pixels()[0, 0, 0] = 1
    assert PIXELS.flags.writeable


def test_a_reference_needs_a_path_or_bytes_or_an_array_and_no_two_of_them() -> None:
    with pytest.raises(ValueError, match="several or none"):
        PhotoRef()
    with pytest.raises(ValueError, match="several or none"):
        PhotoRef(path=Path("photo.png"), array=PIXELS)


@pytest.mark.parametrize("array", [PIXELS[:, :, 0], PIXELS.astype(float), PIXELS[:0], PIXELS[:, :, :2]])
def test_an_array_that_is_no_image_is_refused(array: np.ndarray) -> None:
    with pytest.raises(ValueError, match="height, width, 3"):
        PhotoRef(array=array)
    with pytest.raises(ValueError, match="height, width, 3"):
        encode_png(array)


def test_references_to_the_same_thing_are_equal() -> None:
    one, same = PhotoRef(array=PIXELS), PhotoRef(array=PIXELS.copy())
    assert one == same
    assert hash(one) == hash(same)
    assert PhotoRef(path=Path("a.png")) == PhotoRef(path=Path("a.png"))
    assert one != PhotoRef(array=PIXELS[:4])
    assert one != PhotoRef(path=Path("a.png"))
    assert one != "photo"


def test_printing_a_reference_shows_no_path() -> None:
    assert "Smith" not in repr(PhotoRef(path=Path("Smith.png")))
    assert repr(PhotoRef(array=PIXELS)) == "ImageRef(array of (5, 7, 3))"


def test_bytes_are_decoded_when_their_pixels_are_asked_for(tmp_path: Path) -> None:
    pixels = np.full((2, 3, 3), 9, dtype=np.uint8)
    ref = PhotoRef(data=encode_png(pixels))
    assert np.array_equal(ref.pixels(), pixels)
    assert ref == PhotoRef(data=encode_png(pixels))
    assert ref != PhotoRef(array=pixels)
    assert len({ref, PhotoRef(data=encode_png(pixels))}) == 1
    assert repr(ref) == f"ImageRef({len(encode_png(pixels))} bytes)"
    with pytest.raises(BadFileError, match="image inside a file: no image of the formats"):
        PhotoRef(data=b"Smith").pixels()
