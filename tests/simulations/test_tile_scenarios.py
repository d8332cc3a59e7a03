from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from client.patients.photos import ImageRef
from client.patients.records import PatientRecord
from common.errors import BadFileError, SettingsError
from common.tracks import TISSUE_TYPE
from simulations.data_settings import SyntheticData, TileData
from simulations.populations import Population, everyone
from simulations.scenarios import populations_of
from simulations.tile_scenarios import deal_groups, tile_population
from tests.simulations.small import small_settings

DATA = Path(__file__).parents[2].parent / "shared" / "data"
TILES = TileData(
    name="histology",
    root=DATA,
    folders=("histology", "histology_nc"),
    level="tissue",
    split="natural",
    mixed_share=0.4,
    slides_apart=("osteosarcoma_ut",),
    test_share=0.2,
    public_share=0.1,
    public_size=16,
)
needs_tiles = pytest.mark.skipif(
    not (DATA / "histology").is_dir(), reason="the real tiles are not on this machine"
)


def records(counts: dict[str, list[int]]) -> list[PatientRecord]:
    """Source images by tissue: so many of each group."""
    tile = ImageRef(array=np.zeros((4, 4, 3), dtype=np.uint8))
    return [
        PatientRecord(
            patient_id=f"{tissue}-{group}-{i}",
            case_id=f"source/{tissue}-{group}-{i}",
            slides=(tile,),
            label={TISSUE_TYPE.name: tissue},
            group=f"{tissue}-{group}",
        )
        for tissue, groups in counts.items()
        for group, number in enumerate(groups)
        for i in range(number)
    ]


def test_no_group_is_in_two_parts_and_all_are_in_one() -> None:
    everybody = records({"a": [3] * 20, "b": [1, 5, 2], "c": [4, 4], "d": [7]})
    parts = deal_groups(everybody, test_share=0.2, public_share=0.1, seed=3)
    groups = {part: {record.group for record in own} for part, own in parts.items()}
    assert sum(len(own) for own in parts.values()) == len(everybody)
    assert sum(len(own) for own in groups.values()) == len(set.union(*groups.values()))
    of_a = {part: sum(str(group).startswith("a") for group in own) for part, own in groups.items()}
    assert of_a == {"train": 14, "test": 4, "public": 2}
    # Of three groups each part gets one, of two one is tested on, a single one is trained on.
    for tissue, expected in (("b", (1, 1, 1)), ("c", (1, 1, 0)), ("d", (1, 0, 0))):
        found = [sum(str(g).startswith(tissue) for g in groups[part]) for part in ("train", "test", "public")]
        assert tuple(found) == expected, tissue


def test_another_seed_deals_other_groups() -> None:
    everybody = records({"a": [1] * 30})
    one, same, other = (
        {r.patient_id for r in deal_groups(everybody, test_share=0.2, public_share=0.1, seed=seed)["test"]}
        for seed in (0, 0, 1)
    )
    assert one == same != other


@needs_tiles
def test_in_the_natural_split_a_site_is_a_source_and_no_slide_is_on_two_sides() -> None:
    population = tile_population(TILES, 0)
    assert len(population.sites) == 5
    assert population.unit == "source image"
    assert population.problems == ()
    of_site = {
        site: {record.label[TISSUE_TYPE.name] for record in patients.train}
        for site, patients in population.sites.items()
    }
    assert sum(map(len, of_site.values())) == len(set.union(*of_site.values()))
    _require_apart(population)
    assert population.tiles is not None
    assert population.tiles.images.shape[1:] == (16, 16, 3)
    assert set(population.tiles.names) <= set(population.answers.names)


@needs_tiles
def test_in_the_mixed_split_sites_share_tissues_and_no_slide_is_at_two_sites() -> None:
    population = tile_population(replace(TILES, split="mixed"), 0)
    _require_apart(population)
    natural = tile_population(TILES, 0)
    assert {r.patient_id for r in population.test} == {r.patient_id for r in natural.test}
    known = [{r.label[TISSUE_TYPE.name] for r in p.train} for p in population.sites.values()]
    assert sum(map(len, known)) > 1.5 * len(set.union(*known))


@needs_tiles
def test_organs_alone_may_be_asked_for() -> None:
    population = tile_population(replace(TILES, level="organ"), 0)
    assert len(population.answers) == 5
    assert all(len({r.label[TISSUE_TYPE.name] for r in p.train}) == 1 for p in population.sites.values())


def _require_apart(population: Population) -> None:
    """No slide, or patient of several, in two parts of any site."""
    place: dict[str, tuple[str, str]] = {}
    for site, patients in population.sites.items():
        for part, own in (("train", patients.train), ("test", patients.test)):
            for record in own:
                group = record.group or record.patient_id
                assert place.setdefault(group, (site, part)) == (site, part)


def test_data_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"missing; data\.root names the folder that holds histology"):
        tile_population(replace(TILES, root=tmp_path), 0)


def six_sites() -> SyntheticData:
    return SyntheticData(
        name="synthetic",
        sites={"site-a": 40, "site-b": 40, "site-e": 40, "site-f": 40},
        slides={"site-c": 12, "site-d": 12, "site-e": 10, "site-f": 10},
        both_share=0.5,
        most_tiles=2,
        skew=0.5,
        seen_share=0.7,
        test_per_answer=2,
    )


def test_a_share_of_the_patients_with_slides_also_bring_note_and_face() -> None:
    populations = populations_of(replace(small_settings(), data=six_sites()))
    notes, slides = populations["rare_disease"], populations["tissue_type"]
    assert set(notes.sites) == {"site-a", "site-b", "site-e", "site-f"}
    assert set(slides.sites) == {"site-c", "site-d", "site-e", "site-f"}
    for site in ("site-e", "site-f"):
        both = [r for r in slides.sites[site].train if r.photo is not None]
        assert len(both) == 5
        assert {r.patient_id for r in both} < {r.patient_id for r in notes.sites[site].train}
        assert all(set(r.label) == {"rare_disease", "tissue_type"} and r.slides for r in both)
    merged = everyone(populations)
    assert len(merged["site-e"].train) == 40 + 10 - 5
    assert len({r.patient_id for r in merged["site-e"].train}) == 45
    assert merged["site-c"].train == slides.sites["site-c"].train


def test_data_without_any_patients_are_refused() -> None:
    with pytest.raises(SettingsError, match="training patients by site"):
        SyntheticData(name="synthetic", sites={}, skew=0.5, seen_share=0.7, test_per_answer=1)
