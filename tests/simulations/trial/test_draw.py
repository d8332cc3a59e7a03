from pathlib import Path

import pytest

from simulations.trial.draw import link_models, main


def test_models_get_short_names_for_the_places_where_they_lie(tmp_path: Path) -> None:
    cached = tmp_path / "cache" / "tiny-base-0123"
    cached.mkdir(parents=True)
    (cached / "config.json").write_text("{}")
    link_models({"rare_disease": cached, "note_encoder": cached}, tmp_path / "models")
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["note_encoder", "rare_disease"]
    assert (tmp_path / "models" / "rare_disease" / "config.json").read_text() == "{}"


def test_a_folder_that_holds_something_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as caught:
        main([str(tmp_path)])
    assert caught.value.code == 2
    assert f"{tmp_path} is not empty" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_scenario_that_makes_no_sense_is_refused_with_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "new"), "threads=none"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("draw: ")
