import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import tifffile
from PIL import Image

from client.patients import slide_trial, slides
from client.patients.photos import encode_png
from client.patients.slides import TileRef, Tiling, is_slide, tile_slide
from common.errors import BadFileError
from tests.client.patients.slide_files import TISSUE, WHITE, patches, write_dicom, write_tiff

ROOT = Path(__file__).resolve().parents[3]
# 4 x 4 stored tiles of 256 pixels at 0.5 µm; tissue fills the second row but for its first tile.
SECOND_ROW = patches([(1, 1), (1, 2), (1, 3)])
EXACT = Tiling(size=256)


def write(path: Path, **options: object) -> Path:
    return write_tiff(path, [(1024, 1024)], SECOND_ROW, **options)  # type: ignore[arg-type]


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write(tmp_path / "slide.svs")


def corners(tiles: tuple[TileRef, ...]) -> list[tuple[int, int]]:
    return [(tile.x, tile.y) for tile in tiles]


def refused(path: Path, tiling: Tiling | None = None) -> str:
    with pytest.raises(BadFileError) as caught:
        tile_slide(path, tiling)
    assert "\n" not in str(caught.value)
    assert path.parent.name not in caught.value.reason
    return caught.value.reason


def test_the_tiles_with_tissue_come_row_by_row(slide: Path) -> None:
    tiles = tile_slide(slide, EXACT)
    assert corners(tiles) == [(256, 256), (512, 256), (768, 256)]
    assert {(tile.extent, tile.size) for tile in tiles} == {(256, 256)}


def test_a_tile_holds_the_pixels_of_its_place(slide: Path) -> None:
    (tile, *_) = tile_slide(slide, EXACT)
    assert tile.pixels().shape == (256, 256, 3)
    assert (tile.pixels() == TISSUE).all()
    half = TileRef(path=slide, x=128, y=256, extent=256, size=256).pixels()
    assert (half[:, :128] == WHITE).all()
    assert (half[:, 128:] == TISSUE).all()


def test_a_finer_slide_gives_tiles_of_the_resolution_asked_for(tmp_path: Path) -> None:
    (tile, *_) = tile_slide(write(tmp_path / "slide.svs", mpp=0.25), Tiling(size=128))
    assert (tile.extent, tile.size) == (256, 128)
    assert (tile.pixels() == TISSUE).all()


def test_a_tile_is_reduced_without_leaving_pixels_out(tmp_path: Path) -> None:
    # Stored tiles of 16 pixels in a chequer: the mean of the two colors shows only if all of them count.
    path = write_tiff(
        tmp_path / "slide.svs",
        [(512, 512)],
        lambda _, row, column: (255 * ((row + column) % 2),) * 3,
        side=16,
    )
    tile = TileRef(path=path, x=64, y=64, extent=320, size=10).pixels()
    assert (abs(tile.astype(int) - 127) <= 8).all()


def test_a_tile_is_read_from_the_level_nearest_to_its_resolution(tmp_path: Path) -> None:
    # The reduced level is painted in another color, to be told from the first.
    path = write_tiff(
        tmp_path / "slide.svs", [(1024, 1024), (256, 256)], lambda level, *_: (TISSUE, (90, 60, 200))[level]
    )
    assert (TileRef(path=path, x=0, y=0, extent=400, size=100).pixels() == (90, 60, 200)).all()
    assert (TileRef(path=path, x=0, y=0, extent=300, size=100).pixels() == TISSUE).all()


def test_what_lies_beyond_the_slide_is_white(slide: Path) -> None:
    beyond = TileRef(path=slide, x=1024 - 64, y=256, extent=128, size=128).pixels()
    assert (beyond[:, :64] == TISSUE).all()
    assert (beyond[:, 64:] == 255).all()


def test_a_tile_counts_by_its_share_of_tissue(slide: Path) -> None:
    # Tiles of 384 pixels: the upper right one is a third of tissue, the left ones a ninth or two.
    assert corners(tile_slide(slide, Tiling(size=384, least_tissue=0.3))) == [(384, 0), (384, 384)]
    assert len(tile_slide(slide, Tiling(size=384, least_tissue=0.1))) == 4
    assert "no tissue" in refused(slide, Tiling(size=384, least_tissue=0.5))


def test_of_too_many_tiles_evenly_spread_ones_are_taken(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "slide.svs", [(1024, 1024)], lambda *_: TISSUE)
    every = tile_slide(path, EXACT)
    assert len(every) == 16
    assert tile_slide(path, replace(EXACT, most_tiles=4)) == every[::4]
    assert tile_slide(path, replace(EXACT, most_tiles=16)) == every


def test_pale_tissue_beside_deep_tissue_is_tissue_on_a_slide_without_background(tmp_path: Path) -> None:
    path = write_tiff(
        tmp_path / "slide.svs", [(1024, 1024)], lambda _, row, __: (TISSUE, (230, 160, 190))[row % 2]
    )
    assert len(tile_slide(path, EXACT)) == 16


def test_otsus_threshold_parts_two_heaps() -> None:
    values = np.array([10, 12, 14, 200, 210, 220], dtype=np.uint8)
    assert 14 <= slides._otsu(values) < 200
    assert slides._otsu(np.zeros(4, dtype=np.uint8)) == 0


@pytest.mark.parametrize("white", [(255, 255, 255), WHITE, (244, 240, 236)])
def test_a_white_slide_has_no_tissue(tmp_path: Path, white: tuple[int, int, int]) -> None:
    path = write_tiff(tmp_path / "slide.svs", [(1024, 1024)], lambda *_: white)
    assert refused(path) == "no tissue: no tile is tissue by a share of 0.5"


def test_a_slide_in_dicom_is_tiled(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "series" / "slide.dcm", [[WHITE, TISSUE], [TISSUE, WHITE]])
    assert is_slide(path)
    tiles = tile_slide(path, EXACT)
    assert corners(tiles) == [(256, 0), (0, 256)]
    assert (abs(tiles[0].pixels().astype(int) - TISSUE) <= 3).all()


def test_a_tiled_tiff_with_its_resolution_is_tiled(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", mpp=None, resolution=(20_000.0, 20_000.0))
    assert corners(tile_slide(path, EXACT)) == [(256, 256), (512, 256), (768, 256)]


def test_a_plain_image_is_no_slide(tmp_path: Path, slide: Path) -> None:
    image = Image.new("RGB", (300, 300))
    for name in ("plain.png", "plain.jpg", "plain.tif"):
        image.save(tmp_path / name)
        assert not is_slide(tmp_path / name)
    os.mkfifo(tmp_path / "pipe")
    assert not any(map(is_slide, [tmp_path, tmp_path / "pipe", tmp_path / "missing.svs"]))
    assert is_slide(slide)


def test_what_is_no_slide_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text.svs").write_text("not a slide")
    (tmp_path / "plain.png").write_bytes(encode_png(np.zeros((300, 300, 3), dtype=np.uint8)))
    assert refused(tmp_path) == "not a file"
    assert refused(tmp_path / "pipe") == "not a file"
    assert refused(tmp_path / "missing.svs") == "missing"
    assert refused(tmp_path / "text.svs") == "no slide of a format that OpenSlide knows"
    assert refused(tmp_path / "plain.png") == "no slide of a format that OpenSlide knows"


def test_a_slide_cut_short_is_refused(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "slide.dcm", [[TISSUE, WHITE]])
    path.write_bytes(path.read_bytes()[:-3000])
    assert refused(path) == "a damaged slide"


def test_a_slide_with_damaged_tiles_is_refused_and_read_once_it_is_repaired(slide: Path) -> None:
    whole = slide.read_bytes()
    with tifffile.TiffFile(slide) as file:
        offset = file.pages[0].dataoffsets[5]
    slide.write_bytes(whole[:offset] + b"\xff" * 64 + whole[offset + 64 :])
    assert refused(slide, EXACT) == "a damaged slide"
    slide.write_bytes(whole)
    assert len(tile_slide(slide, EXACT)) == 3


def test_a_damaged_slide_in_dicom_ends_no_process(tmp_path: Path) -> None:
    path = write_dicom(tmp_path / "slide.dcm", [[WHITE, TISSUE], [TISSUE, WHITE]])
    data = bytearray(path.read_bytes())
    # An entry of the table of offsets that leads out of the file: libdicom follows it.
    data[data.index(bytes.fromhex("e07f1000")) + 30] = 19
    path.write_bytes(data)
    crash = f"import openslide; openslide.OpenSlide({str(path)!r}).read_region((0, 0), 0, (512, 512))"
    assert subprocess.run([sys.executable, "-c", crash], check=False, capture_output=True).returncode != 0
    assert refused(path, EXACT) == "a damaged slide"


def test_a_process_that_does_not_come_to_its_end_is_a_damaged_slide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_dicom(tmp_path / "slide.dcm", [[TISSUE]])
    assert len(tile_slide(path, EXACT)) == 1
    monkeypatch.setattr(slide_trial, "_TRIAL", "import time; time.sleep(60)")
    monkeypatch.setattr(slide_trial, "TRIAL_TIMEOUT_S", 0.1)
    assert refused(path, EXACT) == "a damaged slide"
    monkeypatch.setattr(slide_trial, "_TRIAL", "import os; os.abort()")
    assert refused(path, EXACT) == "a damaged slide"


@pytest.mark.parametrize("cut", [10, 1000, 3000])
def test_a_tiff_cut_anywhere_is_refused(slide: Path, cut: int) -> None:
    slide.write_bytes(slide.read_bytes()[:-cut])
    assert refused(slide, EXACT) in ("a damaged slide", "no slide of a format that OpenSlide knows")


@pytest.mark.parametrize("mpp", ["", "nan", "fine"])
def test_a_slide_of_unknown_resolution_is_refused_not_guessed_from_its_objective(
    tmp_path: Path, mpp: str
) -> None:
    path = write(tmp_path / "slide.svs", mpp=mpp)
    with openslide.OpenSlide(path) as opened:
        assert opened.properties["openslide.objective-power"] == "20"
    assert refused(path) == "resolution unknown: no µm a pixel in the file"


@pytest.mark.parametrize("mpp", [0.0, -0.5, 0.001, 350])
def test_an_absurd_resolution_is_refused(tmp_path: Path, mpp: float) -> None:
    path = write(tmp_path / "slide.svs", mpp=mpp)
    assert refused(path) == f"resolution of {mpp:.4g} x {mpp:.4g} µm a pixel, expected 0.02 to 20.0"


def test_pixels_that_are_not_square_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "slide.tif", mpp=None, resolution=(20_000.0, 40_000.0))
    assert refused(path) == "resolution of 0.5 x 0.25 µm a pixel, expected square pixels"


def test_a_slide_coarser_than_asked_for_is_refused_beyond_a_tenth(tmp_path: Path) -> None:
    assert tile_slide(write(tmp_path / "near.svs", mpp=0.54))[0].extent == 207
    path = write(tmp_path / "slide.svs", mpp=1.0)
    assert refused(path) == "1 µm a pixel, coarser than the 0.5 asked for"
    assert tile_slide(path, Tiling(microns_per_pixel=1.0, size=256))


def test_a_slide_too_small_for_a_tile_is_refused(slide: Path) -> None:
    assert refused(slide, Tiling(size=1025)) == "1024 x 1024 pixels, too small for a tile of 1025"


def test_a_large_slide_without_reduced_levels_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "slide.svs", [(10_240, 10_240)], lambda *_: TISSUE, side=1024)
    assert refused(path) == "missing pyramid levels: the smallest has 104857600 pixels, above 67108864"


def test_a_level_too_coarse_to_find_a_tile_on_is_refused(tmp_path: Path) -> None:
    path = write_tiff(
        tmp_path / "slide.svs", [(10_240, 10_240), (32, 32)], lambda *_: TISSUE, side=1024, mpp=0.5
    )
    assert refused(path) == "missing pyramid levels: the one of 32 x 32 pixels is too coarse"


def test_tiles_that_would_be_read_from_too_many_pixels_are_refused(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "slide.svs", [(8192, 8192)], lambda *_: TISSUE, side=1024, mpp=0.02)
    assert "missing pyramid levels" in refused(path, Tiling(microns_per_pixel=2.0, size=64))
    with pytest.raises(BadFileError, match="missing pyramid levels"):
        TileRef(path=path, x=0, y=0, extent=6400, size=64).pixels()


def test_a_side_beyond_the_bound_is_a_decompression_bomb(tmp_path: Path) -> None:
    side = slides.MAX_SIDE + 4096
    path = write_tiff(tmp_path / "slide.svs", [(side, 4096)], lambda *_: WHITE, side=4096)
    assert refused(path).startswith(f"{side} x 4096 pixels, a decompression bomb")
    with pytest.raises(BadFileError, match="decompression bomb"):
        TileRef(path=path, x=0, y=0, extent=1, size=1).pixels()


def test_a_huge_stored_tile_is_a_decompression_bomb(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "slide.svs", [(4112, 4112)], lambda *_: WHITE, side=4112)
    assert refused(path) == "stored in tiles of 4112 x 4112 pixels, a decompression bomb"


MEASURE = """
import resource, sys
from pathlib import Path
from client.patients.slides import Tiling, tile_slide

def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

before = peak()
tiles = tile_slide(Path(sys.argv[1]), Tiling(least_tissue=0.99))
means = {tuple(tile.pixels().mean((0, 1)).round().astype(int).tolist()) for tile in tiles[::16]}
print(len(tiles), (peak() - before) // 1024, means)
"""


def test_memory_stays_bounded_for_a_slide_of_100_000_pixels_a_side(tmp_path: Path) -> None:
    # 30 GB when decoded. The tissue is 32 x 32 stored tiles, one of the last level's pixels in 37 x 37.
    tissue = [(row, column) for row in range(96, 128) for column in range(96, 128)]
    levels = [(100_000, 100_000), (25_000, 25_000), (3_125, 3_125)]
    path = write_tiff(tmp_path / "slide.svs", levels, patches(tissue, (1, 4, 32)), side=512)
    # A block of the overview in its few forms, the cache and a tile; the last level read at once takes 160.
    most_mib = 90
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    count, grown_mib, means = run.stdout.split(maxsplit=2)
    assert int(count) == 256
    assert means.strip() == str({TISSUE})
    assert int(grown_mib) < most_mib


def test_few_slides_stay_open(tmp_path: Path) -> None:
    slides._slides.close()
    paths = [write(tmp_path / f"{number}.svs") for number in range(slides.MAX_OPEN + 3)]
    for path in paths:
        assert len(tile_slide(path, EXACT)[0].pixels()) == 256
    assert len(slides._slides) == slides.MAX_OPEN
    slides._slides.close()


def test_a_tile_travels_to_another_process_without_its_slide(slide: Path) -> None:
    (tile, *_) = tile_slide(slide, EXACT)
    assert pickle.loads(pickle.dumps(tile)) == tile
    assert len(pickle.dumps(tile)) < 1000


def test_a_forked_process_reads_tiles_through_its_own_file(slide: Path) -> None:
    (tile, *_) = tile_slide(slide, EXACT)
    if (child := os.fork()) == 0:
        opened_none = len(slides._slides) == 0
        os._exit(0 if opened_none and (tile.pixels() == TISSUE).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert (tile.pixels() == TISSUE).all()


def test_tiles_of_the_same_place_are_equal_and_print_no_path(slide: Path) -> None:
    tile = tile_slide(slide, EXACT)[0]
    same = replace(tile)
    assert tile == same
    assert hash(tile) == hash(same)
    assert tile != replace(tile, x=0)
    assert repr(tile) == "TileRef(x=256, y=256, extent=256, size=256)"


def test_pixels_cannot_be_written_to(slide: Path) -> None:
    with pytest.raises(ValueError, match="read-only"):
        tile_slide(slide, EXACT)[0].pixels()[0, 0, 0] = 1


def test_a_tile_of_a_slide_that_went_away_is_refused(slide: Path) -> None:
    (tile, *_) = tile_slide(slide, EXACT)
    slide.unlink()
    with pytest.raises(BadFileError, match="missing"):
        tile.pixels()


@pytest.mark.parametrize(
    ("field", "value"), [("x", -1), ("y", slides.MAX_SIDE), ("extent", 0), ("size", 0), ("size", 4097)]
)
def test_a_tile_out_of_bounds_is_refused(field: str, value: int) -> None:
    whole = {"x": 0, "y": 0, "extent": 8, "size": 8}
    with pytest.raises(ValueError, match=f"Expected .*{field}.*got .*{value}"):
        TileRef(path=Path("slide.svs"), **{**whole, field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("microns_per_pixel", 0.0),
        ("microns_per_pixel", float("nan")),
        ("size", 0),
        ("size", 4097),
        ("least_tissue", 0.0),
        ("least_tissue", 1.01),
        ("most_tiles", 0),
    ],
)
def test_settings_out_of_range_are_refused(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"Expected {field}.*got {value}"):
        Tiling(**{field: value})  # type: ignore[arg-type]
