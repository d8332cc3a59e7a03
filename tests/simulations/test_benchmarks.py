import importlib
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import torch

from simulations.benchmarks import _measure, coordinator, decode, orpo_step, private_step

ROOT = Path(__file__).resolve().parents[2]
NAMES = {path.stem for path in (ROOT / "simulations/benchmarks").glob("*.py") if path.stem[0] != "_"}
TINY = ["--json", "--repeats", "1", "--vocabulary", "60", "--width", "64", "--layers", "1", "--prompt", "6"]


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, float]:
    loaded = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert isinstance(loaded, dict)
    return loaded


def test_orpo_step_reports_speed_memory_and_parity(capsys: pytest.CaptureFixture[str]) -> None:
    orpo_step.main([*TINY, "--patients", "3"])
    values = last_line(capsys)
    assert values["patients"] == 3
    assert values["ratio_to_trl"] > 0
    assert 0 < values["ours_peak_bytes"] < values["trl_peak_bytes"]
    assert values["peak_ratio_to_trl"] == pytest.approx(
        values["ours_peak_bytes"] / values["trl_peak_bytes"], rel=1e-3
    )
    assert values["max_abs_diff_loss"] < 1e-5
    assert values["max_abs_diff_gradients"] < 1e-5


def test_trl_and_ours_compute_the_same_loss_on_one_patient() -> None:
    student = orpo_step.make_llama_student(vocabulary=60, width=64, layers=1)
    patients = orpo_step.draw_patients(1, prompt=6, vocabulary=60)
    factors = student.train_block(orpo_step.Block.B)
    orpo_step.TrlStep(student, patients).step()
    theirs = [factor.grad.clone() for factor in factors if factor.grad is not None]
    orpo_step.our_step(student, patients, "sequence")
    ours = [factor.grad for factor in factors if factor.grad is not None]
    assert len(theirs) == len(ours) == len(factors)
    for a, b in zip(theirs, ours, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)


def test_private_step_reports_overhead_memory_and_parity(capsys: pytest.CaptureFixture[str]) -> None:
    private_step.main([*TINY, "--patients", "3"])
    values = last_line(capsys)
    assert values["overhead"] > 0
    assert values["opacus_overhead"] > 0
    assert values["memory_ratio"] > 0
    assert values["max_abs_diff"] < 1e-5
    assert values["opacus_max_abs_diff"] < 1e-5


def test_decode_reports_speed_and_agreement(capsys: pytest.CaptureFixture[str]) -> None:
    decode.main([*TINY, "--cases", "2", "--answers", "12"])
    values = last_line(capsys)
    assert values["ratio"] > 0
    # As many beams as there are answers: the beam must find the very same ones.
    assert values["top10_agreement"] == 1.0


def test_coordinator_reports_memory_and_seconds_of_rounds_that_close(
    capsys: pytest.CaptureFixture[str],
) -> None:
    coordinator.main(["--json", "--quick", "--repeats", "1"])
    values = last_line(capsys)
    assert (values["closed_sites"], values["closed"]) == (5, 1)
    for sites in (3, 5):
        for size in (10**4, 10**5):
            point = f"n{sites}_d{size}"
            assert 0 < values[f"own_s_{point}"] < values[f"seconds_{point}"]
            # Every site's vector, of four bytes a value.
            assert values[f"bytes_up_{point}"] > 4 * sites * size
    # One vector is held at a time, however many sites there are: two more would be 0.8 MB.
    assert 0 < values["peak_bytes_n5_d100000"] < values["peak_bytes_n3_d100000"] + 0.7e6
    assert {f"{name}_exponent_n" for name in ("memory", "seconds", "own_seconds")} <= set(values)


def test_an_exponent_is_the_slope_of_the_logarithms() -> None:
    assert coordinator.exponent({2: 12.0, 4: 48.0, 8: 192.0}) == pytest.approx(2.0)
    assert coordinator.exponent({2: 5.0, 100: 5.0}) == pytest.approx(0.0)


def test_drawn_answers_are_distinct() -> None:
    answers = decode.draw_answers(217, 8000)
    assert len(set(answers)) == 217


def test_peak_counts_what_is_held_at_once() -> None:
    def once() -> None:
        held = torch.ones(1000)
        del held

    def twice() -> None:
        once()
        once()

    def together() -> None:
        both = [torch.ones(1000), torch.ones(1000)]
        del both

    assert 4000 <= _measure.peak_bytes(once) < 8000
    assert 4000 <= _measure.peak_bytes(twice) < 8000
    assert _measure.peak_bytes(together) >= 8000


def test_every_peer_takes_one_turn_more_than_is_timed() -> None:
    calls = {"a": 0, "b": 0}

    def count(name: str) -> None:
        calls[name] += 1

    seconds = _measure.in_turns({name: lambda name=name: count(name) for name in calls}, repeats=3)
    assert calls == {"a": 4, "b": 4}
    assert set(seconds) == {"a", "b"}


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_benchmark_has_the_shared_options(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"simulations.benchmarks.{name}")
    with pytest.raises(SystemExit) as ended:
        module.main(["--repeats", "0"])
    assert ended.value.code == 2
    assert "argument --repeats: expected a whole number >= 1, got '0'" in capsys.readouterr().err


def test_make_bench_runs_every_benchmark() -> None:
    make = shutil.which("make")
    if make is None:
        pytest.skip("needs make")
    planned = subprocess.run(
        [make, "--dry-run", "bench"], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert set(re.findall(r"for name in ([\w ]+);", planned.stdout)[0].split()) == NAMES
