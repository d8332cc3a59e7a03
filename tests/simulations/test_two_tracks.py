"""One run of both tracks over six sites of three kinds, small enough for a test."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from client.cli import main as site_command
from client.patients.photos import encode_png
from client.student.predictions import read_predictions
from common.errors import SettingsError
from common.plan import RunPlan
from common.privacy.ledger import Ledger
from simulations.hospital import Purpose, stream
from simulations.method_settings import SweepPoint
from simulations.run import run_simulation
from simulations.scenarios import populations_of
from simulations.settings import SimulationSettings
from simulations.slide_drawing import Stain
from simulations.slides import TISSUES, draw_stain, draw_tile
from simulations.sweep import sweep_plans
from tests.simulations.small import small_settings

NOTES, SLIDES = "rare_disease", "tissue_type"
SIX = (
    "data=synthetic",
    "data.sites={site-a: 40, site-b: 40, site-e: 40, site-f: 40}",
    "data.slides={site-c: 14, site-d: 14, site-e: 12, site-f: 12}",
    "data.test_per_answer=1",
    "sight={tiles: 24, see_steps: 1, speak_steps: 1}",
    "+sight.see_batch=4",
    "+sight.speak_batch=4",
    "+sight.tower_width=24",
    "+sight.width=32",
    "slide_eye={tiles: 16, epochs: 1}",
    "+slide_eye.batch=8",
    "plan.teacher.privacy=dp",
    "plan.privacy.mode=distributed",
    "plan.privacy.teacher.steps=3",
    "tracks.tissue_type.training.rounds=2",
    "tracks.tissue_type.training.patients_per_step=2",
    "methods=[base,teacher,local_orpo,pooled_orpo,federated_orpo]",
)


@dataclass(frozen=True)
class Run:
    """A finished run."""

    settings: SimulationSettings
    content: dict[str, Any]
    printed: str

    @property
    def out(self) -> Path:
        return self.settings.out


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    place = tmp_path_factory.mktemp("two")
    settings = replace(small_settings(SIX), out=place / "out", cache=place / "cache")
    console = Console(record=True, width=160, file=io.StringIO())
    content = run_simulation(settings, console)
    yield Run(settings, content, console.export_text())


def rounds_of(run: Run, track: str) -> list[dict[str, Any]]:
    found = json.loads((run.out / "coordinator" / "orpo" / track / "rounds.json").read_text())
    return list(found["rounds"])


def test_each_round_of_a_track_has_the_sites_of_that_track_and_no_other(finished: Run) -> None:
    for track, sites in ((NOTES, "abef"), (SLIDES, "cdef")):
        rounds = rounds_of(finished, track)
        assert len(rounds) == 2
        for one in rounds:
            assert one["survivors"] == [f"site-{letter}" for letter in sites]


def test_the_plan_has_one_teacher_and_names_the_sites_of_each_track(finished: Run) -> None:
    plan = RunPlan.from_json((finished.out / "plan.json").read_text())
    assert plan.sites == tuple(f"site-{letter}" for letter in "abcdef")
    assert [track.track for track in plan.tracks] == [NOTES, SLIDES]
    assert plan.tracks[0].sites == ("site-a", "site-b", "site-e", "site-f")
    assert plan.teacher.privacy == "dp"


@pytest.mark.parametrize(("site", "tracks"), [("a", {NOTES}), ("c", {SLIDES}), ("e", {NOTES, SLIDES})])
def test_a_site_is_charged_for_one_teacher_and_for_the_rounds_of_its_own_tracks(
    finished: Run, site: str, tracks: set[str]
) -> None:
    entries = Ledger.open(
        finished.out / "sites" / f"site-{site}" / "ledger.db", f"simulated patients of site-{site}"
    ).entries()
    assert [entry.charge.track for entry in entries if entry.charge.part == "teacher"] == ["all"]
    students = [entry.charge.track for entry in entries if entry.charge.part == "student"]
    assert set(students) == tracks
    assert len(students) == 2 * len(tracks)


def test_what_is_said_of_privacy_holds_for_a_patient_of_both_tracks(finished: Run) -> None:
    privacy = finished.content["privacy"]
    assert set(privacy["tracks"]) == {NOTES, SLIDES}
    assert all(block["steps"] == 2 for block in privacy["tracks"].values())
    assert 0 < privacy["epsilon"] <= privacy["epsilon_promised"]
    assert finished.content["tracks"][NOTES]["methods"]["federated_orpo"]["privacy"]["mode"] == "distributed"


def test_both_students_are_written_and_both_are_in_the_report(finished: Run) -> None:
    page = (finished.out / "report.html").read_text()
    assert "The students side by side" in page
    assert "Rare disease: text-only student" in page
    assert "Tissue type: image-only student" in page
    for track in (NOTES, SLIDES):
        assert (finished.out / "students" / track / "adapter_model.safetensors").is_file()
        methods = finished.content["tracks"][track]["methods"]
        assert {"base", "teacher", "local_orpo", "pooled_orpo", "federated_orpo"} <= set(methods)
        assert (finished.out / "predictions" / track / "federated_orpo.jsonl").is_file()


def test_tissues_are_judged_tile_by_tile_and_diseases_patient_by_patient(finished: Run) -> None:
    tissues, diseases = finished.content["tracks"][SLIDES], finished.content["tracks"][NOTES]
    assert tissues["n_test"] >= tissues["n_test_units"]
    assert diseases["n_test"] == diseases["n_test_units"]
    assert tissues["methods"]["teacher_slide_only"]["n"] == tissues["n_test"]
    assert "top-5" in finished.printed
    assert "top-10" in finished.printed
    predictions = read_predictions(finished.out / "predictions" / SLIDES / "federated_orpo.jsonl")
    assert len({one.case_id for one in predictions}) == len(predictions) == tissues["n_test"]


def test_the_image_student_of_a_run_answers_for_a_folder_of_images(finished: Run, tmp_path: Path) -> None:
    tiles = tmp_path / "tiles"
    tiles.mkdir()
    stain: Stain = draw_stain(stream(1, Purpose.SLIDES, 9))
    for number in range(3):
        pixels = draw_tile(TISSUES.names[number], stain, stream(1, Purpose.SLIDES, 9, number), size=48)
        (tiles / f"{number}.png").write_bytes(encode_png(pixels))
    output = tmp_path / "answers.jsonl"
    command = ["predict", "--student", str(finished.out / "students"), "--track", SLIDES,
               "--input", str(tiles), "--output", str(output), "--top", "4"]  # fmt: skip
    assert site_command(command) == 0
    found = read_predictions(output)
    assert [one.case_id for one in found] == ["0.png", "1.png", "2.png"]
    assert all(len(one.answers) == 4 and {a.id for a in one.answers} <= set(TISSUES.ids) for one in found)


def test_what_is_said_of_one_track_changes_that_track_alone() -> None:
    settings = small_settings([*SIX, "tracks.tissue_type.training.rounds=5"])
    assert settings.plans[SLIDES].training.rounds == 5
    assert settings.plans[NOTES].training.rounds == 2
    assert settings.plans[SLIDES].preferences == settings.plans[NOTES].preferences


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("+tracks.tissues.training.rounds=5", "tracks: expected tracks among rare_disease, tissue_type, got"),
        ("+tracks.tissue_type.teacher.folds=3", "tracks.tissue_type: expected keys among"),
        ("+tracks.tissue_type.privacy.epsilon=3", "tracks.tissue_type: expected keys among"),
        (
            "+tracks.tissue_type.training.round=5",
            "settings.tracks.tissue_type.training.round: expected one of",
        ),
    ],
)
def test_what_cannot_be_said_of_one_track_is_refused(change: str, line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        small_settings([*SIX, change]).plans  # noqa: B018 - read for its checks
    assert line in str(caught.value)


def test_a_sweep_is_of_one_track() -> None:
    settings = replace(small_settings(SIX), sweep=(SweepPoint(mode="local", epsilon=4.0),))
    with pytest.raises(
        SettingsError, match="sweep: expected data of one track, got rare_disease, tissue_type"
    ):
        sweep_plans(settings, populations_of(settings), {})
