"""The bundle for a hospital without internet: what it would hold, and what its installer refuses."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
SCRIPTS = sorted(DEPLOY.glob("*.sh"))
TORCH = ("torch", "torchvision", "triton")


def run(*words: str | Path, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(word) for word in words],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def locked(role: str) -> dict[str, str]:
    """By package, its requirement with the hashes."""
    done = run(DEPLOY / "requirements.sh", role)
    assert done.returncode == 0, done.stderr
    found: dict[str, str] = {}
    name = ""
    for line in done.stdout.splitlines():
        name = name if line.startswith(" ") else line.partition("==")[0]
        found[name] = found.get(name, "") + line + "\n"
    return found


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_one_that_bash_reads_and_can_be_run(path: Path) -> None:
    assert run("bash", "-n", path).returncode == 0
    assert os.access(path, os.X_OK)
    assert "set -euo pipefail" in path.read_text()


def test_the_coordinators_part_of_the_lock_has_flower_and_no_torch() -> None:
    names = locked("coordinator")
    assert {"flwr", "cryptography", "grpcio", "starlette", "hydra-core"} <= names.keys()
    assert not {*TORCH, "pytest", "ruff", "transformers"} & names.keys()


def test_a_sites_part_of_the_lock_has_torch_and_no_tools() -> None:
    names = locked("site")
    assert {"torch", "transformers", "openslide-bin", "fhir-resources"} <= names.keys()
    assert locked("coordinator").keys() <= names.keys()
    assert not {"pytest", "ruff", "trl", "matplotlib"} & names.keys()


def test_the_cpu_image_leaves_out_torch_and_what_only_it_needs() -> None:
    cpu = locked("site-cpu").keys()
    left_out = locked("site").keys() - cpu
    assert {"torch", "torchvision"} <= left_out
    assert all(name in TORCH or name.startswith(("nvidia-", "cuda-")) for name in left_out)
    # What torch's CPU build needs beside it.
    assert {"sympy", "networkx", "filelock", "fsspec", "jinja2"} <= cpu


@pytest.mark.parametrize("role", ["coordinator", "site", "site-cpu", "build"])
def test_every_package_of_a_part_keeps_its_hashes(role: str) -> None:
    lock = (ROOT / "requirements.lock").read_text()
    for name, text in locked(role).items():
        assert "--hash=sha256:" in text, name
        for line in text.splitlines():
            assert line in lock
    assert "setuptools" in locked("build")


@pytest.mark.parametrize(
    ("script", "words"),
    [
        ("requirements.sh", ["gateway"]),
        ("requirements.sh", []),
        ("bundle.sh", ["gateway"]),
        ("bundle.sh", []),
        ("bundle.sh", ["site", "coordinator"]),
        ("install.sh", []),
        ("install.sh", ["--help"]),
    ],
)
def test_words_that_make_no_sense_are_answered_with_the_usage(script: str, words: list[str]) -> None:
    done = run(DEPLOY / script, *words)
    assert done.returncode == 2
    assert "deploy/" in done.stderr or "./install.sh FOLDER" in done.stderr


@pytest.mark.parametrize("role", ["coordinator", "site"])
def test_a_dry_run_lists_what_a_bundle_would_hold_and_makes_nothing(role: str, tmp_path: Path) -> None:
    done = run(DEPLOY / "bundle.sh", "--dry-run", "--out", tmp_path, role)
    assert done.returncode == 0
    first, *lines = done.stdout.splitlines()
    assert first.startswith(f"{tmp_path}/consilium-{role}-")
    listed = {line.strip() for line in lines}
    assert {"install.sh", "SHA256SUMS", "requirements.txt", "deploy/README.md"} <= listed
    wheels = {
        line.removeprefix("wheels/").partition("==")[0] for line in listed if line.startswith("wheels/")
    }
    assert wheels == {*locked(role), "consilium"}
    assert not list(tmp_path.iterdir())


def test_keys_and_patients_of_a_trial_stay_out_of_a_bundle(tmp_path: Path) -> None:
    shutil.copytree(DEPLOY, tmp_path / "deploy")
    for name in ("pyproject.toml", "requirements.lock"):
        shutil.copy(ROOT / name, tmp_path)
    compose = tmp_path / "deploy" / "compose"
    for name in ("env/alpha.env", "data/alpha/patients.jsonl", "models/base", "exchange/a.invitation.json"):
        (compose / name).parent.mkdir(parents=True, exist_ok=True)
        (compose / name).write_text("secret\n")
    done = run(tmp_path / "deploy" / "bundle.sh", "--dry-run", "coordinator")
    assert "deploy/compose/env/site.env.example" in done.stdout
    for name in ("alpha.env", "patients.jsonl", "models/base", "invitation"):
        assert name not in done.stdout


def here() -> str:
    return f"{sys.version_info[0]}.{sys.version_info[1]} {platform.system()} {platform.machine()}"


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """An unpacked bundle of one small wheel."""
    folder = tmp_path / "bundle"
    (folder / "wheels").mkdir(parents=True)
    (folder / "deploy").mkdir()
    (folder / "deploy" / "README.md").write_text("runbook\n")
    wheel = folder / "wheels" / "consilium_example-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        info = "consilium_example-1.0.dist-info"
        archive.writestr("consilium_example.py", "WORD = 'installed'\n")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: consilium-example\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    (folder / "PYTHON").write_text(f"{here()}\n")
    (folder / "requirements.txt").write_text(f"consilium-example==1.0 --hash=sha256:{digest(wheel)}\n")
    (folder / "install.sh").write_bytes((DEPLOY / "install.sh").read_bytes())
    (folder / "install.sh").chmod(0o755)
    seal(folder)
    return folder


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def seal(folder: Path) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "SHA256SUMS")
    lines = [f"{digest(path)}  ./{path.relative_to(folder)}\n" for path in files]
    (folder / "SHA256SUMS").write_text("".join(lines))


def install(bundle: Path, target: str) -> subprocess.CompletedProcess[str]:
    # A package index that nobody answers at: whoever asks it fails.
    return run(bundle / "install.sh", target, cwd=bundle.parent, PYTHON=sys.executable,
               PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_CONFIG_FILE=os.devnull)  # fmt: skip


def test_a_bundle_is_installed_from_itself_alone(bundle: Path) -> None:
    done = install(bundle, "installed")
    assert done.returncode == 0, done.stderr
    target = bundle.parent / "installed"
    assert (
        run(target / "bin" / "python", "-c", "import consilium_example as e; print(e.WORD)").stdout
        == "installed\n"
    )
    assert (target / "deploy" / "README.md").is_file()
    again = install(bundle, "installed")
    assert again.returncode == 1
    assert "is there already" in again.stderr


def test_a_bundle_that_was_changed_is_refused_and_nothing_is_installed(bundle: Path) -> None:
    (wheel,) = (bundle / "wheels").iterdir()
    wheel.write_bytes(wheel.read_bytes() + b"x")
    done = install(bundle, "installed")
    assert done.returncode == 1
    assert "not the one that was packed" in done.stderr
    assert not (bundle.parent / "installed").exists()
    # Whoever changes the list of sums, too, is stopped by the hash of the wheel.
    assert "--require-hashes" in (bundle / "install.sh").read_text()


def test_a_bundle_for_another_python_is_refused(bundle: Path) -> None:
    (bundle / "PYTHON").write_text("2.7 Linux vax\n")
    seal(bundle)
    done = install(bundle, "installed")
    assert done.returncode == 1
    assert f"expected Python 2.7 Linux vax, got {here()}" in done.stderr


def test_the_installer_is_refused_outside_of_a_bundle(tmp_path: Path) -> None:
    done = run(DEPLOY / "install.sh", tmp_path / "installed")
    assert done.returncode == 1
    assert "expected to lie in an unpacked bundle" in done.stderr
