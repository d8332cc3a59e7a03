import multiprocessing
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.errors import (
    BadFileError,
    TokenExpiredError,
    TokenSiteError,
    TokenUnknownError,
    TokenUsedError,
)
from common.ids import SiteId
from server.tokens import KEPT, TOKEN_BYTES, Tokens

A, B = SiteId("site-a"), SiteId("site-b")
NOW = datetime(2026, 11, 29, tzinfo=UTC)


def never() -> str:
    raise AssertionError("no certificate is due")


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    return Tokens(tmp_path / "tokens.json")


def test_a_token_enrols_its_site_once(tokens: Tokens) -> None:
    token, ends = tokens.issue(A, 48, NOW)
    assert ends == NOW + timedelta(hours=48)
    assert tokens.redeem(token, A, "request", lambda: "certificate", NOW) == "certificate"
    with pytest.raises(TokenUsedError, match="site-a: the token was used already, with other keys"):
        tokens.redeem(token, A, "another request", never, NOW)


def test_the_same_request_gets_the_same_certificate_again(tokens: Tokens, tmp_path: Path) -> None:
    token, ends = tokens.issue(A, 48, NOW)
    tokens.redeem(token, A, "request", lambda: "certificate", NOW)
    # Another process, and after the token's end: the answer was lost, not the right to it.
    again = Tokens(tmp_path / "tokens.json")
    assert again.redeem(token, A, "request", never, ends + timedelta(hours=1)) == "certificate"


def test_an_expired_an_unknown_and_another_sites_token_are_refused(tokens: Tokens) -> None:
    token, ends = tokens.issue(A, 1, NOW)
    with pytest.raises(TokenExpiredError, match="site-a: the token expired at 2026-11-29T01:00:00"):
        tokens.redeem(token, A, "request", never, ends)
    with pytest.raises(TokenUnknownError, match="site-a: the token is unknown"):
        tokens.redeem(token[:-1], A, "request", never, NOW)
    with pytest.raises(TokenSiteError, match="site-b: the token was issued for another site"):
        tokens.redeem(token, B, "request", never, NOW)
    assert tokens.redeem(token, A, "request", lambda: "certificate", NOW) == "certificate"


def test_a_token_whose_certificate_could_not_be_made_is_still_good(tokens: Tokens) -> None:
    token, _ = tokens.issue(A, 1, NOW)
    with pytest.raises(AssertionError):
        tokens.redeem(token, A, "request", never, NOW)
    assert tokens.redeem(token, A, "another", lambda: "certificate", NOW) == "certificate"


def test_a_withdrawn_token_is_unknown(tokens: Tokens) -> None:
    mine, _ = tokens.issue(A, 1, NOW)
    other, _ = tokens.issue(B, 1, NOW)
    tokens.withdraw(A)
    with pytest.raises(TokenUnknownError):
        tokens.redeem(mine, A, "request", never, NOW)
    assert tokens.redeem(other, B, "request", lambda: "certificate", NOW) == "certificate"


def test_no_token_is_in_the_file_which_is_its_owners(tokens: Tokens, tmp_path: Path) -> None:
    token, _ = tokens.issue(A, 1, NOW)
    assert len(token) * 6 >= TOKEN_BYTES * 8
    assert token not in (tmp_path / "tokens.json").read_text()
    assert stat.S_IMODE((tmp_path / "tokens.json").stat().st_mode) == 0o600


def test_tokens_are_forgotten_long_after_their_end(tokens: Tokens) -> None:
    old, ends = tokens.issue(A, 1, NOW)
    tokens.issue(B, 1, ends + KEPT - timedelta(seconds=1))
    with pytest.raises(TokenExpiredError):
        tokens.redeem(old, A, "request", never, ends)
    tokens.issue(B, 1, ends + KEPT)
    with pytest.raises(TokenUnknownError):
        tokens.redeem(old, A, "request", never, ends)


def test_a_damaged_file_is_refused_and_not_begun_anew(tokens: Tokens, tmp_path: Path) -> None:
    path = tmp_path / "tokens.json"
    for text in ("{", '{"kind":"tokens","schema":1}', '{"kind":"tokens","schema":1,"tokens":{"a":{}}}'):
        path.write_text(text)
        with pytest.raises(BadFileError):
            tokens.issue(A, 1, NOW)
        assert path.read_text() == text


def redeem(folder: str, token: str, name: str) -> None:
    try:
        got = Tokens(Path(folder) / "tokens.json").redeem(token, A, name, lambda: name, NOW)
    except TokenUsedError:
        got = "used"
    (Path(folder) / f"got-{name}").write_text(got)


def test_a_token_gives_one_request_a_certificate_over_all_processes(tokens: Tokens, tmp_path: Path) -> None:
    token, _ = tokens.issue(A, 1, NOW)
    context = multiprocessing.get_context("spawn")
    names = ["one", "two", "three"]
    workers = [context.Process(target=redeem, args=(str(tmp_path), token, name)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    got = [(tmp_path / f"got-{name}").read_text() for name in names]
    assert got.count("used") == 2
    assert [given for given, name in zip(got, names, strict=True) if given == name] != []
