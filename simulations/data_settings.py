"""Where a simulation's patients come from: one class for each kind of ``data``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from client.patients.stain import Stain
from common.checks import require, require_whole, require_within
from common.errors import SettingsError


@dataclass(frozen=True, kw_only=True)
class SyntheticData:
    """Drawn patients: with notes and faces from the casebook of syndromes, with slides, or with both.

    Attributes:
        name: ``synthetic``.
        sites: Training patients with note and face, by site; without any, the run has no track for notes.
        slides: Training patients with slides, by site; without any, the run has no track for tissues.
        both_share: Of a site that is in ``sites`` and in ``slides``, the share of its patients with slides
            who also bring a note and a face.
        most_tiles: Tiles of a patient, at most.
        stain: Whether sites normalize the stains of their tiles; as in ``Views``.
        skew, seen_share, test_per_answer: As in ``make_hospitals``.
        calibration_share: Share of each site's training patients that is set aside to calibrate finished
            students with.
    """

    name: Literal["synthetic"]
    sites: Mapping[str, int]
    slides: Mapping[str, int] = field(default_factory=dict)
    both_share: float = 0.5
    most_tiles: int = 2
    stain: Stain = "keep"
    skew: float
    seen_share: float
    test_per_answer: int
    calibration_share: float = 0.0

    def __post_init__(self) -> None:
        if not self.sites and not self.slides:
            raise SettingsError("sites", "none", "training patients by site, here or under slides")
        require_within("both_share", self.both_share, 0, 1)
        require_within("calibration_share", self.calibration_share, 0, 0.9)
        require_whole("most_tiles", self.most_tiles, 1)


@dataclass(frozen=True, kw_only=True)
class PhenopacketData:
    """Real published cases, split over sites by publication.

    Attributes:
        name: ``phenopackets``.
        root: Folder that holds ``phenopackets``, ``hpo`` and ``faces``.
        min_cases: Diseases with fewer cases are left out.
        sites: Share of the cases by site.
        split: ``publication``: a publication is at one site as a whole. ``patient``: cases are dealt out one
            by one, so that all sites see much the same.
        test_share: Share of each disease's cases that are tested on.
        calibration_share: Share of them that is set aside to calibrate finished students with.
        new_publications_share: Share of all cases held out as whole publications.
        most_cases: Take no more than this many cases, for a quick look; null takes all.
        publications_seed: Draws the publications that are held out; null takes the run's seed. One for all
            seeds of a comparison lets their students share a base that never read of these publications.
        public_text_apart: Whether what the base learns from leaves out all that was annotated from a
            publication held out, and lists of terms that name no source.
    """

    name: Literal["phenopackets"]
    root: Path
    min_cases: int
    sites: Mapping[str, float]
    split: Literal["publication", "patient"] = "publication"
    test_share: float
    calibration_share: float = 0.0
    new_publications_share: float
    most_cases: int | None = None
    publications_seed: int | None = None
    public_text_apart: bool = False

    def __post_init__(self) -> None:
        for key in ("test_share", "calibration_share", "new_publications_share"):
            require_within(key, getattr(self, key), 0, 1)
        both = self.test_share + self.calibration_share
        require(both < 1, "test_share", f"{both:g} with calibration_share", "less than 1 together")


@dataclass(frozen=True, kw_only=True)
class TileData:
    """Real tiles of several organs from several sources.

    Attributes:
        name: ``histology``.
        root: Folder that holds ``folders``.
        folders: Each with a manifest and its tiles.
        level: What is asked for: the ``tissue``, or the ``organ`` alone.
        split: ``natural``: a site is a source. ``mixed``: a share of each source is at other sites.
        mixed_share: That share, where the split is mixed.
        slides_apart: Sources of so few patients that their slides, and not their patients, are kept on one
            side of every split.
        test_share: Share of each source that is tested on.
        calibration_share: Share of each source that is set aside to calibrate finished students with.
        public_share: Share of each source that no site has: a tiny base and a slide eye learn to see from it.
        public_size: Height and width of these public tiles, pixels.
        stain: Whether sites normalize the stains of their tiles; as in ``Views``.
        unit: What a record stands for, since the sources name no patients or few.
    """

    name: Literal["histology"]
    root: Path
    folders: tuple[str, ...]
    level: Literal["tissue", "organ"]
    split: Literal["natural", "mixed"]
    mixed_share: float
    slides_apart: tuple[str, ...] = ()
    test_share: float
    calibration_share: float = 0.0
    public_share: float
    public_size: int
    stain: Stain = "keep"
    unit: str = "source image"

    def __post_init__(self) -> None:
        for key in ("mixed_share", "test_share", "calibration_share", "public_share"):
            require_within(key, getattr(self, key), 0, 1)
        together = self.test_share + self.calibration_share + self.public_share
        others = f"{together:g} with calibration_share and public_share"
        require(together < 1, "test_share", others, "less than 1 together")
        require_whole("public_size", self.public_size, 1)


Data = SyntheticData | PhenopacketData | TileData
DATA_KINDS: Mapping[str, type[Data]] = {
    "synthetic": SyntheticData,
    "phenopackets": PhenopacketData,
    "histology": TileData,
}


def rest_of(data: Data) -> dict[str, Any]:
    """The data's settings as plain values."""
    return {key: str(value) if isinstance(value, Path) else value for key, value in vars(data).items()}
