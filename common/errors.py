"""What the world may do to a federation, one class for each answer to it.

A caller's mistake is a `ValueError`. What a peer, a file or a network may bring is a child of
`FederationError`: it builds its own message of one line from ids, the value got and the value expected.
A message never holds a patient's data, a key or a share.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

LONGEST_VALUE = 160


class FederationError(Exception):
    """Something happened that a federation has to expect."""


class UnsupportedSchemaError(FederationError):
    """A file or message was written by a newer version than this one."""

    def __init__(self, what: str, got: int, newest: int) -> None:
        super().__init__(
            f"{what}: schema {got} is newer than {newest}, the newest this version reads; "
            "upgrade Consilium here"
        )
        self.what = what
        self.got = got
        self.newest = newest

    def at(self, path: Path | str) -> UnsupportedSchemaError:
        """The same refusal, naming the file that it is about."""
        return UnsupportedSchemaError(f"{path}: {self.what}", self.got, self.newest)


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


class WorkerAwayError(FederationError):
    """A site's worker is not there, as while it starts again; what it was asked may be asked again."""

    def __init__(self, path: Path | str, how: str) -> None:
        super().__init__(f"the worker at {path} {one_line(how)}")


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
            f"{path}: a change of the data key was interrupted; "
            "finish it with: consilium-site rotate-keys --data"
        )
        self.path = Path(path)


class BadCertificateError(FederationError):
    """A certificate, or a request for one, is not what this consortium signs or trusts."""

    def __init__(self, what: str, reason: str) -> None:
        super().__init__(f"{what}: {one_line(reason)}")
        self.what = what
        self.reason = reason


class ProtocolTooOldError(FederationError):
    """The other end speaks only versions of the protocol that are no longer spoken here."""

    def __init__(self, got: int, oldest: int) -> None:
        super().__init__(f"protocol: the other end speaks up to {got}, {oldest} is the oldest spoken here")
        self.got = got
        self.oldest = oldest


class TokenUnknownError(FederationError):
    """A token for enrolment that was never issued here, or was forgotten long after its end."""

    def __init__(self, site_id: str) -> None:
        super().__init__(f"{site_id}: the token is unknown; ask the coordinator for a new invitation")
        self.site_id = site_id


class TokenExpiredError(FederationError):
    """A token for enrolment whose time is over."""

    def __init__(self, site_id: str, ended: str) -> None:
        super().__init__(f"{site_id}: the token expired at {ended}; ask the coordinator for a new invitation")
        self.site_id = site_id
        self.ended = ended


class TokenUsedError(FederationError):
    """A token for enrolment that another request has used."""

    def __init__(self, site_id: str) -> None:
        super().__init__(
            f"{site_id}: the token was used already, with other keys; if that was not this site, "
            "tell the coordinator"
        )
        self.site_id = site_id


class TokenSiteError(FederationError):
    """A token for enrolment that was issued for another site."""

    def __init__(self, site_id: str) -> None:
        super().__init__(f"{site_id}: the token was issued for another site")
        self.site_id = site_id


class UnknownSiteError(FederationError):
    """A site is named that never enrolled here."""

    def __init__(self, site_id: str) -> None:
        super().__init__(f"{site_id} is not enrolled here")
        self.site_id = site_id


class SiteEnrolledError(FederationError):
    """A site is to enrol that has enrolled before and was not revoked since."""

    def __init__(self, site_id: str) -> None:
        super().__init__(f"{site_id} is enrolled already; revoke it first, to enrol it anew")
        self.site_id = site_id


class SiteRevokedError(FederationError):
    """A site asks whose enrolment was revoked."""

    def __init__(self, site_id: str, when: str) -> None:
        super().__init__(f"{site_id} was revoked at {when}")
        self.site_id = site_id
        self.when = when


class StaleRequestError(FederationError):
    """A signed request whose time is too far from this machine's clock."""

    def __init__(self, site_id: str, seconds: int, window: int) -> None:
        super().__init__(
            f"{site_id}: the request's time is {seconds} s from the clock here, {window} s are allowed; "
            "set the clocks"
        )
        self.site_id = site_id
        self.seconds = seconds
        self.window = window


class TooManyAttemptsError(FederationError):
    """More requests than a site, or an address, may make in a while."""

    def __init__(self, what: str, most: int) -> None:
        super().__init__(f"{what}: more than {most} in a while; wait and try again")
        self.what = what
        self.most = most


class EnrolmentRefusedError(FederationError):
    """The coordinator's enrolment service refuses; its reason goes with it."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"The coordinator at {address} refused: {one_line(reason)}")
        self.address = address
        self.reason = reason


class UnreachableError(FederationError):
    """Another machine does not answer, or not as the one it should be."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(f"{address}: {one_line(reason)}")
        self.address = address
        self.reason = reason


class ChildNotReadyError(FederationError):
    """A supervised process did not come up in time, or was stopped before."""

    def __init__(self, name: str, timeout_s: float, log: Path) -> None:
        super().__init__(f"{name}: not ready after {timeout_s:g} s; see {log}")
        self.name = name
        self.log = log


class AlreadyRunningError(FederationError):
    """Another process holds what only one may hold."""

    def __init__(self, path: Path | str, pid: int | None) -> None:
        super().__init__(
            f"{path}: held by process {'(unknown)' if pid is None else pid}; only one may run here"
        )
        self.path = Path(path)
        self.pid = pid


class PublicAddressError(FederationError):
    """What belongs on a private address would listen where strangers reach it."""

    def __init__(self, key: str, host: str, reason: str) -> None:
        super().__init__(f"{key}: expected a private address, got {host}: {one_line(reason)}")
        self.key = key
        self.host = host


class AuditBrokenError(FederationError):
    """A line of an audit log is not the one that was written there, or its tail was cut."""

    def __init__(self, path: Path | str, line: int, how: str) -> None:
        super().__init__(f"{path}: line {line}: {one_line(how)}")
        self.path = Path(path)
        self.line = line
        self.how = how


class PlanNotApprovedError(FederationError):
    """A task names a plan that this site's administrators have not approved, or not enough of them."""

    def __init__(self, plan_digest: str, people: int, needed: int) -> None:
        super().__init__(
            f"plan {one_line(plan_digest)} is not approved here: approved by {people} of {needed} people"
        )
        self.plan_digest = plan_digest
        self.people = people
        self.needed = needed


class ApprovedAlreadyError(FederationError):
    """The second approval of a plan has to be another person's."""

    def __init__(self, plan_digest: str, by: str) -> None:
        super().__init__(f"plan {plan_digest}: {one_line(by)} has approved it already; another person has to")
        self.plan_digest = plan_digest
        self.by = by


class PlanExpiredError(FederationError):
    """A plan's last day is over."""

    def __init__(self, expires: str, today: str) -> None:
        super().__init__(f"the plan expired: its last day was {expires}, today is {today}")
        self.expires = expires
        self.today = today


class PurposeRefusedError(FederationError):
    """A plan is for something that this site takes no part in."""

    def __init__(self, purpose: str, allowed: tuple[str, ...]) -> None:
        super().__init__(f"purpose: expected one of {', '.join(allowed)}, got {one_line(purpose)}")
        self.purpose = purpose
        self.allowed = allowed


class TrackRefusedError(FederationError):
    """A track that a plan or a task names is none that this site takes part in."""

    def __init__(self, track: str, reason: str) -> None:
        super().__init__(f"track {one_line(track)}: {one_line(reason)}")
        self.track = track
        self.reason = reason


class PlanNotForSiteError(FederationError):
    """A plan does not name this site."""

    def __init__(self, site_id: str) -> None:
        super().__init__(f"the plan is not for this site: {site_id} is not among its sites")
        self.site_id = site_id


class OtherConsortiumError(FederationError):
    """A plan belongs to another consortium than the one that brought it."""

    def __init__(self, got: str, expected: str) -> None:
        super().__init__(f"consortium: expected a plan of {expected}, got one of {one_line(got)}")
        self.got = got
        self.expected = expected


class UnknownRunError(FederationError):
    """A message names no plan, and its run never named one to this site."""

    def __init__(self, run_id: str) -> None:
        super().__init__(f"run {run_id} is unknown here: expected it to name an approved plan first")
        self.run_id = run_id


class RunPlanChangedError(FederationError):
    """A run that began under one plan names another."""

    def __init__(self, run_id: str, got: str, expected: str) -> None:
        super().__init__(f"run {run_id}: expected plan {expected}, under which it began, got {got}")
        self.run_id = run_id
        self.got = got
        self.expected = expected


class ForeignCodeError(FederationError):
    """A run brings code, or wants other apps than the site's own installed ones."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"the run's app bundle is refused: {one_line(reason)}")
        self.reason = reason


class UnclearSourceError(FederationError):
    """A folder of patients is none that an importer knows, or could be read by several."""

    def __init__(self, folder: Path | str, found: Sequence[str], known: Sequence[str]) -> None:
        had = f"both {' and '.join(found)}, say with --as which is meant" if found else "none of them"
        super().__init__(f"{folder}: expected one of {', '.join(known)}, found {had}")
        self.folder = Path(folder)
        self.found = tuple(found)
        self.known = tuple(known)


class ImportRefusedError(FederationError):
    """Patients are not brought into a site's data folder, which stays as it was."""

    def __init__(self, folder: Path | str, reason: str) -> None:
        super().__init__(f"{folder}: nothing was imported: {one_line(reason)}")
        self.folder = Path(folder)
        self.reason = reason


class RunExistsError(FederationError):
    """A run was begun in this folder, and another beginning would forget what it asked of sites."""

    def __init__(self, folder: Path | str, run_id: str) -> None:
        super().__init__(
            f"{folder}: {run_id} was begun here; resume it, or give the new run a folder of its own"
        )
        self.folder = Path(folder)
        self.run_id = run_id


class RunHeldError(FederationError):
    """Another process works on this run."""

    def __init__(self, folder: Path | str) -> None:
        super().__init__(f"{folder}: another process works on this run; wait for its end, or stop it first")
        self.folder = Path(folder)


class SuperLinkError(FederationError):
    """Flower's SuperLink did not do what the coordinator asked of it."""

    def __init__(self, what: str, address: str, reason: str) -> None:
        super().__init__(f"SuperLink at {address}: could not {what}: {one_line(reason)}")
        self.what = what
        self.address = address
        self.reason = reason


class NoSuchPlanError(FederationError):
    """A plan is named by digits with which none that is known here begins, or several do."""

    def __init__(self, named: str, found: int, least: int) -> None:
        super().__init__(
            f"plan {one_line(named)!r}: expected a package file, or {least} or more first digits of the "
            f"digest of one plan that is known here; {found} plans begin like this"
        )
        self.named = named
        self.found = found


class GatewayRefusedError(FederationError):
    """The gateway does not let a request through to SuperLink."""

    def __init__(self, kind: str, reason: str) -> None:
        super().__init__(one_line(reason))
        self.kind = kind
        self.reason = reason


class DeviceError(FederationError):
    """The settings ask for a device that this machine does not have."""

    def __init__(self, device: str, reason: str) -> None:
        super().__init__(f"worker.device {device}: {one_line(reason)}")
        self.device = device
        self.reason = reason


class NoCoordinatorError(FederationError):
    """A folder holds no coordinator."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(
            f"{path}: no coordinator's home; `consilium-coordinator init` makes one, --home names another"
        )
        self.path = Path(path)


class CoordinatorDownError(FederationError):
    """What was asked needs the coordinator's processes, and they do not run."""

    def __init__(self, path: Path | str) -> None:
        super().__init__(f"{path}: nothing runs here; `consilium-coordinator up` starts it")
        self.path = Path(path)


class PlanRefusedError(FederationError):
    """A plan cannot be offered or run as things are."""

    def __init__(self, digest: str, reason: str) -> None:
        super().__init__(f"plan {digest[:12]}: {one_line(reason)}")
        self.digest = digest
        self.reason = reason


class RunRefusedError(FederationError):
    """A run cannot be started, gone on with or exported as it stands."""

    def __init__(self, run: str, reason: str) -> None:
        super().__init__(f"run {run}: {one_line(reason)}")
        self.run = run
        self.reason = reason


def one_line(text: str) -> str:
    """The text on one line, cut to a length that a log can bear."""
    line = " ".join(text.split())
    return line if len(line) <= LONGEST_VALUE else f"{line[: LONGEST_VALUE - 3]}..."
