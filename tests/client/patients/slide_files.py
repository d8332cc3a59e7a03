"""Slides for tests, written in a moment: pyramids of few kinds of tiles, encoded once."""

import functools
import io
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import tifffile
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import JPEGBaseline8Bit, VLWholeSlideMicroscopyImageStorage, generate_uid

WHITE, TISSUE = (243, 243, 243), (170, 90, 160)
Color = tuple[int, int, int]
Painting = Callable[[int, int, int], Color]
"""The color of a stored tile, by level, row and column."""


def jpeg(color: Color, side: int) -> bytes:
    buffer = io.BytesIO()
    # Full chroma: the tests then find the very color again, give or take 2.
    Image.new("RGB", (side, side), color).save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def deflated(color: Color, side: int) -> bytes:
    return zlib.compress(bytes(color) * side**2)


def aperio(width: int, height: int, mpp: float | str = 0.5) -> str:
    size = f"Aperio Image Library v11\r\n{width}x{height} [0,0 {width}x{height}]"
    return f"{size}|AppMag = 20|MPP = {mpp}"


def write_tiff(
    path: Path,
    levels: Sequence[tuple[int, int]],
    painting: Painting,
    *,
    side: int = 256,
    mpp: float | str | None = 0.5,
    description: str | None = None,
    resolution: tuple[float, float] | None = None,
) -> Path:
    """A tiled TIFF with (width, height) by level; as Aperio's if ``mpp`` is given."""
    encode = functools.cache(deflated)

    def tiles(level: int, width: int, height: int) -> Iterator[bytes]:
        for row in range(-(-height // side)):
            for column in range(-(-width // side)):
                yield encode(painting(level, row, column), side)

    path.parent.mkdir(parents=True, exist_ok=True)
    with tifffile.TiffWriter(path, bigtiff=max(levels[0]) > 50_000) as file:
        for level, (width, height) in enumerate(levels):
            text = description if mpp is None else aperio(width, height, mpp)
            file.write(
                tiles(level, width, height),
                shape=(height, width, 3),
                dtype="uint8",
                photometric="rgb",
                compression="zlib",
                tile=(side, side),
                subfiletype=int(level > 0 and mpp is None),
                description=text,
                metadata=None,
                resolution=resolution,
                resolutionunit="CENTIMETER" if resolution else None,
            )
    return path


def patches(tissue: Sequence[tuple[int, int]], scale: Sequence[int] = (1,)) -> Painting:
    """White, but for the stored tiles (row, column) of level 0; ``scale`` is each level's downsample."""

    covered = [{(row // down, column // down) for row, column in tissue} for down in scale]
    return lambda level, row, column: TISSUE if (row, column) in covered[level] else WHITE


def write_dicom(path: Path, colors: Sequence[Sequence[Color]], *, side: int = 256, mpp: float = 0.5) -> Path:
    """A slide of one level in DICOM, one frame a color; OpenSlide wants it in a folder of its own."""
    measures, groups, slide = Dataset(), Dataset(), Dataset()
    measures.PixelSpacing, measures.SliceThickness = [mpp / 1000, mpp / 1000], 0.001
    groups.PixelMeasuresSequence = [measures]
    slide.file_meta = FileMetaDataset()
    slide.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    slide.file_meta.MediaStorageSOPClassUID = slide.SOPClassUID = VLWholeSlideMicroscopyImageStorage
    slide.file_meta.MediaStorageSOPInstanceUID = slide.SOPInstanceUID = generate_uid()
    slide.StudyInstanceUID, slide.SeriesInstanceUID = generate_uid(), generate_uid()
    slide.Modality, slide.ImageType = "SM", ["ORIGINAL", "PRIMARY", "VOLUME", "NONE"]
    slide.SamplesPerPixel, slide.PlanarConfiguration, slide.PixelRepresentation = 3, 0, 0
    slide.PhotometricInterpretation = "YBR_FULL_422"
    slide.BitsAllocated, slide.BitsStored, slide.HighBit = 8, 8, 7
    slide.Rows = slide.Columns = side
    slide.TotalPixelMatrixRows, slide.TotalPixelMatrixColumns = len(colors) * side, len(colors[0]) * side
    slide.TotalPixelMatrixFocalPlanes = slide.NumberOfOpticalPaths = 1
    slide.DimensionOrganizationType = "TILED_FULL"
    slide.SharedFunctionalGroupsSequence = [groups]
    slide.NumberOfFrames = len(colors) * len(colors[0])
    slide.PixelData = encapsulate([jpeg(color, side) for row in colors for color in row])
    slide["PixelData"].is_undefined_length = True
    path.parent.mkdir(parents=True, exist_ok=True)
    slide.save_as(path, enforce_file_format=True)
    return path
