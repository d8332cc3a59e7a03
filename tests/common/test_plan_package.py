import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.errors import BadFileError, DigestMismatchError, SettingsError, UnsupportedSchemaError
from common.plan_package import PlanPackage, read_package, write_package
from common.tracks import Answer, AnswerList
from tests.fakes import TRACK, tiny_plan

ANSWERS = AnswerList(answers=tuple(Answer(id=f"OMIM:{n}", name=f"disease {n}") for n in range(3)))
OTHERS = AnswerList(answers=(Answer(id="OMIM:9", name="another"),))


def package() -> PlanPackage:
    plan = tiny_plan()
    tracks = tuple(replace(track, answers_digest=ANSWERS.digest()) for track in plan.tracks)
    return PlanPackage(plan=replace(plan, tracks=tracks), answers={TRACK: ANSWERS})


def test_a_package_comes_back_from_its_file_which_its_plan_names(tmp_path: Path) -> None:
    path = write_package(package(), tmp_path / "packages")
    assert path.name == f"{package().plan.digest()}.json"
    assert read_package(path) == package()


def test_a_package_is_refused_where_its_answers_are_not_those_that_its_plan_names() -> None:
    with pytest.raises(DigestMismatchError, match=f"answers of {TRACK}"):
        replace(package(), answers={TRACK: OTHERS})
    with pytest.raises(SettingsError, match=r"package\.answers"):
        replace(package(), answers={})


@pytest.mark.parametrize(
    ("change", "error", "reason"),
    [
        ({"schema": 2}, UnsupportedSchemaError, "package: schema 2 is newer than 1"),
        ({"more": 1}, SettingsError, "schema, plan and answers, nothing else"),
        ({"answers": []}, SettingsError, "schema, plan and answers, nothing else"),
        ({"answers": {TRACK: {"answers": []}}}, SettingsError, rf"package\.answers\.{TRACK}"),
    ],
)
def test_another_content_is_refused_by_its_key(
    change: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        PlanPackage.from_json(json.dumps({**json.loads(package().to_json()), **change}))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadFileError, match=r"none\.json: No such file"):
        read_package(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    with pytest.raises(BadFileError, match="expected UTF-8"):
        read_package(tmp_path / "bytes.json")
