from pathlib import Path

import pytest
import torch

from client.retrieval.index import OntologyIndex, from_hpo
from tests.client.retrieval.tiny import write_hpo


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def hpo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hpo(tmp_path_factory.mktemp("hpo"))


@pytest.fixture(scope="session")
def index(hpo: Path) -> OntologyIndex:
    return from_hpo(hpo)
