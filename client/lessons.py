"""What a site's one teacher teaches the students of all its tracks: rankings, made into pairs, once a run.

The teacher looks at every patient of the site who may take part, with whatever eyes he brings, and has an
answer head for each track. Its pairs are stored encrypted, a file a track.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from client.budget import SiteBudget
from client.patients.records import PatientRecord, eligible
from client.preferences.pairs import PairCounts, PreferencePair, make_all_pairs
from client.preferences.store import StoredPairs, load_pairs, save_pairs
from client.site_patients import Excluded, SitePatients, nobody, site_prompts, site_seed
from client.teacher.fit import TeacherRecipe
from client.teacher.public import names_for
from client.teacher.rank import Ranking, cross_fit, teachers_digest
from client.teacher.sight import Memory
from common.canonical import json_digest, plain
from common.durable import sync_folder
from common.errors import DigestMismatchError, FederationError
from common.ids import SiteId
from common.plan import RunPlan, TrackPlan
from common.tracks import AnswerList

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, repr=False)
class Lessons:
    """What a site's student of one track learns from.

    Attributes:
        rankings: The teacher's, of each training patient by a teacher that did not train on him; none where
            the pairs were read back.
        pairs: Made of them.
        counts: What became of the patients.
        left_out: Patients who may not take part.
    """

    rankings: tuple[Ranking, ...]
    pairs: tuple[PreferencePair, ...]
    counts: PairCounts
    left_out: int


KnownRankings = MutableMapping[str, Mapping[str, list[Ranking]]]
"""By a digest of site, seed, teacher's plan, answers and patients; then by track."""


class NoPairsError(FederationError):
    """A site has nothing to teach a track's student with."""

    def __init__(self, site_id: SiteId, track: str) -> None:
        super().__init__(f"{site_id}: no patient of track {track} gives a preference pair")


class SiteTeaching:
    """The teacher of one site for one run, and what it taught.

    Attributes:
        patients: The site's own.
        budget: Of the patients it learns from, where the plan spends one.
    """

    def __init__(
        self,
        *,
        site_id: SiteId,
        plan: RunPlan,
        patients: SitePatients,
        answers: Mapping[str, AnswerList],
        memory: Memory,
        store: Path,
        master_key: bytes,
        recipe: TeacherRecipe | None = None,
        budget: SiteBudget | None = None,
        excluded: Excluded = nobody,
        known: KnownRankings | None = None,
    ) -> None:
        """Teaching for the tracks that ``plan`` has this site in.

        Args:
            site_id: Whose it is.
            plan: As the site approved it.
            patients: The site's own, of all its tracks.
            answers: The plan's, by track.
            memory: The teacher's eyes, which look at each patient once.
            store: Folder for the pairs, encrypted, a file a track.
            master_key: 32 bytes that wrap the files' keys.
            recipe: Of the teacher's training.
            budget: Of the patients; needed where the plan's teacher learns from them under privacy.
            excluded: Who takes no part any more; asked before a teacher is trained.
            known: Rankings that equal teachers made before, which are not trained again; what is made here is
                added. Teachers under privacy are never taken from it: each is paid for by itself.

        Raises:
            DigestMismatchError: The answers are not the plan's.
        """
        if budget is None and plan.teacher.privacy == "dp":
            raise ValueError("Expected a budget to train a teacher under privacy, got none")
        self.patients, self.budget = patients, budget
        self._site, self._plan, self._tracks = site_id, plan, plan.tracks_of(site_id)
        self._answers = {track.track: answers[track.track] for track in self._tracks}
        # Of the others a student that was trained before is calibrated, and nobody teaches it.
        self._taught = tuple(track for track in self._tracks if track.training.rounds)
        self._memory, self._store, self._master_key, self._recipe = memory, store, master_key, recipe
        self._excluded, self._known = excluded, known
        self._lessons: dict[str, Lessons] = {}
        for track in self._tracks:
            if self._answers[track.track].digest() != track.answers_digest:
                got = self._answers[track.track].digest()
                raise DigestMismatchError("answers", got, track.answers_digest)

    def answers(self, track: str) -> AnswerList:
        """The plan's answers of one of the site's tracks."""
        return self._answers[track]

    def pairs_file(self, track: str) -> Path:
        """Where the pairs of a track are stored, under the plan's digest."""
        return self._store / f"pairs-{track}-{self._plan.digest()[:16]}.json"

    def _unmoved_file(self, track: str) -> Path:
        """Where they are until those of all tracks are there; under new keys too, like every ``*.json``."""
        return self.pairs_file(track).with_suffix(".unmoved.json")

    def prepare(self, track: str) -> Lessons:
        """Train the teachers, rank, make and store the pairs of all tracks; once.

        Nothing is taught, and nobody is looked at, for a track without rounds of training.

        A plan's DP teachers are trained once, since each training costs patients as much again: a site
        that was restarted goes on with the pairs that it stored.

        Guarantee: after a crash the pairs of all tracks are there or of none, and a DP teacher is lost only
        with a crash before the last of them is written.

        Raises:
            BudgetSpentError: The teachers are paid for and their pairs are lost, or the site's cap is met.
            NoPairsError: No patient gives a pair for this track.
        """
        if all(taught.track != track for taught in self._taught):
            return Lessons(rankings=(), pairs=(), counts=PairCounts(), left_out=0)
        if track not in self._lessons:
            self._lessons = self._stored_lessons()
        if track not in self._lessons:
            if self.budget is not None:
                # Before they learn from anybody.
                self.budget.spend_teacher()
            self._lessons = self._teach()
        if not self._lessons[track].pairs:
            raise NoPairsError(self._site, track)
        return self._lessons[track]

    def _stored_lessons(self) -> dict[str, Lessons]:
        """What the plan's DP teachers taught before this process began, by track, as far as it is here."""
        if self.budget is None or not self.budget.has_teacher():
            return {}
        self._finish_moving()
        # Who has withdrawn since is left out, as he would be by making them anew.
        kept = {record.patient_id for record in eligible(self.patients.train, self._plan.purpose).kept}
        found = {track.track: self._read(track) for track in self._taught}
        return {track: _read_back(pairs, kept) for track, pairs in found.items() if pairs is not None}

    def _read(self, track: TrackPlan) -> tuple[PreferencePair, ...] | None:
        path = self.pairs_file(track.track)
        if not path.exists():
            return None
        try:
            stored = load_pairs(path, master_key=self._master_key, plan_digest=self._plan.digest())
        except DigestMismatchError:
            # Of another plan: this plan's are lost.
            return None
        return stored.pairs

    def _teach(self) -> dict[str, Lessons]:
        excluded = self._excluded()
        present = [record for record in self.patients.train if record.patient_id not in excluded]
        allowed = eligible(present, self._plan.purpose)
        left_out = len(self.patients.train) - len(allowed.kept)
        for reason, number in allowed.counts.items():
            if number:
                logger.info("%s: %d patients left out: %s", self._site, number, reason.value)
        answers = {track.track: self._answers[track.track] for track in self._taught}
        kept = [record for record in allowed.kept if answers.keys() & record.label.keys()]
        rankings = self._rank(kept, answers) if kept else {track: [] for track in answers}
        lessons = {
            track.track: self._pairs(kept, rankings[track.track], track, left_out=left_out)
            for track in self._taught
        }
        self._save(lessons)
        return lessons

    def _save(self, lessons: Mapping[str, Lessons]) -> None:
        """Store the pairs of all tracks: first beside their places, then there."""
        for track, made in lessons.items():
            stored = StoredPairs(
                pairs=made.pairs,
                teacher_digest=teachers_digest(made.rankings),
                plan_digest=self._plan.digest(),
            )
            save_pairs(stored, self._unmoved_file(track), master_key=self._master_key)
        # Before the first is moved: a moved one says that all were written.
        sync_folder(self._store)
        self._finish_moving()

    def _finish_moving(self) -> None:
        """Move pairs to their places, if those of all tracks were written."""
        names = [track.track for track in self._taught]
        unmoved = [name for name in names if self._unmoved_file(name).exists()]
        if not unmoved or not all(name in unmoved or self.pairs_file(name).exists() for name in names):
            return
        for name in unmoved:
            self._unmoved_file(name).replace(self.pairs_file(name))
        sync_folder(self._store)

    def _rank(
        self, kept: Sequence[PatientRecord], answers: Mapping[str, AnswerList]
    ) -> Mapping[str, list[Ranking]]:
        """Every patient by a teacher that did not train on him, by track."""
        if self._known is None or self._plan.teacher.privacy == "dp":
            return self._cross_fit(kept, answers)
        digests = {track: own.digest() for track, own in answers.items()}
        ids = [record.patient_id for record in kept]
        key = json_digest([self._site, self._plan.seed, plain(self._plan.teacher), digests, ids])
        if key not in self._known:
            self._known[key] = self._cross_fit(kept, answers)
        return self._known[key]

    def _cross_fit(
        self, kept: Sequence[PatientRecord], answers: Mapping[str, AnswerList]
    ) -> Mapping[str, list[Ranking]]:
        views = {record.patient_id: self.patients.views.view(record) for record in kept}
        return cross_fit(
            kept,
            self._memory.look(views),
            answers=answers,
            plan=self._plan.teacher,
            seed=site_seed(self._plan.seed, self._site, "teacher"),
            # Public: what the answers are called helps a teacher that may not look at how notes spread.
            names={
                track: names
                for track, own in answers.items()
                if (names := names_for(own, self._memory, self._plan.teacher.privacy)) is not None
            },
            recipe=self._recipe,
        )

    def _pairs(
        self,
        kept: Sequence[PatientRecord],
        rankings: Sequence[Ranking],
        track: TrackPlan,
        *,
        left_out: int,
    ) -> Lessons:
        name = track.track
        # A patient whom the student cannot read still teaches the teacher.
        labels = {record.patient_id: record.label[name] for record in kept if name in record.label}
        labeled = [record for record in kept if name in record.label]
        prompts = site_prompts(labeled, self.patients.views, track.definition)
        made = make_all_pairs(
            [ranking for ranking in rankings if ranking.patient_id in prompts],
            # All prompts of a patient have one text; of an image student they differ in the tile alone.
            prompts={patient: read[0].text for patient, read in prompts.items()},
            labels=labels,
            header=track.definition.header,
            plan=track.preferences,
            answers=self._answers[name],
            seen=set(labels.values()),
            seed=site_seed(self._plan.seed, self._site, f"pairs of {name}"),
        )
        return Lessons(rankings=tuple(rankings), pairs=made.pairs, counts=made.counts, left_out=left_out)


def _read_back(pairs: Sequence[PreferencePair], kept: set[str]) -> Lessons:
    own = tuple(pair for pair in pairs if pair.patient_id in kept)
    counts = PairCounts(patients=len({pair.patient_id for pair in own}), pairs=len(own))
    return Lessons(rankings=(), pairs=own, counts=counts, left_out=0)
