from pathlib import Path

import pytest
import torch

from client.retrieval.hpo import from_hpo
from client.retrieval.index import OntologyIndex
from client.student.model import Student, adapter_spec, load_base, make_student
from common.adapter import AdapterMode
from common.learning_plan import AdapterPlan
from tests.client.retrieval.tiny import write_hpo
from tests.client.student import conftest as students

answers, base_folder = students.answers, students.base_folder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def hpo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hpo(tmp_path_factory.mktemp("hpo"))


@pytest.fixture(scope="session")
def index(hpo: Path) -> OntologyIndex:
    return from_hpo(hpo)


@pytest.fixture(scope="session")
def student(base_folder: Path) -> Student:
    base, tokenizer = load_base(str(base_folder))
    plan = AdapterPlan(mode=AdapterMode.CORE, rank=2, alpha=4.0, targets=("q_proj",), factors_digest="0" * 64)
    return make_student(base, tokenizer, adapter_spec(base, plan))
