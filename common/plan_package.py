"""A plan with the answers that it names by digest: what a coordinator offers and a site approves.

One JSON file, so that an administrator can read all of what he approves, and keep it:

    {"schema": 1, "plan": {...}, "answers": {"rare_disease": [...]}}

Guarantee: a package is refused where its answers are not those that its plan names.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.atomic import write_atomically
from common.canonical import canonical_json, plain, read_object
from common.checks import require_schema
from common.errors import BadFileError, DigestMismatchError, SettingsError, UnsupportedSchemaError
from common.plan import RunPlan
from common.schema import build
from common.tracks import AnswerList

PACKAGE_SCHEMA = 1
MOST_BYTES = 2**26


@dataclass(frozen=True, kw_only=True)
class PlanPackage:
    """A plan and its answers.

    Attributes:
        plan: What is approved.
        answers: By track.
    """

    plan: RunPlan
    answers: Mapping[str, AnswerList]

    def __post_init__(self) -> None:
        tracks = [track.track for track in self.plan.tracks]
        if sorted(self.answers) != sorted(tracks):
            raise SettingsError("package.answers", sorted(self.answers), f"answers of {', '.join(tracks)}")
        for track in self.plan.tracks:
            got = self.answers[track.track].digest()
            if got != track.answers_digest:
                raise DigestMismatchError(f"answers of {track.track}", got, track.answers_digest)

    def to_json(self) -> str:
        """The package as canonical JSON."""
        return canonical_json(
            {"schema": PACKAGE_SCHEMA, "plan": plain(self.plan), "answers": plain(self.answers)}
        )

    @classmethod
    def from_json(cls, text: str) -> PlanPackage:
        """The package back.

        Raises:
            SettingsError: A key is unknown or missing, or a value is refused.
            UnsupportedSchemaError: A newer version wrote it.
            DigestMismatchError: The answers are not the plan's.
        """
        content = read_object(text, "package")
        require_schema("package", content.get("schema"), PACKAGE_SCHEMA)
        if set(content) != {"schema", "plan", "answers"} or not isinstance(content["answers"], dict):
            raise SettingsError("package", sorted(content), "schema, plan and answers, nothing else")
        plan = RunPlan.from_json(canonical_json(content["plan"]))
        return cls(plan=plan, answers={t: _answers(t, found) for t, found in content["answers"].items()})


def _answers(track: str, found: Any) -> AnswerList:
    return build(AnswerList, found, f"package.answers.{track}")


def read_package(path: Path) -> PlanPackage:
    """The package in a file. BadFileError for a file that cannot be read, else as `from_json`."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise BadFileError(path, f"expected at most {MOST_BYTES} bytes")
        return PlanPackage.from_json(path.read_text(encoding="utf-8"))
    except UnsupportedSchemaError as error:
        raise error.at(path) from error
    except SettingsError as error:
        raise SettingsError(f"{path}: {error.key}", error.got, error.expected) from error
    except OSError as error:
        raise BadFileError(path, error.strerror or type(error).__name__) from error
    except UnicodeDecodeError as error:
        raise BadFileError(path, "expected UTF-8") from error


def write_package(package: PlanPackage, folder: Path) -> Path:
    """Write ``{digest}.json`` into the folder; its path."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{package.plan.digest()}.json"
    write_atomically(path, package.to_json() + "\n")
    return path
