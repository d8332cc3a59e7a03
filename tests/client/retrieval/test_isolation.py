"""No query leaves the process, and none is written down."""

import logging
import socket
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from client.retrieval.hpo import from_hpo
from client.retrieval.index import OntologyIndex
from client.retrieval.methods import METHODS, search_alone
from client.retrieval.questions import student_task
from client.retrieval.readers import StudentReader
from client.retrieval.retrievers import Bm25Retriever, DenseRetriever, Reranked
from client.student.model import Student
from common.tracks import AnswerList
from tests.client.retrieval.tiny import save_cross_encoder, save_encoder

NOTE = "A quokka boy with zebra stripes and seizure."
_SOCKET_EVENTS = ("socket.__new__", "socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.bind")
_seen: list[str] = []
_watching = False


def _hook(event: str, _: tuple[object, ...]) -> None:
    if _watching and event in _SOCKET_EVENTS:
        _seen.append(event)


@pytest.fixture(scope="module", autouse=True)
def audit() -> None:
    sys.addaudithook(_hook)  # it stays for good, and does nothing when nobody watches


@pytest.fixture
def sockets() -> Iterator[list[str]]:
    global _watching
    _seen.clear()
    _watching = True
    yield _seen
    _watching = False


def test_the_watch_would_notice_a_socket(sockets: list[str]) -> None:
    with socket.socket() as listening, socket.socket() as calling:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        calling.connect(listening.getsockname())
    assert sockets.count("socket.connect") == 1
    assert sockets.count("socket.__new__") == 2


def test_nothing_leaves_the_site_and_no_query_is_logged(
    hpo: Path,
    student: Student,
    answers: AnswerList,
    tmp_path: Path,
    sockets: list[str],
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    caplog.set_level(logging.DEBUG)
    index = from_hpo(hpo)
    index.save(tmp_path / "index")
    index = OntologyIndex.load(tmp_path / "index")
    by_words = Bm25Retriever(index)
    dense = DenseRetriever(index, save_encoder(index, tmp_path / "encoder"))
    reranked = Reranked(dense, save_cross_encoder(index, tmp_path / "cross", "OMIM:1", 1))
    reader = StudentReader(student, constrained=True, lists=False)
    task = replace(student_task(answers), step_tokens=3, chain_tokens=3, wanted=2)
    for retriever in (by_words, dense, reranked):
        assert retriever.search(NOTE, 3)
        for method in METHODS.values():
            assert method(NOTE, reader, retriever, task).ranked
    search_alone(by_words, NOTE, answers)
    assert sockets == []
    captured = capfd.readouterr()
    assert "quokka" not in (caplog.text + captured.out + captured.err).lower()
    assert all(b"quokka" not in file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
