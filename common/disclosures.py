"""Everything that leaves a site or is chosen on its patients' data, and what protects it.

A number called epsilon is worth what it leaves out. So each field of each message of a site, and each choice
that a site makes from its patients' data, has its line here, and the ones that no accounting covers are said
on the report and on a student's card.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

Protection = Literal["student", "teacher", "nothing of patients", "own data only", "not covered"]
"""``student``, ``teacher``: composed into epsilon. ``own data only``: a function of one patient's own data,
public things and the teacher, so that the clip and the noise that follow cover it."""


@dataclass(frozen=True, kw_only=True)
class Disclosure:
    """One thing that might tell of a patient.

    Attributes:
        protection: What hides him, in privacy modes ``distributed`` and ``local``.
        note: Why, in words for a report.
    """

    protection: Protection
    note: str


def _public(note: str) -> Disclosure:
    return Disclosure(protection="nothing of patients", note=note)


_ID = _public("an id of the run or of the site")
_KEY = _public("keys, shares and signatures of secure aggregation")

SENT: Mapping[str, Disclosure] = MappingProxyType(
    {
        "Ready.run_id": _ID,
        "Ready.track": _ID,
        "Ready.site_id": _ID,
        "Refusal.run_id": _ID,
        "Refusal.site_id": _ID,
        "Refusal.reason": Disclosure(
            protection="not covered",
            note="that a site declines or fails, and a line that says why without a patient's data",
        ),
        "Refusal.cause": Disclosure(
            protection="not covered", note="whether a site's privacy budget is why it declines"
        ),
        "Keys.run_id": _ID,
        "Keys.track": _ID,
        "Keys.sum_id": _ID,
        "Keys.keys": _KEY,
        "SealedShares.run_id": _ID,
        "SealedShares.track": _ID,
        "SealedShares.sum_id": _ID,
        "SealedShares.site_id": _ID,
        "SealedShares.envelopes": _KEY,
        "SealedShares.signature": _KEY,
        "MaskedInput.run_id": _ID,
        "MaskedInput.track": _ID,
        "MaskedInput.sum_id": _ID,
        "MaskedInput.site_id": _ID,
        "MaskedInput.transcript": _KEY,
        "MaskedInput.words (training)": Disclosure(
            protection="student", note="the noised sum of the drawn patients' clipped gradients"
        ),
        "MaskedInput.words (evaluation)": Disclosure(
            protection="not covered",
            note="exact counts of right answers, and exact sums of confidences and of their losses, among "
            "the test patients of all sites",
        ),
        "MaskedInput.words (calibration)": Disclosure(
            protection="not covered",
            note="the same exact counts among the patients set aside for calibration, where a plan has any",
        ),
        "MaskedInput.signature": _KEY,
        "ListSignature.run_id": _ID,
        "ListSignature.track": _ID,
        "ListSignature.sum_id": _ID,
        "ListSignature.site_id": _ID,
        "ListSignature.signature": _KEY,
        "UnmaskShares.run_id": _ID,
        "UnmaskShares.track": _ID,
        "UnmaskShares.sum_id": _ID,
        "UnmaskShares.site_id": _ID,
        "UnmaskShares.seed_shares": _KEY,
        "UnmaskShares.mask_key_shares": _KEY,
        "UnmaskShares.signature": _KEY,
        "LedgerHead.run_id": _ID,
        "LedgerHead.track": _ID,
        "LedgerHead.site_id": _ID,
        "LedgerHead.head": _public("a digest of plans and noise that were spent"),
        "LedgerHead.signature": _KEY,
        "time to answer": Disclosure(
            protection="not covered", note="how long a site works, which grows with the patients drawn"
        ),
    }
)
"""What leaves a site, by message and field."""

CHOSEN: Mapping[str, Disclosure] = MappingProxyType(
    {
        "teacher: weights": Disclosure(protection="teacher", note="DP-SGD, or public weights"),
        "teacher: early stopping": _public("none under privacy: a fixed number of steps"),
        "teacher: class weights": _public("none under privacy"),
        "teacher: standardization": _public("none under privacy: each patient by himself"),
        "teacher: hyper-parameters": _public("fixed by the plan"),
        "teacher: folds": Disclosure(protection="own data only", note="by a hash of the pseudonym"),
        "pairs: which answers are rejected": Disclosure(
            protection="own data only", note="the patient's label and the teacher's ranking of him"
        ),
        "pairs: which answers a site has seen": _public("not used: a plan with an epsilon refuses it"),
        "student: readings of a note": Disclosure(
            protection="own data only",
            note="the patient's findings, and lots drawn from the plan's seed and the pseudonym",
        ),
        "patients: who may take part": Disclosure(
            protection="own data only", note="his own consent and label"
        ),
        "patients: how many there are": Disclosure(
            protection="not covered",
            note="the plan's round number of patients is public, and near the true one",
        ),
        "student: drawn batches": Disclosure(protection="student", note="Poisson samples, never shown"),
        "student: hyper-parameters": Disclosure(
            protection="not covered",
            note="choices of the plan, such as learning rates, as far as anybody made them by looking at "
            "what these patients' data gave",
        ),
        "student: temperature": Disclosure(
            protection="not covered",
            note="one number that all confidences are made with, chosen by those counts",
        ),
        "patients: who is set aside": Disclosure(
            protection="own data only", note="by a hash of the pseudonym, for calibration"
        ),
        "student: bins": _public("rcft alone looks at them, which a plan with noise refuses"),
        "student: which round is released": _public("the last one, whatever it is worth"),
    }
)
"""What is chosen on the way from patients to a release."""


def not_covered() -> tuple[str, ...]:
    """What a report and a card must name beside the number."""
    everything = (*SENT.values(), *CHOSEN.values())
    return tuple(found.note for found in everything if found.protection == "not covered")
