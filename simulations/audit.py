"""`python -m simulations.audit`: is it so, what the accounting says; ``audit.json`` and ``audit.html``.

Canary audits of the student's mechanism and of a teacher's training, the same audits of planted bugs, and,
unless ``--quick``, membership inference on students that were trained without and with privacy. Exit status:
0 all well, 1 an audit that fails or is blind, a bug that was not caught, or patients that are seen.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from client.site_patients import Views
from common.atomic import write_atomically
from simulations.auditing.canaries import Audit
from simulations.auditing.mechanism import PLANTED_BUGS, audit_mechanism, audit_plan
from simulations.auditing.membership import ABLE, HIDDEN, Inference
from simulations.auditing.student import AttackSettings, attack_student, attack_teacher, draw_lots
from simulations.auditing.teacher import audit_teacher, train_plainly, train_private
from simulations.data_settings import SyntheticData
from simulations.models import gather_models
from simulations.pages import render_template
from simulations.scenarios import synthetic_population
from simulations.settings import SimulationSettings, simulation_settings
from simulations.stages import quiet_stages

PAGE_FILE, JSON_FILE, TEMPLATE = "audit.html", "audit.json", "auditing/audit.html.j2"
SPARE_PATIENTS = 100
"""Drawn beyond those that are attacked, for those without a note."""


@dataclass(frozen=True, kw_only=True)
class Findings:
    """All that was audited.

    Attributes:
        audits: Of the code as it is.
        planted: Of code with bugs.
        inferences: Attacks on students; none in a quick run.
    """

    audits: tuple[Audit, ...]
    planted: tuple[Audit, ...]
    inferences: tuple[Inference, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the code holds, every bug was caught, and nobody was seen."""
        return (
            all(audit.verdict == "holds" for audit in self.audits)
            and all(audit.verdict == "fails" for audit in self.planted)
            and all(inference.verdict != "seen" for inference in self.inferences)
        )

    def as_dict(self) -> dict[str, Any]:
        """The content of ``audit.json``; an infinite ε is null."""
        return {
            "passed": self.passed,
            "audits": [_plain(audit) for audit in self.audits],
            "planted_bugs": [_plain(audit) for audit in self.planted],
            "membership_inference": [_plain(inference) for inference in self.inferences],
        }


def _plain(one: Audit | Inference) -> dict[str, Any]:
    fields = {
        key: None if isinstance(value, float) and math.isinf(value) else value
        for key, value in asdict(one).items()
    }
    return {**fields, "verdict": one.verdict}


def audit_code(seed: int) -> Findings:
    """The canary audits, of the code and of the planted bugs: some seconds."""
    plan = audit_plan()

    def rng(number: int) -> np.random.Generator:
        return np.random.default_rng([seed, number])

    planted = [
        audit_mechanism(plan, rng(number), pieces=pieces, name=bug)
        for number, (bug, pieces) in enumerate(PLANTED_BUGS.items(), 2)
    ]
    called_private = audit_teacher(
        train_plainly, rng(9), name="a teacher without privacy that is called private"
    )
    return Findings(
        audits=(audit_mechanism(plan, rng(0)), audit_teacher(train_private, rng(1))),
        planted=(*planted, called_private),
    )


def attack_students(
    simulation: SimulationSettings, settings: AttackSettings, *, teacher: bool = True
) -> tuple[Inference, ...]:
    """Membership inference on students of a simulation's tiny base: minutes.

    Args:
        simulation: Base, eyes and adapter; its patients are drawn anew, as many as are attacked.
        settings: Of the attacks.
        teacher: Whether the teacher's canaries are looked for, too.
    """
    data = SyntheticData(
        name="synthetic",
        sites={"everybody": 2 * settings.members + SPARE_PATIENTS},
        skew=0.0,
        seen_share=1.0,
        test_per_answer=1,
    )
    population = synthetic_population(data, simulation.seed)
    track = population.track.name
    models = gather_models(simulation, {track: population}, quiet_stages())[track]
    (patients,) = population.sites.values()
    # All findings: the more a note says, the better it is remembered.
    views = Views(facial="keep")
    lots = draw_lots(patients.train, views, population.answers, models.student, settings)
    found = [attack_student(models, lots, settings)]
    if teacher:
        sight = models.memory.look({record.patient_id: views.view(record) for record in lots.records})
        found.append(attack_teacher(models, lots, sight, population.answers, settings))
    return tuple(found)


def render_audit(findings: Findings) -> str:
    """The page.

    Guarantee: the page makes no request and runs no script.
    """
    return render_template(
        TEMPLATE,
        {"number": _number},
        findings=findings,
        sentence=_sentence(findings),
        able=ABLE,
        hidden=HIDDEN,
    )


def _number(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{value:.2f}"


def _sentence(findings: Findings) -> str:
    """What the page begins with."""
    caught = sum(audit.verdict == "fails" for audit in findings.planted)
    bugs = f"{caught} of {len(findings.planted)} planted bugs were caught"
    wrong = [f"{audit.name} {audit.verdict}" for audit in findings.audits if audit.verdict != "holds"]
    wrong += [one.name + " are seen" for one in findings.inferences if one.verdict == "seen"]
    unsure = [one.name for one in findings.inferences if one.verdict == "inconclusive"]
    held = "; ".join(wrong) if wrong else "Nothing reveals more than is accounted"
    return f"{held}; {bugs}." + (f" Inconclusive: {'; '.join(unsure)}." if unsure else "")


def write_audit(folder: Path, findings: Findings) -> None:
    """Write ``audit.json`` and ``audit.html`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / JSON_FILE, json.dumps(findings.as_dict(), indent=2, allow_nan=False) + "\n")
    write_atomically(folder / PAGE_FILE, render_audit(findings))


def demo_settings() -> SimulationSettings:
    """The demo's settings: its base and eyes are likely to be in the cache."""
    with initialize_config_module("simulations.conf", version_base="1.3"):
        composed = OmegaConf.to_container(compose("config", overrides=["scenario=demo"]), resolve=True)
    if not isinstance(composed, dict):
        raise TypeError(f"Expected a mapping of settings, got {type(composed).__name__}")
    return simulation_settings({str(key): value for key, value in composed.items()})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status."""
    parser = argparse.ArgumentParser(prog="python -m simulations.audit", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="canary audits alone, some seconds")
    parser.add_argument(
        "--out", type=Path, default=Path("runs/audit"), help="folder of audit.json, audit.html"
    )
    parser.add_argument("--seed", type=int, default=0, help="of canaries, wrong answers and order")
    parser.add_argument(
        "--passes", type=int, default=AttackSettings().passes, help="of the attacked students"
    )
    chosen = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    logging.getLogger("simulations").setLevel(logging.INFO)
    findings = audit_code(chosen.seed)
    if not chosen.quick:
        simulation = replace(demo_settings(), seed=chosen.seed)
        torch.set_num_threads(simulation.threads)
        settings = AttackSettings(passes=chosen.passes, seed=chosen.seed)
        findings = replace(findings, inferences=attack_students(simulation, settings))
    write_audit(chosen.out, findings)
    print(f"{_sentence(findings)} Report: {chosen.out / PAGE_FILE}")  # noqa: T201 - the command's own last word
    return 0 if findings.passed else 1


if __name__ == "__main__":
    sys.exit(main())
