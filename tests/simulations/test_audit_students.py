"""The attacks on students at a size at which they say nothing: that they run, and on whom."""

from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from simulations.audit import attack_students
from simulations.auditing.student import AttackSettings, draw_lots
from simulations.settings import simulation_settings
from tests.simulations.small import SMALL, small_models, small_population

TINY = AttackSettings(members=6, students=2, passes=1, patients_per_step=3)


def test_answers_by_lot_are_never_right_and_nobody_is_drawn_twice(tmp_path: Path) -> None:
    population = small_population()
    models = small_models(tmp_path, population)
    site = population.sites["site-a"]
    lots = draw_lots(site.train, site.views, population.answers, models.student, TINY)
    truths = {record.patient_id: record.label for record in site.train}
    drawn = [record.patient_id for record in lots.records]
    assert len(set(drawn)) == 2 * TINY.members == len(lots.entries) == len(lots.prompts)
    assert all(record.label != truths[record.patient_id] for record in lots.records)
    assert [entry.patient_id for entry in lots.entries] == drawn
    with pytest.raises(ValueError, match="patients with a note, got"):
        draw_lots(site.train[:5], site.views, population.answers, models.student, TINY)


def test_both_attacks_say_whom_they_attacked_and_call_a_chance_result_inconclusive(tmp_path: Path) -> None:
    with initialize_config_module("simulations.conf", version_base="1.3"):
        composed = OmegaConf.to_container(
            compose("config", overrides=["scenario=demo", *SMALL, f"cache={tmp_path}"]), resolve=True
        )
    assert isinstance(composed, dict)
    members, canaries = attack_students(simulation_settings(composed), TINY)
    for found in (members, canaries):
        assert found.epsilon == 8.0
        for attack in (found.plain, found.private):
            assert (attack.members, attack.others) == (6, 6)
            assert 0 <= attack.interval[0] <= attack.auc <= attack.interval[1] <= 1
    assert np.isfinite(members.plain.auc)
    assert "teacher" in canaries.name
