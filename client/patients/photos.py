"""Photos and slide tiles: decoded on demand, under limits, to pixels and nothing else.

A reference holds a path or pixels; the tiles of whole slides are in `client.patients.slides`. A file is
decoded when its pixels are asked for, so that thousands of patients cost no memory. What reaches a model is
an array: EXIF, color profiles, comments and previews stay behind in the file, after the orientation that a
camera noted has been applied.
"""

import io
import logging
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from common.errors import BadFileError

# At DEBUG Pillow writes EXIF data into the log, names and places included.
logging.getLogger("PIL").setLevel(logging.INFO)

MAX_FILE_BYTES = 64 * 2**20
MAX_PIXELS = 50_000_000
# Named one by one: Pillow also opens formats that start other programs (EPS) or hold no photo at all.
FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
INLINE = "image inside a file"
# The modes that mean 8 bits a channel; converting 16-bit gray would clip it without a word.
_MODES = frozenset({"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"})


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class ImageRef:
    """An image of a patient: a file, a file's bytes, or its pixels.

    Attributes:
        path: A file of one of ``FORMATS``.
        data: The bytes of such a file, where they stood inside another.
        array: Pixels, uint8, (height, width, 3), RGB.
    """

    path: Path | None = None
    data: bytes | None = None
    array: NDArray[np.uint8] | None = None

    def __post_init__(self) -> None:
        if sum(given is not None for given in (self.path, self.data, self.array)) != 1:
            raise ValueError("Expected a path, bytes or an array, got several or none of them")
        if self.array is not None:
            object.__setattr__(self, "array", read_only(require_pixels(self.array)))

    def pixels(self) -> NDArray[np.uint8]:
        """The image, uint8, (height, width, 3), RGB, read-only; BadFileError if its file cannot be read."""
        if self.array is not None:
            return self.array
        if self.data is not None:
            return read_only(decode_bytes(self.data, Path(INLINE)))
        assert self.path is not None  # one of the three is set
        return read_only(decode_image(self.path))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageRef):
            return NotImplemented
        if self.array is None or other.array is None:
            return (self.path, self.data) == (other.path, other.data) and self.array is other.array
        return bool(np.array_equal(self.array, other.array))

    def __hash__(self) -> int:
        return (
            hash((self.path, self.data))
            if self.array is None
            else hash((self.array.shape, self.array.tobytes()))
        )

    def __repr__(self) -> str:
        # A path may hold a name, so it stays out of what a log may print.
        if self.array is not None:
            return f"ImageRef(array of {self.array.shape})"
        return "ImageRef(file)" if self.data is None else f"ImageRef({len(self.data)} bytes)"


PhotoRef: TypeAlias = ImageRef
"""A frontal photograph of a patient's face."""


class SlideRef(Protocol):
    """One tile of a patient's slide: an image of its own, or a part of a file that holds more than it.

    A reference is frozen, compares and hashes by value, and prints no path.
    """

    def pixels(self) -> NDArray[np.uint8]:
        """The tile, uint8, (height, width, 3), RGB, read-only; BadFileError if its file cannot be read."""
        ...


def decode_image(path: Path) -> NDArray[np.uint8]:
    """The image of a file, uint8, (height, width, 3), RGB, upright, transparent parts white.

    Guarantee: no file beyond MAX_FILE_BYTES is opened and none beyond MAX_PIXELS is decoded.

    Raises:
        BadFileError: What is wrong with the file.
    """
    with _open_image(path) as file:
        return _decode(file, path)


def read_image(path: Path) -> bytes:
    """The bytes of an image file, for `decode_bytes`; BadFileError as of `decode_image`."""
    with _open_image(path) as file:
        return file.read(MAX_FILE_BYTES)


def decode_bytes(data: bytes, path: Path) -> NDArray[np.uint8]:
    """The image that ``data`` encodes, as `decode_image` gives it; errors name ``path``, where it came from.

    Guarantee: none beyond MAX_FILE_BYTES or MAX_PIXELS is decoded.
    """
    require_size(len(data), path)
    return _decode(io.BytesIO(data), path)


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """The pixels, uint8, (height, width, 3), as a PNG file that holds nothing else."""
    buffer = io.BytesIO()
    Image.fromarray(require_pixels(pixels)).save(buffer, "PNG")
    return buffer.getvalue()


def require_regular(path: Path) -> int:
    """The size of a regular file, bytes; BadFileError if it is another thing."""
    status = path.stat()
    # Opening a named pipe would wait for a writer forever.
    if not stat.S_ISREG(status.st_mode):
        raise BadFileError(path, "not a file")
    return status.st_size


def require_size(size: int, path: Path) -> None:
    """Refuse an encoded image of more than MAX_FILE_BYTES, with a BadFileError."""
    if size > MAX_FILE_BYTES:
        raise BadFileError(path, f"{size} bytes, too large: at most {MAX_FILE_BYTES} are read")


def as_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, transparent parts white."""
    if not image.has_transparency_data:
        return image.convert("RGB")
    # Any color may stand under a transparent pixel; white is what a viewer shows.
    colored = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", colored.size, "white"), colored).convert("RGB")


def require_pixels(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The array, if it is uint8 of (height, width, 3) and not empty; ValueError if not."""
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or array.size == 0:
        raise ValueError(f"Expected uint8 of (height, width, 3), got {array.dtype} of {array.shape}")
    return array


def read_only(array: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The same pixels, through a view that cannot be written to."""
    view = array.view()
    view.flags.writeable = False
    return view


@contextmanager
def _open_image(path: Path) -> Iterator[BinaryIO]:
    try:
        require_size(require_regular(path), path)
        with path.open("rb") as file:
            yield file
    except FileNotFoundError as error:
        raise BadFileError(path, "missing") from error
    except OSError as error:
        raise BadFileError(path, "not readable") from error


def _decode(file: BinaryIO, path: Path) -> NDArray[np.uint8]:
    try:
        with Image.open(file, formats=FORMATS) as image:
            _require_photo(image, path)
            return np.array(as_rgb(ImageOps.exif_transpose(image)), dtype=np.uint8)
    except BadFileError:
        raise
    except UnidentifiedImageError as error:
        raise BadFileError(path, f"no image of the formats {', '.join(FORMATS)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadFileError(path, f"a decompression bomb: at most {MAX_PIXELS} pixels are decoded") from error
    except Exception as error:
        # Damaged bytes end in almost any class: struct.error, SyntaxError, KeyError, OverflowError, ...
        raise BadFileError(path, "damaged image data") from error


def _require_photo(image: Image.Image, path: Path) -> None:
    pixels = image.width * image.height
    if pixels > MAX_PIXELS:
        raise BadFileError(path, f"{pixels} pixels, a decompression bomb: at most {MAX_PIXELS} are decoded")
    if image.mode not in _MODES:
        raise BadFileError(path, f"pixels of mode {image.mode}, expected 8 bits a channel")
    # A telephone's JPEG may carry a depth map as second frame; other files with frames are films or stacks.
    frames = 1 if image.format in ("JPEG", "MPO") else getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadFileError(path, f"{frames} frames, expected one")
