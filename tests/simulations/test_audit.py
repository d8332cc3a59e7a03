import json
import math
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
import torch

from simulations.audit import Findings, audit_code, main, render_audit, write_audit
from simulations.auditing.canaries import (
    Scores,
    audit_scores,
    gaussian_epsilon,
    gaussian_estimate,
    one_run_bound,
    one_run_p_value,
)
from simulations.auditing.mechanism import (
    NOISE_MULTIPLIER,
    PLANTED_BUGS,
    STEPS,
    Pieces,
    audit_mechanism,
    audit_plan,
    clip_by_patient,
)
from simulations.auditing.membership import Attack, Inference, membership_inference
from simulations.auditing.teacher import audit_teacher, train_plainly, train_private

RUNS = 20
DELTA = 1e-5


def normal_scores(mu: float, count: int, seed: int) -> Scores:
    rng = np.random.default_rng(seed)
    return Scores(included=rng.normal(mu, 1, count), excluded=rng.normal(0, 1, count))


def rngs(purpose: int) -> list[np.random.Generator]:
    return [np.random.default_rng([purpose, seed]) for seed in range(RUNS)]


def test_the_estimate_is_within_four_standard_errors_of_the_truth() -> None:
    for seed in range(RUNS):
        mu, error = gaussian_estimate(normal_scores(2.0, 500, seed))
        assert abs(mu - 2.0) < 4 * error
        assert 0.05 < error < 0.1


def test_the_standard_error_is_the_spread_of_estimates() -> None:
    found = [gaussian_estimate(normal_scores(2.0, 100, seed)) for seed in range(400)]
    spread = np.std([mu for mu, _ in found])
    assert spread == pytest.approx(np.mean([error for _, error in found]), rel=0.15)


def test_gaussian_epsilon_is_where_the_curve_of_balle_and_wang_meets_delta() -> None:
    normal = scipy.stats.norm
    for mu in (0.5, 1.0, 3.0):
        epsilon = gaussian_epsilon(mu, DELTA)
        delta = normal.cdf(mu / 2 - epsilon / mu) - math.exp(epsilon) * normal.cdf(-mu / 2 - epsilon / mu)
        assert delta == pytest.approx(DELTA, rel=1e-3)
    assert gaussian_epsilon(-1.0, DELTA) == 0.0


def test_scores_without_spread_reveal_without_bound() -> None:
    audit = audit_scores(
        "bare", Scores(included=np.ones(30), excluded=np.zeros(30)), accounted=8.0, delta=DELTA
    )
    assert (audit.estimate, audit.verdict) == (math.inf, "fails")


def test_an_audit_that_sees_nothing_is_blind() -> None:
    audit = audit_scores("nothing", normal_scores(0.0, 500, 0), accounted=8.0, delta=DELTA)
    assert audit.verdict == "blind"


def test_too_few_canaries_are_refused() -> None:
    with pytest.raises(ValueError, match="20 canaries or more"):
        Scores(included=np.ones(19), excluded=np.ones(40))


def test_the_one_run_p_value_without_delta_is_a_binomial_tail() -> None:
    # Of ten guesses, all right, at epsilon 0: a coin ten times.
    assert one_run_p_value(10, 10, 10, 0.0, 0.0) == pytest.approx(2**-10)
    honest = math.e / (1 + math.e)
    tail = sum(math.comb(10, k) * honest**k * (1 - honest) ** (10 - k) for k in (8, 9, 10))
    assert one_run_p_value(100, 10, 8, 1.0, 0.0) == pytest.approx(tail)
    # Two guesses, both right: beta = 1/4; P[W = 1] = 1/2, P[W >= 0] / 2 = 3/8, so alpha is 1/2.
    assert one_run_p_value(10, 2, 2, 0.0, 0.01) == pytest.approx(1 / 4 + 2 * 10 * 0.01 / 2)
    with pytest.raises(ValueError, match="right"):
        one_run_p_value(10, 5, 6, 1.0, 0.0)


def test_the_one_run_bound_lies_below_the_truth_and_above_nothing() -> None:
    for seed in range(RUNS):
        bound = one_run_bound(normal_scores(1.0, 500, seed), DELTA)
        assert 0.0 < bound < gaussian_epsilon(1.0, DELTA)
    assert one_run_bound(normal_scores(0.0, 500, 0), DELTA) < 0.5


def test_a_patients_rows_are_one_patient_in_the_audit() -> None:
    rows = torch.tensor([[3.0, 0.0], [3.0, 0.0], [0.0, 0.1]])
    total = clip_by_patient(rows, [0, 0, 1], 1.0)
    assert total == pytest.approx(np.array([1.0, 0.1]), rel=1e-5)


def test_the_clean_mechanism_passes_twenty_of_twenty() -> None:
    plan = audit_plan(512)
    audits = [audit_mechanism(plan, rng) for rng in rngs(1)]
    assert [audit.verdict for audit in audits] == ["holds"] * RUNS
    # What was accounted, from the other side: sqrt(T) / sigma of Gaussian DP.
    truth = gaussian_epsilon(math.sqrt(STEPS) / NOISE_MULTIPLIER, DELTA)
    assert audits[0].accounted == pytest.approx(truth, rel=0.01)
    assert np.mean([audit.estimate for audit in audits]) == pytest.approx(truth, rel=0.05)
    assert all(audit.one_run < audit.accounted for audit in audits)


# A doubled contribution is 10 standard errors off with 256 canaries. A lost third of the variance makes the
# estimate 22 % larger, 8 standard errors with 2048; the gate takes 4 of them.
@pytest.mark.parametrize(("bug", "canaries"), zip(PLANTED_BUGS, (256, 256, 2048), strict=True))
def test_a_planted_bug_is_caught_twenty_of_twenty(bug: str, canaries: int) -> None:
    plan = audit_plan(canaries)
    audits = [audit_mechanism(plan, rng, pieces=PLANTED_BUGS[bug], name=bug) for rng in rngs(2)]
    assert [audit.verdict for audit in audits] == ["fails"] * RUNS


def test_a_mechanism_that_hides_everybody_is_blind() -> None:
    nothing = Pieces(clip=lambda rows, patient_of_row, clip_norm: np.zeros(rows.shape[1]))
    assert audit_mechanism(audit_plan(256), np.random.default_rng(0), pieces=nothing).verdict == "blind"


def test_a_plan_without_a_bound_is_refused() -> None:
    plan = audit_plan(256)
    unbounded = replace(plan, teacher=replace(plan.teacher, privacy="none"))
    with pytest.raises(ValueError, match="bounds an epsilon"):
        audit_mechanism(unbounded, np.random.default_rng(0))


def test_the_private_teacher_passes_twenty_of_twenty() -> None:
    audits = [audit_teacher(train_private, rng, canaries=256) for rng in rngs(3)]
    assert [audit.verdict for audit in audits] == ["holds"] * RUNS


def test_a_teacher_without_privacy_that_is_called_private_is_caught_twenty_of_twenty() -> None:
    audits = [audit_teacher(train_plainly, rng, canaries=256) for rng in rngs(4)]
    assert [audit.verdict for audit in audits] == ["fails"] * RUNS


def test_membership_inference_counts_pairs_in_the_right_order() -> None:
    rng = np.random.default_rng(0)
    attack = membership_inference(np.array([3.0, 1.0]), np.array([0.0, 1.0]), rng)
    # Of four pairs three are in order and one is a tie.
    assert attack.auc == pytest.approx(3.5 / 4)
    members, others = rng.normal(1, 1, 1000), rng.normal(0, 1, 1000)
    attack = membership_inference(members, others, rng)
    low, high = attack.interval
    assert attack.auc == pytest.approx(scipy.stats.norm.cdf(1 / math.sqrt(2)), abs=0.04)
    assert low < attack.auc < high
    assert high - low == pytest.approx(2 * 1.96 * 0.0105, rel=0.3)
    # One per cent of the others are above 2.33.
    assert attack.found == pytest.approx(scipy.stats.norm.sf(2.33 - 1), abs=0.04)
    with pytest.raises(ValueError, match="Expected members"):
        membership_inference(members, np.array([]), rng)


@pytest.mark.parametrize(
    ("plain", "upper", "verdict"),
    [(0.64, 0.5, "inconclusive"), (0.65, 0.58, "hidden"), (0.9, 0.59, "seen"), (0.6, 0.9, "inconclusive")],
)
def test_an_attack_that_fails_without_privacy_is_inconclusive(
    plain: float, upper: float, verdict: str
) -> None:
    assert inference(plain, upper).verdict == verdict


def inference(plain: float, upper: float) -> Inference:
    attack = Attack(members=1000, others=1000, auc=plain, interval=(plain, plain), found=0.1)
    hidden = replace(attack, auc=upper - 0.02, interval=(upper - 0.04, upper))
    return Inference(name="members <b>", epsilon=8.0, plain=attack, private=hidden)


@pytest.fixture(scope="module")
def findings() -> Findings:
    return audit_code(0)


def test_the_code_passes_its_own_gate_and_every_planted_bug_fails_it(findings: Findings) -> None:
    assert findings.passed
    assert [audit.verdict for audit in findings.audits] == ["holds", "holds"]
    assert [audit.verdict for audit in findings.planted] == ["fails"] * 4


def test_findings_do_not_pass_with_a_bug_uncaught_an_audit_failed_or_a_member_seen(
    findings: Findings,
) -> None:
    assert not replace(findings, planted=(*findings.planted, findings.audits[0])).passed
    assert not replace(findings, audits=findings.planted).passed
    assert not replace(findings, inferences=(inference(0.9, 0.6),)).passed
    assert replace(findings, inferences=(inference(0.9, 0.55),)).passed


class Page(HTMLParser):
    """Every tag with its attributes, and the text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_says_all_figures_and_makes_no_request(findings: Findings) -> None:
    page = Page(render_audit(replace(findings, inferences=(inference(0.7, 0.55),))))
    assert page.addresses == [] and "script" not in page.tags and "b" not in page.tags
    for audit in (*findings.audits, *findings.planted):
        assert audit.name in page.text
    for text in ("4 of 4 planted bugs", "infinite", "0.700", "0.530", "hidden", "members <b>"):
        assert text in page.text
    assert f"{findings.audits[0].estimate:.2f}" in page.text


def test_the_page_begins_with_what_is_wrong(findings: Findings) -> None:
    wrong = replace(findings, audits=findings.planted[:1], inferences=(inference(0.5, 0.55),))
    text = Page(render_audit(wrong)).text
    assert "each row clipped instead of each patient fails" in text
    assert "Inconclusive: members <b>" in text


def test_the_files_hold_the_same_figures(findings: Findings, tmp_path: Path) -> None:
    write_audit(tmp_path / "new", findings)
    content = json.loads((tmp_path / "new" / "audit.json").read_text())
    assert content == json.loads(json.dumps(findings.as_dict()))
    assert content["planted_bugs"][3]["estimate"] is None
    assert content["audits"][0]["accounted"] == findings.audits[0].accounted
    assert "Privacy audit" in (tmp_path / "new" / "audit.html").read_text()


def test_the_quick_command_is_a_gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--quick", "--out", str(tmp_path)]) == 0
    monkeypatch.setattr("simulations.audit.train_private", train_plainly)
    assert main(["--quick", "--out", str(tmp_path)]) == 1
    assert not json.loads((tmp_path / "audit.json").read_text())["passed"]
