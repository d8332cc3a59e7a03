from pathlib import Path

import pytest

import common.errors
from common.errors import (
    AlreadyRunningError,
    AnsweredAlreadyError,
    ApprovedAlreadyError,
    AuditBrokenError,
    BadCertificateError,
    BadEnvelopeError,
    BadFileError,
    BadMessageError,
    BadRosterError,
    BadSignatureError,
    BadSurvivorListError,
    BudgetRefusedError,
    BudgetSpentError,
    ChildNotReadyError,
    CoordinatorDownError,
    DeviceError,
    DigestMismatchError,
    EnrolmentRefusedError,
    FederationError,
    ForeignCodeError,
    GatewayRefusedError,
    HomeInUseError,
    ImportRefusedError,
    KeysInUseError,
    LedgerBrokenError,
    LedgerMissingError,
    LedgerRolledBackError,
    NoCoordinatorError,
    NoSuchPlanError,
    NotConfirmedError,
    NotReadyError,
    NotRunningError,
    OtherConsortiumError,
    PlanExpiredError,
    PlanNotApprovedError,
    PlanNotForSiteError,
    PlanRefusedError,
    ProtocolTooOldError,
    PublicAddressError,
    PurposeRefusedError,
    RotationUnfinishedError,
    RunExistsError,
    RunHeldError,
    RunPlanChangedError,
    RunRefusedError,
    SettingsError,
    SiteEnrolledError,
    SiteRefusedError,
    SiteRevokedError,
    StaleRequestError,
    StaleSumError,
    SuperLinkError,
    TamperedStoreError,
    TokenExpiredError,
    TokenSiteError,
    TokenUnknownError,
    TokenUsedError,
    TooFewSurvivorsError,
    TooManyAttemptsError,
    TrackRefusedError,
    TranscriptMismatchError,
    UnapprovedSiteError,
    UnclearSourceError,
    UnknownRunError,
    UnknownSiteError,
    UnreachableError,
    UnsafeKeyError,
    UnsupportedSchemaError,
    WorkerAwayError,
    WrongKeyError,
    WrongSecretError,
)

EXAMPLES = [
    (
        UnsupportedSchemaError("plan", 3, 1),
        "plan: schema 3 is newer than 1, the newest this version reads; upgrade Consilium here",
    ),
    (DigestMismatchError("answers", "ab", "cd"), "answers: expected digest cd, got ab"),
    (TooFewSurvivorsError(4, 2, 3), "Round 4: 2 sites survived, 3 needed"),
    (SiteRefusedError("alpha", "plan not approved"), "Site alpha refused: plan not approved"),
    (BadSignatureError("alpha", "keys"), "keys of alpha: expected a signature by its approved key"),
    (
        UnapprovedSiteError("alpha"),
        "alpha is not approved here: its identity is in no file of approved sites",
    ),
    (BadRosterError(7, "expected no key twice"), "Sum 7: roster: expected no key twice"),
    (BadEnvelopeError("alpha", "beta"), "The envelope from alpha to beta does not open"),
    (
        TranscriptMismatchError("alpha"),
        "alpha: its masked input belongs to another transcript; it saw another task",
    ),
    (BadSurvivorListError(7, "2 survivors, 3 needed"), "Sum 7: survivor list: 2 survivors, 3 needed"),
    (StaleSumError(7, "closed"), "Sum 7: closed"),
    (AnsweredAlreadyError(7, "unmask"), "Sum 7: unmask was answered already, to another request"),
    (WrongSecretError(7, "alpha"), "Sum 7: the shares of alpha's secret do not give what it committed to"),
    (BadMessageError("no magic"), "Bad message: no magic"),
    (BadFileError("a/b.json", "no JSON"), "a/b.json: no JSON"),
    (
        BudgetSpentError("rare_disease", "student", "4 of the plan's 4 steps are spent"),
        "rare_disease: privacy budget of the student: 4 of the plan's 4 steps are spent",
    ),
    (
        BudgetRefusedError(2, {"beta": "no step is left", "alpha": "a cap"}),
        "Round 2: refused for the privacy budget by alpha: a cap; beta: no step is left",
    ),
    (
        LedgerMissingError("a/ledger.db"),
        "a/ledger.db: the ledger is gone; restore its newest copy, an empty one would forget",
    ),
    (LedgerBrokenError("a/ledger.db", 3, "edited"), "a/ledger.db: entry 3: edited"),
    (
        LedgerRolledBackError("a/ledger.db", "3 entries", "head ab"),
        "a/ledger.db: expected head ab, found 3 entries; restore the newest copy, "
        "or tell the coordinator and begin a new cohort",
    ),
    (
        UnsafeKeyError("a/master.key", "expected mode 600, got 644"),
        "a/master.key: expected mode 600, got 644",
    ),
    (WrongKeyError("a/keyring.json", "ab", "cd"), "a/keyring.json: expected the master key cd, got ab"),
    (
        TamperedStoreError("a/pairs.json"),
        "a/pairs.json: expected what was written here, got changed or damaged content",
    ),
    (KeysInUseError("a/keyring.json", "the keys are in use"), "a/keyring.json: the keys are in use"),
    (
        RotationUnfinishedError("a/keyring.json"),
        "a/keyring.json: a change of the data key was interrupted; "
        "finish it with: consilium-site rotate-keys --data",
    ),
    (
        RunExistsError("runs/one", "run-1"),
        "runs/one: run-1 was begun here; resume it, or give the new run a folder of its own",
    ),
    (
        RunHeldError("runs/one"),
        "runs/one: another process works on this run; wait for its end, or stop it first",
    ),
    (
        UnclearSourceError("data", (), ("patients.jsonl", "manifest.csv")),
        "data: expected one of patients.jsonl, manifest.csv, found none of them",
    ),
    (
        UnclearSourceError("data", ("folder", "tiles"), ("patients.jsonl", "manifest.csv")),
        "data: expected one of patients.jsonl, manifest.csv, found both folder and tiles, "
        "say with --as which is meant",
    ),
    (
        ImportRefusedError("data", "no patient is new"),
        "data: nothing was imported: no patient is new",
    ),
    (BadCertificateError("certificate", "names no site"), "certificate: names no site"),
    (
        ProtocolTooOldError(2, 3),
        "protocol: the other end speaks up to 2, 3 is the oldest spoken here",
    ),
    (
        TokenUnknownError("alpha"),
        "alpha: the token is unknown; ask the coordinator for a new invitation",
    ),
    (
        TokenExpiredError("alpha", "noon"),
        "alpha: the token expired at noon; ask the coordinator for a new invitation",
    ),
    (
        TokenUsedError("alpha"),
        "alpha: the token was used already, with other keys; if that was not this site, tell the coordinator",
    ),
    (TokenSiteError("alpha"), "alpha: the token was issued for another site"),
    (UnknownSiteError("alpha"), "alpha is not enrolled here"),
    (
        SiteEnrolledError("alpha"),
        "alpha is enrolled already; revoke it first, to enrol it anew",
    ),
    (SiteRevokedError("alpha", "noon"), "alpha was revoked at noon"),
    (
        StaleRequestError("alpha", 400, 300),
        "alpha: the request's time is 400 s from the clock here, 300 s are allowed; set the clocks",
    ),
    (
        TooManyAttemptsError("10.0.0.1: bad tokens", 10),
        "10.0.0.1: bad tokens: more than 10 in a while; wait and try again",
    ),
    (
        EnrolmentRefusedError("host:1", "alpha was revoked"),
        "The coordinator at host:1 refused: alpha was revoked",
    ),
    (UnreachableError("host:1", "no connection"), "host:1: no connection"),
    (GatewayRefusedError("path", "/a: not open to sites"), "/a: not open to sites"),
    (
        AuditBrokenError("a/audit.jsonl", 7, "it does not follow the line before"),
        "a/audit.jsonl: line 7: it does not follow the line before",
    ),
    (
        PlanNotApprovedError("ab", 1, 2),
        "plan ab is not approved here: approved by 1 of 2 people",
    ),
    (ApprovedAlreadyError("ab", "A"), "plan ab: A has approved it already; another person has to"),
    (
        PlanExpiredError("2026-11-28", "2026-11-29"),
        "the plan expired: its last day was 2026-11-28, today is 2026-11-29",
    ),
    (
        PurposeRefusedError("research", ("care", "teaching")),
        "purpose: expected one of care, teaching, got research",
    ),
    (TrackRefusedError("tissue_type", "no base here"), "track tissue_type: no base here"),
    (PlanNotForSiteError("alpha"), "the plan is not for this site: alpha is not among its sites"),
    (OtherConsortiumError("b", "a"), "consortium: expected a plan of a, got one of b"),
    (UnknownRunError("run-1"), "run run-1 is unknown here: expected it to name an approved plan first"),
    (
        RunPlanChangedError("run-1", "ab", "cd"),
        "run run-1: expected plan cd, under which it began, got ab",
    ),
    (ForeignCodeError("got 'app.py'"), "the run's app bundle is refused: got 'app.py'"),
    (DeviceError("cuda", "torch finds no GPU here"), "worker.device cuda: torch finds no GPU here"),
    (ChildNotReadyError("gateway", 60.0, Path("up.log")), "gateway: not ready after 60 s; see up.log"),
    (AlreadyRunningError("a.lock", 7), "a.lock: held by process 7; only one may run here"),
    (
        PublicAddressError("private_host", "8.8.8.8", "8.8.8.8 can be reached from outside"),
        "private_host: expected a private address, got 8.8.8.8: 8.8.8.8 can be reached from outside",
    ),
    (
        SuperLinkError("start a run", "10.0.0.1:8460", "no answer"),
        "SuperLink at 10.0.0.1:8460: could not start a run: no answer",
    ),
    (
        NoCoordinatorError("a"),
        "a: no coordinator's home; `consilium-coordinator init` makes one, --home names another",
    ),
    (CoordinatorDownError("a"), "a: nothing runs here; `consilium-coordinator up` starts it"),
    (PlanRefusedError("ab" * 32, "berlin has not enrolled"), "plan abababababab: berlin has not enrolled"),
    (RunRefusedError("first", "has finished"), "run first: has finished"),
    (
        HomeInUseError("a/home", "site.yaml"),
        "a/home: expected an empty folder for a new home, found site.yaml",
    ),
    (
        NoSuchPlanError("abcdef01", 2, 8),
        "plan 'abcdef01': expected a package file, or 8 or more first digits of the digest of one plan "
        "that is known here; 2 plans begin like this",
    ),
    (
        NotConfirmedError("Approve?", "no"),
        "not confirmed, nothing was changed: Approve? expected yes, got no",
    ),
    (
        NotReadyError("a/identity.json", "site-b", "site site-a"),
        "a/identity.json: expected site site-a, got site-b",
    ),
    (NotRunningError("a/home"), "a/home: no daemon runs here; `consilium-site start` starts it"),
    (WorkerAwayError("a/worker.sock", "is not running"), "the worker at a/worker.sock is not running"),
    (SettingsError("rounds", 0, "a whole number >= 1"), "rounds: expected a whole number >= 1, got 0"),
]


@pytest.mark.parametrize(("error", "message"), EXAMPLES)
def test_an_error_says_its_line(error: FederationError, message: str) -> None:
    assert str(error) == message
    assert isinstance(error, FederationError)


def test_every_error_has_its_example() -> None:
    classes = {value for value in vars(common.errors).values() if isinstance(value, type)}
    errors = {value for value in classes if issubclass(value, FederationError)}
    assert {type(error) for error, _ in EXAMPLES} == errors - {FederationError}


@pytest.mark.parametrize(
    "error",
    [
        BadMessageError("two\nlines " * 200),
        SiteRefusedError("a", "x\ny"),
        SettingsError("k", "x\ny", "z"),
        BadRosterError(1, "two\nlines " * 200),
        BadSurvivorListError(1, "two\nlines " * 200),
        StaleSumError(1, "two\nlines " * 200),
        BudgetSpentError("a", "student", "two\nlines " * 200),
        BudgetRefusedError(1, {"a": "two\nlines " * 200}),
        LedgerBrokenError("a", 1, "two\nlines " * 200),
        LedgerRolledBackError("a", "x\ny", "z"),
    ],
)
def test_a_message_stays_one_line_of_bearable_length(error: FederationError) -> None:
    assert "\n" not in str(error)
    assert len(str(error)) < 400


def test_a_settings_error_is_a_value_error_and_the_others_are_not() -> None:
    for error, _ in EXAMPLES:
        assert isinstance(error, ValueError) == isinstance(error, SettingsError)


def test_a_settings_error_is_named_from_the_outside() -> None:
    error = SettingsError("rounds", 0, "a whole number >= 1").under("training").under("plan")
    assert str(error) == "plan.training.rounds: expected a whole number >= 1, got 0"
