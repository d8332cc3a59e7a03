"""What a crash leaves of a teacher's lessons; what is taught is looked at in test_worker.py."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from client import lessons as module
from client.lessons import Lessons, SiteTeaching
from client.patients.records import PatientRecord
from client.preferences.pairs import PairCounts, PreferencePair
from client.site_patients import SitePatients, Views
from common.errors import BudgetSpentError, FederationError
from common.learning_plan import TeacherPlan
from common.plan import RunPlan
from common.privacy_plan import TeacherPrivacy
from common.tracks import Answer, AnswerList
from tests.fakes import SITES, fake_budget, private_plan

ANSWERS = AnswerList(answers=(Answer(id="a", name="A"), Answer(id="b", name="B")))
PATIENT = PatientRecord(patient_id="p", case_id="p", note="Tall.", consent=frozenset({"research"}))
DP = TeacherPrivacy(noise_multiplier=4.0, sampling_rate=0.1, clip_norm=1.0, steps=5, learning_rate=0.1)
NO_EYES: Any = None


class Crash(BaseException):
    """The process ends here."""


@pytest.fixture
def plan() -> RunPlan:
    made = private_plan(teacher=TeacherPlan(privacy="dp", folds=2, modality_dropout=0.1, dp=DP))
    (track,) = made.tracks
    other = replace(track, track="tissue_type")
    tracks = tuple(replace(one, answers_digest=ANSWERS.digest()) for one in (track, other))
    return replace(made, tracks=tracks)


def pairs_of(track: str) -> tuple[PreferencePair, ...]:
    return (PreferencePair(patient_id="p", prompt="Tall.", chosen=track, rejected="b", margin=1.0),)


class Site:
    """One that is started anew, on the same disk, with each call of ``teaching``."""

    def __init__(self, plan: RunPlan, home: Path) -> None:
        self.plan, self.home = plan, home
        self.budget = fake_budget(plan, home / "ledger.db", SITES[0])

    def teaching(self) -> SiteTeaching:
        return SiteTeaching(
            site_id=SITES[0],
            plan=self.plan,
            patients=SitePatients(train=(PATIENT,), test=(), views=Views()),
            answers={track.track: ANSWERS for track in self.plan.tracks},
            memory=NO_EYES,
            store=self.home,
            master_key=bytes(32),
            budget=self.budget,
        )

    def found(self) -> list[tuple[PreferencePair, ...] | type[FederationError]]:
        """What a site that was started again has of each track."""
        teaching = self.teaching()
        found: list[tuple[PreferencePair, ...] | type[FederationError]] = []
        for track in self.plan.tracks:
            try:
                found.append(teaching.prepare(track.track).pairs)
            except FederationError as error:
                found.append(type(error))
        return found


@pytest.fixture
def site(plan: RunPlan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    def lessons(_: Any, kept: Any, rankings: Any, track: Any, *, left_out: int) -> Lessons:
        pairs = pairs_of(track.track)
        return Lessons(rankings=(), pairs=pairs, counts=PairCounts(patients=1, pairs=1), left_out=left_out)

    monkeypatch.setattr(SiteTeaching, "_pairs", lessons)
    monkeypatch.setattr(SiteTeaching, "_rank", lambda *_: {track.track: [] for track in plan.tracks})
    return Site(plan, tmp_path)


STEPS = (
    "before the 1st is written",
    "before the 2nd is written",
    "before the folder is synced",
    "before the 1st is moved",
    "before the 2nd is moved",
    "before the folder is synced again",
)
LOST_UNTIL = 2


def crash_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The process ends instead of its step of this number, counted from 0."""
    done: list[str] = []

    def counted(step_of: Any) -> Any:
        def run(*args: Any, **named: Any) -> Any:
            if len(done) == step:
                raise Crash
            done.append(step_of.__name__)
            return step_of(*args, **named)

        return run

    replace_file = Path.replace

    def move(path: Path, target: Path) -> Path:
        # The other moves are those of files that are written as a whole.
        is_own = path.name.endswith(".unmoved.json")
        return counted(replace_file)(path, target) if is_own else replace_file(path, target)

    monkeypatch.setattr(module, "save_pairs", counted(module.save_pairs))
    monkeypatch.setattr(module, "sync_folder", counted(module.sync_folder))
    monkeypatch.setattr(Path, "replace", move)


@pytest.mark.parametrize("step", range(len(STEPS)), ids=STEPS)
def test_after_a_crash_the_pairs_of_all_tracks_are_there_or_of_none(
    site: Site, step: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        crash_at(step, patched)
        with pytest.raises(Crash):
            site.teaching().prepare("rare_disease")
    assert site.budget.has_teacher()
    found = site.found()
    if step < LOST_UNTIL:
        assert found == [BudgetSpentError, BudgetSpentError]
    else:
        assert found == [pairs_of(track.track) for track in site.plan.tracks]
        names = sorted(path.name for path in site.home.glob("pairs-*"))
        assert names == sorted(site.teaching().pairs_file(track.track).name for track in site.plan.tracks)
    # Paid for once.
    assert [entry.charge.part for entry in site.budget.entries()] == ["teacher"]


def test_where_nothing_crashes_there_is_one_file_a_track(site: Site) -> None:
    assert site.found() == [pairs_of(track.track) for track in site.plan.tracks]
    assert len(list(site.home.glob("pairs-*"))) == len(site.plan.tracks)
    assert site.found() == [pairs_of(track.track) for track in site.plan.tracks]
