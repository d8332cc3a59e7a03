"""Every message between a site and the coordinator. ``common.wire`` makes bytes of them and back.

A message is a frozen value, and a field's name means the same in all of them. Messages that travel in one
exchange are parts of a ``Bundle`` and are answered part by part, so that the keys of the next secure sum
ride on the present one.

A secure sum takes four stages (``common/secagg/README.md``); each message of a site that is part of one is
signed by the site:

    coordinator                     site
    KeysRequest                     Keys                fresh keys
    RosterOffer                     SealedShares        shares of the secrets, for the others
    TrainTask or EvaluateTask       MaskedInput         the work, masked
    ListRequest, if some are lost   ListSignature       one list of survivors for all
    UnmaskRequest                   UnmaskShares        what takes the masks off the sum

Where a plan spends a privacy budget, a HeadRequest goes before the work and before the shares, and a
LedgerHead comes back: so that a site whose ledger was cut or restored from a backup learns of it
(``common.privacy.ledger``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

from common.adapter import Adapter
from common.canonical import canonical_json, labeled_digest
from common.errors import one_line
from common.ids import RoundId, RunId, SiteId
from common.message_fields import BUNDLE, Part, RefusalCause, check_fields
from common.secagg.keys import SignedKeys

TOPIC_LABEL = "consilium topic of a secure sum v1"
HEAD_LABEL = "consilium head of a ledger v1"


@dataclass(frozen=True, kw_only=True)
class PrepareTask:
    """Asks a site to get data, teacher, pairs and student of a track ready."""

    kind: ClassVar[int] = 1
    run_id: RunId
    track: str
    plan_digest: str

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """A site's answer to ``PrepareTask``. It carries no count: readiness is all that is told."""

    kind: ClassVar[int] = 2
    run_id: RunId
    track: str
    site_id: SiteId

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class HeadRequest:
    """Asks for the head of a site's ledger, and hands it the coordinator's word for the last one it knows.

    Attributes:
        run_id: The run.
        track: The track.
        head: Digest of the last entry that the coordinator was told of; empty if of none.
        countersignature: The coordinator's, of ``head``; empty if there is none.
    """

    kind: ClassVar[int] = 17
    run_id: RunId
    track: str
    head: str
    countersignature: bytes

    def __post_init__(self) -> None:
        check_fields(self)
        if bool(self.head) != bool(self.countersignature):
            raise ValueError("countersignature: expected one for a head, and none without")


@dataclass(frozen=True, kw_only=True)
class LedgerHead:
    """The digest of the last entry of a site's ledger; it tells nothing of what the entries are."""

    kind: ClassVar[int] = 18
    run_id: RunId
    track: str
    site_id: SiteId
    head: str
    signature: bytes

    def __post_init__(self) -> None:
        check_fields(self)


# eq=False: arrays compare value by value, and a message is compared by its bytes.
@dataclass(frozen=True, kw_only=True, eq=False)
class TrainTask:
    """One round's work: train the round's block of ``adapter``, which carries its own spec.

    Attributes:
        run_id: The run.
        track: The track.
        plan_digest: Of the plan that the site approved.
        round_id: The round, from 1.
        adapter: What to train from.
        sum_id: The secure sum that takes the answer.
        members: Who masks for one another: the sites of the roster whose sealed shares arrived.
        envelopes: By sender, the shares sealed for the site that gets this task.
        bin_accuracy: How often the first answer was right, by bin of its confidence, over the calibration
            patients of all sites; None for an empty bin. In rounds of the calibration ``rcft`` only.
    """

    kind: ClassVar[int] = 3
    run_id: RunId
    track: str
    plan_digest: str
    round_id: RoundId
    adapter: Adapter
    sum_id: int
    members: tuple[SiteId, ...]
    envelopes: Mapping[SiteId, bytes]
    bin_accuracy: tuple[float | None, ...] | None

    def __post_init__(self) -> None:
        check_fields(self)
        if self.round_id < 1:
            raise ValueError(f"round_id: expected at least 1, the first round, got {self.round_id}")


@dataclass(frozen=True, kw_only=True, eq=False)
class EvaluateTask:
    """Asks for the counts of ``adapter`` on cases; ``round_id`` is the round that made it, or 0.

    Attributes:
        part: Whose cases: those of the ``test`` patients, or of those set aside for ``calibration``.
        temperature: What scores are divided by before they are made confidences.

    The other fields are those of ``TrainTask``.
    """

    kind: ClassVar[int] = 5
    run_id: RunId
    track: str
    plan_digest: str
    round_id: RoundId
    adapter: Adapter
    sum_id: int
    members: tuple[SiteId, ...]
    envelopes: Mapping[SiteId, bytes]
    part: Part
    temperature: float

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A site will not do a task.

    Attributes:
        run_id: The run.
        site_id: Whose answer it is.
        reason: One printable line without a patient's data.
        cause: ``failed``; ``away``: nobody is there to do it now, as while a worker starts again, which is
            no word of the site's that it will not; ``budget``: the privacy budget does not allow it, which
            no retry will change; ``ledger``: the site's ledger is damaged or older than it was.
    """

    kind: ClassVar[int] = 6
    run_id: RunId
    site_id: SiteId
    reason: str
    cause: RefusalCause

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class KeysRequest:
    """Asks for fresh keys of a secure sum to come."""

    kind: ClassVar[int] = 7
    run_id: RunId
    track: str
    plan_digest: str
    sum_id: int

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class Keys:
    """A site's keys, signed with the sum that they are for."""

    kind: ClassVar[int] = 8
    run_id: RunId
    track: str
    sum_id: int
    keys: SignedKeys

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class RosterOffer:
    """Everybody's keys; asks for shares, sealed for each of the others."""

    kind: ClassVar[int] = 9
    run_id: RunId
    track: str
    plan_digest: str
    sum_id: int
    roster: tuple[SignedKeys, ...]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class SealedShares:
    """A site's envelopes by receiver. Signed, so that whoever damages one is not taken for the site."""

    kind: ClassVar[int] = 10
    run_id: RunId
    track: str
    sum_id: int
    site_id: SiteId
    envelopes: Mapping[SiteId, bytes]
    signature: bytes

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class MaskedInput:
    """A site's vector, masked.

    Attributes:
        run_id: The run.
        track: The track.
        sum_id: The secure sum.
        site_id: Whose vector it is.
        transcript: Of members, keys and topic, as this site saw them; 32 bytes.
        words: uint32, one axis: the masked words, packed to the plan's word bits.
        signature: Of all the above.
    """

    kind: ClassVar[int] = 11
    run_id: RunId
    track: str
    sum_id: int
    site_id: SiteId
    transcript: bytes
    words: NDArray[np.uint32]
    signature: bytes

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ListRequest:
    """Some members are lost: asks for a signature of the list that all will be asked to unmask by."""

    kind: ClassVar[int] = 12
    run_id: RunId
    track: str
    sum_id: int
    survivors: tuple[SiteId, ...]
    dropouts: tuple[SiteId, ...]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class ListSignature:
    """A site's word that it gives shares for this list and no other."""

    kind: ClassVar[int] = 13
    run_id: RunId
    track: str
    sum_id: int
    site_id: SiteId
    signature: bytes

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class UnmaskRequest:
    """Asks for shares: of the survivors' seeds, of the dropouts' mask keys.

    ``signatures`` by site are those of the list; none are needed where nobody is lost.
    """

    kind: ClassVar[int] = 14
    run_id: RunId
    track: str
    sum_id: int
    survivors: tuple[SiteId, ...]
    dropouts: tuple[SiteId, ...]
    signatures: Mapping[SiteId, bytes]

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class UnmaskShares:
    """A site's shares by whose secret it is, never both kinds of one site's."""

    kind: ClassVar[int] = 15
    run_id: RunId
    track: str
    sum_id: int
    site_id: SiteId
    seed_shares: Mapping[SiteId, bytes] = field(repr=False)
    mask_key_shares: Mapping[SiteId, bytes] = field(repr=False)
    signature: bytes

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True, eq=False)
class Bundle:
    """Messages of one exchange; the answer is a bundle of the answers in the same order."""

    kind: ClassVar[int] = BUNDLE
    parts: tuple[Message, ...]

    def __post_init__(self) -> None:
        check_fields(self)

    @property
    def run_id(self) -> RunId:
        """The run of the first part."""
        return self.parts[0].run_id


SumTask: TypeAlias = TrainTask | EvaluateTask
Answer: TypeAlias = Keys | SealedShares | MaskedInput | ListSignature | UnmaskShares
Message: TypeAlias = (
    PrepareTask
    | Ready
    | TrainTask
    | EvaluateTask
    | Refusal
    | KeysRequest
    | Keys
    | RosterOffer
    | SealedShares
    | MaskedInput
    | ListRequest
    | ListSignature
    | UnmaskRequest
    | UnmaskShares
    | HeadRequest
    | LedgerHead
    | Bundle
)

# Kind 4 was a contribution in the clear; its number is not given again.
KINDS: Mapping[int, type[Message]] = {
    message.kind: message
    for message in (
        *(PrepareTask, Ready, TrainTask, EvaluateTask, Refusal, KeysRequest, Keys, RosterOffer),
        *(SealedShares, MaskedInput, ListRequest, ListSignature, UnmaskRequest, UnmaskShares, Bundle),
        *(HeadRequest, LedgerHead),
    )
}


def refusal(run: RunId, site: SiteId, reason: str, cause: RefusalCause = "failed") -> Refusal:
    """A ``Refusal`` whose reason is made to fit: one line, printable, short enough for a log."""
    printable = "".join(letter if letter.isprintable() else "?" for letter in one_line(reason))
    return Refusal(run_id=run, site_id=site, reason=printable or "no reason given", cause=cause)


def bundle(parts: tuple[Message, ...]) -> Message:
    """The parts as one message; a single one stays as it is."""
    return parts[0] if len(parts) == 1 else Bundle(parts=parts)


def sum_topic(task: SumTask, adapter_id: str) -> bytes:
    """32 bytes that name the work of a sum: what members must agree on beyond the roster.

    ``adapter_id`` is the digest of the task's adapter, as the caller computed it from what he holds.
    """
    topic = {
        "kind": task.kind,
        "run_id": task.run_id,
        "track": task.track,
        "plan_digest": task.plan_digest,
        "round_id": task.round_id,
        "adapter_id": adapter_id,
        **_work(task),
    }
    return labeled_digest(TOPIC_LABEL, canonical_json(topic).encode())


def _work(task: SumTask) -> dict[str, Any]:
    """What else decides on an answer."""
    if isinstance(task, TrainTask):
        return {"bin_accuracy": task.bin_accuracy}
    return {"part": task.part, "temperature": task.temperature}


def head_statement(run: RunId, track: str, site: SiteId, head: str) -> bytes:
    """What a site signs when it names the head of its ledger."""
    return labeled_digest(HEAD_LABEL, *(part.encode() for part in (run, track, site, head)))
