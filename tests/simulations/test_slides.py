import dataclasses

import numpy as np
import pytest

from common.tracks import TISSUE_TYPE
from simulations import slides
from simulations.hospital import Purpose, stream
from simulations.slide_drawing import draw_concentrations, stain_tile
from simulations.slides import (
    ATTRIBUTES,
    KINDS,
    MEASURES,
    TISSUES,
    draw_measures,
    draw_slides,
    draw_stain,
    draw_tile,
    make_slide_hospitals,
    make_slide_records,
    public_tiles,
    vary_stain,
)

STAIN = draw_stain(np.random.default_rng(0))
ONE_EACH = [1] * len(TISSUES)


def test_the_same_kind_stain_and_generator_state_give_the_same_pixels() -> None:
    one, same, other = (draw_tile("liver", STAIN, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert one.shape == (64, 64, 3) and one.dtype == np.uint8
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)


@pytest.mark.parametrize("size", [16, 33, 96])
def test_every_kind_is_drawn_at_any_size(size: int) -> None:
    for name in TISSUES.names:
        tile = draw_tile(name, STAIN, np.random.default_rng(3), size)
        assert tile.shape == (size, size, 3)
        assert tile.std() > 2  # more than a camera's noise on empty glass would be flat white


def test_a_size_too_small_for_a_nucleus_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 16"):
        draw_tile("liver", STAIN, np.random.default_rng(0), 15)


def test_an_unknown_tissue_is_refused() -> None:
    with pytest.raises(ValueError, match="Expected a tissue among"):
        draw_measures("spleen", np.random.default_rng(0))


def test_a_kind_names_known_measures_within_their_range() -> None:
    for kind in KINDS.values():
        assert kind.keys() <= MEASURES.keys()
        assert all(0 <= place <= 1 for place in kind.values())


def test_measures_stay_within_their_range_and_around_their_kind() -> None:
    drawn = [draw_measures("smooth muscle", np.random.default_rng(seed)) for seed in range(200)]
    for name, one in MEASURES.items():
        values = np.array([measures[name] for measures in drawn])
        assert one.least <= values.min() and values.max() <= one.most
    long = np.mean([measures["elongation"] for measures in drawn])
    range_ = MEASURES["elongation"]
    assert long == pytest.approx(range_.least + 0.8 * (range_.most - range_.least), abs=0.1)


def test_more_dye_never_makes_a_channel_lighter_but_for_noise() -> None:
    thin = draw_concentrations(draw_measures("bone", np.random.default_rng(0)), np.random.default_rng(1))
    once, twice = (
        stain_tile(*(factor * dye for dye in thin), STAIN, np.random.default_rng(2)).astype(int)
        for factor in (1, 2)
    )
    assert (twice <= once + 1).all()
    assert twice.mean() < once.mean() - 10


def test_what_is_measured_is_what_is_drawn() -> None:
    usual = draw_measures("liver", np.random.default_rng(0))
    many, few, fat = (
        draw_concentrations({**usual, **changed}, np.random.default_rng(1))
        for changed in (
            {"density": 120.0, "fat": 0.0},
            {"density": 10.0, "fat": 0.0},
            {"density": 10.0, "fat": 0.97},
        )
    )
    assert (many[0] > 0.7).mean() > 4 * (few[0] > 0.7).mean()
    assert (fat[1] < 0.1).mean() > (few[1] < 0.1).mean() + 0.5


def test_a_stain_without_strength_or_light_is_refused() -> None:
    with pytest.raises(ValueError, match="strengths above 0"):
        dataclasses.replace(STAIN, eosin_strength=0.0)
    with pytest.raises(ValueError, match="background above 0"):
        dataclasses.replace(STAIN, background=(243.0, 0.0, 243.0))


def test_slides_of_one_laboratory_are_closer_than_laboratories() -> None:
    rng = np.random.default_rng(5)
    laboratories = [draw_stain(rng) for _ in range(200)]
    own = [vary_stain(STAIN, rng) for _ in range(200)]
    for name in ("hematoxylin_strength", "eosin_strength", "blur"):
        between, within = (np.std([getattr(one, name) for one in some]) for some in (laboratories, own))
        assert within < between / 2


def test_public_stains_are_drawn_from_a_wider_range_than_hospitals() -> None:
    rng = np.random.default_rng(6)
    sites, public = (
        [draw_stain(rng, width=width).hematoxylin_strength for _ in range(300)]
        for width in (slides.HOSPITAL_RANGE, slides.PUBLIC_RANGE)
    )
    assert np.std(public) > 1.3 * np.std(sites)


def test_tiles_of_a_patient_share_a_slide() -> None:
    counts = {
        len(draw_slides("nerve", STAIN, np.random.default_rng(seed), most_tiles=3)) for seed in range(30)
    }
    assert counts == {1, 2, 3}
    with pytest.raises(ValueError, match="most_tiles of at least 1"):
        draw_slides("nerve", STAIN, np.random.default_rng(0), most_tiles=0)


def test_records_hold_the_caseload_and_the_same_seed_gives_the_same_patients() -> None:
    counts = [2, *[0] * (len(TISSUES) - 2), 1]
    records = make_slide_records(7, 1, 0, counts, site="north", size=16)
    labels = sorted(record.label[TISSUE_TYPE.name] for record in records)
    assert labels == sorted([TISSUES.ids[0], TISSUES.ids[0], TISSUES.ids[-1]])
    assert [record.patient_id for record in records] == [
        "north-slide-a00000",
        "north-slide-a00001",
        "north-slide-a00002",
    ]
    assert all(record.consent == {"research"} for record in records)
    again = make_slide_records(7, 1, 0, counts, site="north", size=16)
    assert [one.slides for one in again] == [one.slides for one in records]
    other = make_slide_records(7, 2, 0, counts, site="north", size=16)
    assert [one.slides for one in other] != [one.slides for one in records]


def test_records_refuse_another_split_or_caseload() -> None:
    with pytest.raises(ValueError, match="split 0 or 1"):
        make_slide_records(0, 0, 2, ONE_EACH, site="a")
    with pytest.raises(ValueError, match="Expected 12 counts"):
        make_slide_records(0, 0, 0, [1], site="a")


def test_a_patient_belongs_to_one_hospital_and_there_to_training_or_test_alone() -> None:
    hospitals = make_slide_hospitals(3, {"north": 14, "south": 20}, test_per_answer=1, size=16)
    assert [len(one.train) for one in hospitals.values()] == [14, 20]
    assert sum(len(one.test) for one in hospitals.values()) == len(TISSUES)
    everybody = [one for site in hospitals.values() for one in (*site.train, *site.test)]
    assert len({one.patient_id for one in everybody}) == len(everybody)
    assert len({one.slides[0] for one in everybody}) == len(everybody)


def test_hospitals_differ_in_stain_more_than_their_slides_do() -> None:
    colors = np.array(
        [
            [
                np.mean([one.slides[0].pixels().mean(axis=(0, 1)) for one in half], axis=0)
                for half in (records[::2], records[1::2])
            ]
            for records in (
                make_slide_records(11, site, 0, [4] * len(TISSUES), site="s", size=16) for site in range(6)
            )
        ]
    )  # (sites, halves, channels)
    between = colors.mean(axis=1).std(axis=0)
    within = np.abs(colors[:, 0] - colors[:, 1]).mean(axis=0) / 2
    assert (between > 1.5 * within).all()


def test_public_tiles_share_no_random_stream_with_a_sites_patients(monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[int, ...]] = []

    def note(seed: int, purpose: Purpose, *index: int) -> np.random.Generator:
        used.append((int(purpose), *index))
        return stream(seed, purpose, *index)

    monkeypatch.setattr(slides, "stream", note)
    public_tiles(0, 3, size=16)
    public, used = set(used), []
    make_slide_hospitals(0, {"north": 14}, test_per_answer=1, size=16)
    assert {key[0] for key in public} == {Purpose.PUBLIC_TILES}
    assert Purpose.PUBLIC_TILES not in {key[0] for key in used}
    assert len(public) == 3
    assert len({key for key in used if len(key) == 4}) == 14 + len(TISSUES)  # a stream a patient


def test_public_tiles_come_with_kinds_and_attributes() -> None:
    tiles, kinds, table = public_tiles(2, 40, size=16)
    assert tiles.shape == (40, 16, 16, 3) and tiles.dtype == np.uint8
    assert kinds.dtype == np.int64 and set(kinds) <= set(range(len(TISSUES)))
    assert table.shape == (40, len(ATTRIBUTES)) and table.dtype == np.float32
    measured = table[:, : len(MEASURES)]
    assert measured.min() >= 0 and measured.max() <= 1
    # The first tiles are the same, however many are drawn.
    assert np.array_equal(public_tiles(2, 5, size=16)[0], tiles[:5])


def test_a_few_numbers_tell_most_kinds_apart_and_not_all() -> None:
    _, kinds, table = public_tiles(4, 900, size=16)
    measured = table[:, : len(MEASURES)]
    means = np.stack([measured[:600][kinds[:600] == kind].mean(axis=0) for kind in range(len(TISSUES))])
    nearest = ((measured[600:, None] - means) ** 2).sum(axis=-1).argmin(axis=1)
    right = (nearest == kinds[600:]).mean()
    # Whoever read all measures without error would be right this often: eyes cannot do better by much.
    assert 0.8 < right < 1
