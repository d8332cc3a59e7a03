"""What the world may do to a federation, one class for each answer to it.

A caller's mistake is a `ValueError`. What a peer, a file or a network may bring is a child of
`FederationError`: it builds its own message of one line from ids, the value got and the value expected.
A message never holds a patient's data, a key or a share.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

LONGEST_VALUE = 160


class FederationError(Exception):
    """Something happened that a federation has to expect."""


class UnsupportedSchemaError(FederationError):
    """A file or message was written by a newer version than this one."""

    def __init__(self, what: str, got: int, newest: int) -> None:
        super().__init__(f"{what}: schema {got} is newer than {newest}, the newest this version reads; install a newer version")
        self.what = what
        self.got = got
        self.newest = newest


class DigestMismatchError(FederationError):
    """A thing named by its digest is another thing."""

    def __init__(self, what: str, got: str, expected: str) -> None:
        super().__init__(f"{what}: expected digest {expected}, got {got}")
        self.what = what
        self.got = got
        self.expected = expected


class TooFewSurvivorsError(FederationError):
    """A round lost more sites than its plan allows."""

    def __init__(self, round_id: int, survivors: int, threshold: int) -> None:
        super().__init__(f"Round {round_id}: {survivors} sites survived, {threshold} needed")
        self.round_id = round_id
        self.survivors = survivors
        self.threshold = threshold


class SiteRefusedError(FederationError):
    """A site will not do what it was asked; its reason goes with it."""

    def __init__(self, site_id: str, reason: str) -> None:
        super().__init__(f"Site {site_id} refused: {one_line(reason)}")
        self.site_id = site_id
        self.reason = reason


class BadSignatureError(FederationError):
    """What claims to come from a site was not signed by it."""

    def __init__(self, site_id: str, what: str) -> None:
        super().__init__(f"{what} of {site_id}: expected a signature by its approved key")
        self.site_id = site_id
        self.what = what


class UnapprovedSiteError(FederationError):
    """A site is named whose identity this site's administrator has not approved."""

    def __init__(self, site_id: str) -> None:
        super().__init__(f"{site_id} is not approved here: its identity is in no file of approved sites")
        self.site_id = site_id


class BadRosterError(FederationError):
    """A roster, or the members that are left of it, is not one this site may take part in."""

    def __init__(self, sum_id: int, reason: str) -> None:
        super().__init__(f"Sum {sum_id}: roster: {one_line(reason)}")
        self.sum_id = sum_id
        self.reason = reason


class BadEnvelopeError(FederationError):
    """A sealed share does not open: it was made by another, for another, or for another roster."""

    def __init__(self, sender: str, receiver: str) -> None:
        super().__init__(f"The envelope from {sender} to {receiver} does not open")
        self.sender = sender
        self.receiver = receiver


class TranscriptMismatchError(FederationError):
    """A masked input was made for other members, keys, adapter or plan than the coordinator's own."""

    def __init__(self, site_id: str) -> None:
        super().__init__(f"{site_id}: its masked input belongs to another transcript; it saw another task")
        self.site_id = site_id


class BadSurvivorListError(FederationError):
    """A list of survivors and dropouts that no site may give its shares for."""

    def __init__(self, sum_id: int, reason: str) -> None:
        super().__init__(f"Sum {sum_id}: survivor list: {one_line(reason)}")
        self.sum_id = sum_id
        self.reason = reason


class StaleSumError(FederationError):
    """A secure sum that this site has closed, or one that it never began."""

    def __init__(self, sum_id: int, reason: str) -> None:
        super().__init__(f"Sum {sum_id}: {one_line(reason)}")
        self.sum_id = sum_id
        self.reason = reason


class AnsweredAlreadyError(FederationError):
    """A site gives one answer to each stage of a sum; this request wants a second one."""

    def __init__(self, sum_id: int, stage: str) -> None:
        super().__init__(f"Sum {sum_id}: {stage} was answered already, to another request")
        self.sum_id = sum_id
        self.stage = stage


class WrongSecretError(FederationError):
    """What the shares of a site's secret give is not the secret that the site committed to."""

    def __init__(self, sum_id: int, site_id: str) -> None:
        super().__init__(f"Sum {sum_id}: the shares of {site_id}'s secret do not give what it committed to")
        self.sum_id = sum_id
        self.site_id = site_id


class BadMessageError(FederationError):
    """Bytes that came from a peer are not a message of this protocol."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"Bad message: {one_line(reason)}")
        self.reason = reason


class BadFileError(FederationError):
    """A file does not hold what its place says it holds."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {one_line(reason)}")
        self.path = Path(path)
        self.reason = reason


class BudgetSpentError(FederationError):
    """A step would take more from patients than a plan or a site allows."""

    def __init__(self, track: str, part: str, reason: str) -> None:
        super().__init__(f"{track}: privacy budget of the {part}: {one_line(reason)}")
        self.track = track
        self.part = part
        self.reason = reason


class BudgetRefusedError(FederationError):
    """Sites refuse to go on because their patients' budget does not allow it; no retry changes that."""

    def __init__(self, round_id: int, reason_by_site: Mapping[str, str]) -> None:
        named = "; ".join(f"{site}: {reason}" for site, reason in sorted(reason_by_site.items()))
        super().__init__(f"Round {round_id}: refused for the privacy budget by {one_line(named)}")
        self.round_id = round_id
        self.reason_by_site = dict(reason_by_site)


class LedgerMissingError(FederationError):
    """A ledger is not where it was; an empty one in its place would forget what was spent."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(f"{path}: the ledger is gone; restore its newest copy, an empty one would forget")
        self.path = Path(path)


class LedgerBrokenError(FederationError):
    """An entry of a ledger is not the one that was written there."""

    def __init__(self, path: Path | str, index: int, how: str) -> None:
        super().__init__(f"{path}: entry {index}: {one_line(how)}")
        self.path = Path(path)
        self.index = index
        self.how = how


class LedgerRolledBackError(FederationError):
    """A ledger has a whole chain, but not one that holds what others saw of it."""

    def __init__(self, path: Path | str, found: str, expected: str) -> None:
        super().__init__(
            f"{path}: expected {one_line(expected)}, found {one_line(found)}; restore the newest copy, "
            "or tell the coordinator and begin a new cohort"
        )
        self.path = Path(path)
        self.found = found
        self.expected = expected


class SettingsError(FederationError, ValueError):
    """A setting or a plan's field is missing, unknown, of the wrong type or out of its range.

    Also a `ValueError`, since the same check refuses a value that a caller passes and one that a person
    wrote into a file.
    """

    def __init__(self, key: str, got: object, expected: str) -> None:
        super().__init__(f"{key}: expected {one_line(expected)}, got {one_line(str(got))}")
        self.key = key
        self.got = got
        self.expected = expected

    def under(self, where: str) -> SettingsError:
        """The same refusal, its key named from the outside (`rounds` becomes `plan.training.rounds`)."""
        return SettingsError(f"{where}.{self.key}", self.got, self.expected)


class NotConfirmedError(FederationError):
    """Somebody was asked before a step that others rely on, and did not say yes."""

    def __init__(self, question: str, got: str) -> None:
        super().__init__(f"not confirmed, nothing was changed: {one_line(question)} expected yes, got {got}")
        self.question = question
        self.got = got


class HomeInUseError(FederationError):
    """A home is made once; a second one in its place would forget keys and ledgers."""

    def __init__(self, path: Path | str, found: str) -> None:
        super().__init__(f"{path}: expected an empty folder for a new home, found {found}")
        self.path = Path(path)
        self.found = found


class NotReadyError(FederationError):
    """A process must not start as things are: what it would rely on does not hold."""

    def __init__(self, what: str, got: str, expected: str) -> None:
        super().__init__(f"{what}: expected {one_line(expected)}, got {one_line(got)}")
        self.what = what
        self.got = got
        self.expected = expected


class AlreadyRunningError(FederationError):
    """Two daemons over one folder would answer the same messages twice."""

    def __init__(self, path: Path | str, process: str) -> None:
        super().__init__(f"{path}: a daemon runs there already, process {process}; stop it first")
        self.path = Path(path)
        self.process = process


class NotRunningError(FederationError):
    """What was asked needs a running daemon, and none is there."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(f"{path}: no daemon runs here; `consilium-site start` starts it")
        self.path = Path(path)


class UnsafeKeyError(FederationError):
    """A master key cannot be used, or others than its owner could read it."""

    def __init__(self, where: Path | str, reason: str) -> None:
        super().__init__(f"{where}: {one_line(reason)}")
        self.where = where
        self.reason = reason


class WrongKeyError(FederationError):
    """A file was sealed under another key than the one at hand."""

    def __init__(self, path: Path | str, got: str, expected: str) -> None:
        super().__init__(f"{path}: expected the master key {expected}, got {got}")
        self.path = Path(path)
        self.got = got
        self.expected = expected


class TamperedStoreError(FederationError):
    """A store is not what was written: its head, its key or its content was changed."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(f"{path}: expected what was written here, got changed or damaged content")
        self.path = Path(path)


class KeysInUseError(FederationError):
    """Keys cannot be changed while a process works with them, nor be used while they are changed."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(f"{path}: {one_line(reason)}")
        self.path = Path(path)
        self.reason = reason


class RotationUnfinishedError(FederationError):
    """A rotation of the data key was interrupted: some files are under the old key, some under the new."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(
            f"{path}: a change of the data key was interrupted; finish it with: consilium-site rotate-keys --data"
        )
        self.path = Path(path)


def one_line(text: str) -> str:
    """The text on one line, cut to a length that a log can bear."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_VALUE else f"{line[: LONGEST_VALUE - 3]}..."
