import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import SettingsError, UnsupportedSchemaError
from common.ids import SiteId
from common.learning_plan import AdapterPlan, PreferencePlan, ServerOptimizerPlan, TeacherPlan, TrainingPlan
from common.plan import AggregationPlan, RunPlan, TrackPlan
from common.tracks import TISSUE_TYPE

# No deadline: another test may hold the processor.
few = settings(max_examples=30, deadline=None)

DIGEST = "0123456789abcdef" * 4

Json = dict[str, Any]


def track_plan(**changes: Any) -> TrackPlan:
    return TrackPlan(
        **{
            "track": "rare_disease",
            "answers_digest": DIGEST,
            "base_model_digest": DIGEST,
            "tokenizer_digest": DIGEST,
            "adapter": AdapterPlan(factors_digest=DIGEST),
            "preferences": PreferencePlan(pairs_per_patient=4),
            "training": TrainingPlan(
                rounds=6, local_steps=20, patients_per_step=8, learning_rate=3e-3, max_prompt_tokens=256
            ),
            "server_optimizer": ServerOptimizerPlan(),
            **changes,
        }
    )


def aggregation_plan(**changes: Any) -> AggregationPlan:
    return AggregationPlan(**{"minimum_survivors": 3, "site_patients_cap": 500, "timeout_s": 600, **changes})


def run_plan(**changes: Any) -> RunPlan:
    return RunPlan(
        **{
            "name": "Demo run",
            "purpose": "research",
            "ethics_id": "EK 2026/17",
            "expires": "2027-12-31",
            "seed": 7,
            "sites": tuple(SiteId(f"hospital-{letter}") for letter in "abcd"),
            "tracks": (track_plan(), track_plan(track="tissue_type")),
            "teacher": TeacherPlan(modality_dropout=0.2),
            "aggregation": aggregation_plan(),
            **changes,
        }
    )


PLAN = run_plan()
CONTENT: Json = json.loads(PLAN.to_json())


T, P, S = "tracks.0.training", "tracks.0.preferences", "tracks.0.server_optimizer"


def changed(path: str, value: Any, plan: RunPlan | None = None) -> str:
    """The plan's JSON with one value replaced, or a key added."""
    content = json.loads((plan or PLAN).to_json())
    *parents, last = path.split(".")
    place: Any = content
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    place[last] = value
    return json.dumps(content)


PLANS = st.builds(
    lambda seed, sites, rank, alpha, optimizer, mode, steps, rate: run_plan(
        seed=seed,
        sites=tuple(sites),
        tracks=(
            track_plan(
                adapter=AdapterPlan(mode=mode, rank=rank, alpha=alpha, factors_digest=DIGEST),
                server_optimizer=optimizer,
                training=TrainingPlan(
                    rounds=steps,
                    local_steps=steps,
                    patients_per_step=1,
                    learning_rate=rate,
                    max_prompt_tokens=9,
                ),
            ),
        ),
    ),
    seed=st.integers(0, 2**63 - 1),
    sites=st.lists(
        st.from_regex(r"[a-z0-9][a-z0-9-]{0,39}", fullmatch=True), min_size=3, max_size=6, unique=True
    ),
    rank=st.integers(1, 512),
    alpha=st.floats(1e-3, 1e3) | st.integers(1, 64),
    optimizer=st.sampled_from(
        [ServerOptimizerPlan(momentum=0.9), ServerOptimizerPlan(name="adam", beta1=0.5)]
    ),
    mode=st.sampled_from(["ffa", "rolora"]),
    steps=st.integers(1, 1000),
    rate=st.floats(1e-8, 1),
)


@few
@given(plan=PLANS)
def test_a_plan_comes_back_from_json_with_the_same_digest(plan: RunPlan) -> None:
    back = RunPlan.from_json(plan.to_json())
    assert back == plan
    assert back.digest() == plan.digest()
    assert back.to_json() == plan.to_json()


@few
@given(data=st.data())
def test_the_digest_is_stable_under_key_order_and_white_space(data: st.DataObject) -> None:
    def shuffled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: shuffled(value[key]) for key in data.draw(st.permutations(sorted(value)))}
        return [shuffled(item) for item in value] if isinstance(value, list) else value

    assert RunPlan.from_json(json.dumps(shuffled(CONTENT), indent=2)).digest() == PLAN.digest()


def test_what_is_left_out_is_written_into_the_digest() -> None:
    content = json.loads(PLAN.to_json())
    del content["privacy"], content["tracks"][0]["training"]["orpo_lambda"]
    assert RunPlan.from_json(json.dumps(content)) == PLAN


def test_a_number_has_one_form() -> None:
    whole, broken = (track_plan(adapter=AdapterPlan(alpha=a, factors_digest=DIGEST)) for a in (8, 8.0))
    assert run_plan(tracks=(whole,)).digest() == run_plan(tracks=(broken,)).digest()


def test_the_digest_of_a_plan_stays_what_it_was() -> None:
    assert PLAN.digest() == "aefc0c03328a284ac952b3cd9b456547b8351701f306cfcf1f07980ea55d5606"


A = "tracks.0.adapter"
OTHER_VALUES: Json = {
    "name": "Another run",
    "consortium": "Another one",
    "teacher.privacy": "public",
    "purpose": "quality",
    "ethics_id": "EK 2026/18",
    "expires": "2028-01-01",
    "seed": 8,
    "sites": ["hospital-d", "hospital-b", "hospital-c", "hospital-a"],
    "tracks.0.track": "tissue_type",
    "tracks.0.answers_digest": DIGEST[::-1],
    "tracks.0.base_model_digest": DIGEST[::-1],
    "tracks.0.tokenizer_digest": DIGEST[::-1],
    f"{A}.mode": "ffa",
    f"{A}.rank": 8,
    f"{A}.alpha": 8,
    f"{A}.targets": ["q_proj"],
    f"{A}.side": "both",
    f"{A}.factors_digest": DIGEST[::-1],
    "tracks.0.sites": ["hospital-d", "hospital-b", "hospital-c", "hospital-a"],
    "teacher.folds": 2,
    "teacher.modality_dropout": 0,
    f"{P}.chosen_length": 1,
    f"{P}.rejected_length": 1,
    f"{P}.pairs_per_patient": 1,
    f"{P}.label_policy": "label_first",
    f"{P}.rejected_from": "middle",
    f"{P}.reject_from": "all",
    f"{P}.middle": [2, 5],
    "tracks.0.calibration": {"method": "cft", "share": 0.2, "rounds": 1},
    f"{T}.rounds": 1,
    f"{T}.local_steps": 1,
    f"{T}.patients_per_step": 1,
    f"{T}.learning_rate": 1,
    f"{T}.local_optimizer": "sgd",
    f"{T}.loss": "dpo",
    f"{T}.dpo_beta": 0.5,
    f"{T}.orpo_lambda": 0,
    f"{T}.nll_on": "sequence",
    f"{T}.max_prompt_tokens": 1,
    f"{T}.images_per_step": 1,
    f"{T}.readings": 2,
    f"{T}.dropped": 0.5,
    f"{T}.with_exclusions": 0.5,
    f"{T}.weighting": "uniform",
    f"{S}.name": "adam",
    f"{S}.learning_rate": 0.5,
    f"{S}.schedule": "cosine",
    f"{S}.momentum": 0.5,
    f"{S}.beta1": 0.5,
    f"{S}.beta2": 0.5,
    f"{S}.epsilon": 0.5,
    "aggregation.minimum_survivors": 2,
    "aggregation.lost_before_upload": "abort",
    "aggregation.word_bits": 16,
    "aggregation.max_abs_delta": 2,
    "aggregation.site_patients_cap": 1,
    "aggregation.timeout_s": 1,
}
ONE_VALUE_ONLY = {"schema", "aggregation.mode"}
# Only together with others: `test_every_field_of_privacy_is_in_the_digest` in test_privacy_plan.py.
OF_PRIVACY = {
    "tracks.0.privacy",
    "teacher.dp",
    *(f"privacy.{key}" for key in CONTENT["privacy"]),
}


def paths(value: Any, path: str = "") -> list[str]:
    """The names of all fields, of the first track only."""
    if isinstance(value, dict):
        return [name for key, item in value.items() for name in paths(item, f"{path}.{key}".lstrip("."))]
    return paths(value[0], f"{path}.0") if path == "tracks" else [path]


def test_every_field_is_in_the_digest() -> None:
    assert set(OTHER_VALUES) | ONE_VALUE_ONLY | OF_PRIVACY == set(paths(CONTENT))
    digests = {PLAN.digest()}
    for path, value in OTHER_VALUES.items():
        base = run_plan(tracks=(track_plan(server_optimizer=ServerOptimizerPlan(name="adam")),))
        if path in (f"{S}.name", f"{S}.momentum"):
            base = run_plan(tracks=PLAN.tracks[:1])
        if path in (f"{T}.dropped", f"{T}.with_exclusions"):
            base = RunPlan.from_json(changed(f"{T}.readings", 2, base))
        if path == f"{T}.dpo_beta":
            base = RunPlan.from_json(changed(f"{T}.loss", "dpo", base))
        digests |= {base.digest(), RunPlan.from_json(changed(path, value, base)).digest()}
    # Five plans to start from, three of which are reached by a change as well.
    assert len(digests) == len(OTHER_VALUES) + 5 - 3


@pytest.mark.parametrize(
    ("path", "value", "line"),
    [
        ("extra", 1, "plan.extra: expected one of schema, name, "),
        ("tracks.0.extra", 1, "plan.tracks[0].extra: expected one of track, "),
        (f"{T}.extra", 1, "plan.tracks[0].training.extra: expected one of rounds, "),
        ("schema", 0, "plan.schema: expected a number from 1 to 4, got 0"),
        ("schema", "1", "plan.schema: expected a number from 1 to 4, got '1'"),
        ("name", "", "plan.name: expected one line"),
        ("name", "a\nb", "plan.name: expected one line"),
        ("purpose", "", "plan.purpose: expected one line"),
        ("ethics_id", 17, "plan.ethics_id: expected text, got 17"),
        ("expires", "31.12.2027", "plan.expires: expected a day as YYYY-MM-DD, got '31.12.2027'"),
        ("seed", -1, "plan.seed: expected a whole number from 0"),
        ("seed", 2**63, "plan.seed: expected a whole number from 0"),
        ("seed", 1.5, "plan.seed: expected a whole number, got 1.5"),
        (
            "privacy",
            "dp",
            "plan.privacy: expected a mapping of PrivacyPlan's keys, got 'dp'",
        ),
        ("privacy.mode", "dp", "plan.privacy.mode: expected one of none, distributed, local, site"),
        ("privacy.epsilon", 8, "plan.privacy.epsilon: expected None, since it has no effect in mode none"),
        ("privacy.colluders", -1, "plan.privacy.colluders: expected a whole number >= 0, got -1"),
        (
            "sites",
            ["a", "b"],
            "plan.sites: expected at least 3: a plan refuses fewer than 3 sites, got 2 sites",
        ),
        ("sites", ["a", "b", "b"], "plan.sites: expected every one once, got 'b' twice"),
        ("sites", ["a", "b", "C"], "plan.sites: expected lower-case letters, digits and hyphens, got 'C'"),
        ("sites", "abc", "plan.sites: expected a list, got 'abc'"),
        ("tracks", [], "plan.tracks: expected at least one, got none"),
        (
            "tracks",
            CONTENT["tracks"][:1] * 2,
            "plan.tracks: expected every one once, got 'rare_disease' twice",
        ),
        ("tracks.0.track", "x", "plan.tracks[0].track: expected one of rare_disease, tissue_type, got 'x'"),
        ("tracks.0.answers_digest", "ab", "plan.tracks[0].answers_digest: expected a SHA-256"),
        ("tracks.0.base_model_digest", "", "plan.tracks[0].base_model_digest: expected a SHA-256"),
        ("tracks.0.tokenizer_digest", DIGEST.upper(), "plan.tracks[0].tokenizer_digest: expected a SHA-256"),
        (
            "tracks.0.adapter.mode",
            "dora",
            "plan.tracks[0].adapter.mode: expected one of ffa, rolora, core, got 'dora'",
        ),
        ("tracks.0.adapter.rank", 0, "plan.tracks[0].adapter.rank: expected a whole number >= 1, got 0"),
        ("tracks.0.adapter.alpha", 0, "plan.tracks[0].adapter.alpha: expected a number > 0, got 0"),
        ("tracks.0.adapter.targets", [], "plan.tracks[0].adapter.targets: expected at least one, got none"),
        ("tracks.0.adapter.targets", ["q", "q"], "plan.tracks[0].adapter.targets: expected every one once"),
        ("tracks.0.adapter.targets", ["a b "], "plan.tracks[0].adapter.targets: expected one line"),
        ("tracks.0.adapter.factors_digest", "x", "plan.tracks[0].adapter.factors_digest: expected a SHA-256"),
        (
            "teacher.privacy",
            "dp",
            "plan.teacher.dp: expected how the teacher trains, since its privacy is dp, got",
        ),
        ("teacher.folds", 1, "plan.teacher.folds: expected a whole number >= 2, got 1"),
        (
            "teacher.modality_dropout",
            1,
            "plan.teacher.modality_dropout: expected a number with",
        ),
        (f"{P}.chosen_length", 0, "plan.tracks[0].preferences.chosen_length: expected a whole number >= 1"),
        (
            f"{P}.rejected_length",
            0,
            "plan.tracks[0].preferences.rejected_length: expected a whole number >= 1",
        ),
        (
            f"{P}.pairs_per_patient",
            0,
            "plan.tracks[0].preferences.pairs_per_patient: expected a whole number",
        ),
        (
            f"{P}.label_policy",
            "x",
            "plan.tracks[0].preferences.label_policy: expected one of teacher, label_first",
        ),
        (
            f"{P}.rejected_from",
            "top",
            "plan.tracks[0].preferences.rejected_from: expected one of bottom, middle",
        ),
        (
            f"{P}.reject_from",
            "x",
            "plan.tracks[0].preferences.reject_from: expected one of seen, all, got 'x'",
        ),
        (f"{P}.middle", [3, 2], "plan.tracks[0].preferences.middle: expected ranks (first, last)"),
        (f"{P}.middle", [0, 2], "plan.tracks[0].preferences.middle: expected ranks (first, last)"),
        (f"{P}.middle", [1], "plan.tracks[0].preferences.middle: expected 2 values, got 1 values"),
        (f"{T}.rounds", 0, "plan.tracks[0].training.rounds: expected a whole number >= 1, got 0"),
        (f"{T}.rounds", True, "plan.tracks[0].training.rounds: expected a whole number, got True"),
        (f"{T}.local_steps", 0, "plan.tracks[0].training.local_steps: expected a whole number >= 1, got 0"),
        (f"{T}.patients_per_step", 0, "plan.tracks[0].training.patients_per_step: expected a whole number"),
        (f"{T}.learning_rate", 0, "plan.tracks[0].training.learning_rate: expected a number > 0, got 0"),
        (
            f"{T}.learning_rate",
            "1e-3",
            "plan.tracks[0].training.learning_rate: expected a finite number, got '1e-3'",
        ),
        (f"{T}.orpo_lambda", -0.1, "plan.tracks[0].training.orpo_lambda: expected a number >= 0, got -0.1"),
        (f"{T}.nll_on", "prompt", "plan.tracks[0].training.nll_on: expected one of answer, sequence"),
        (
            f"{T}.max_prompt_tokens",
            0,
            "plan.tracks[0].training.max_prompt_tokens: expected a whole number >= 1",
        ),
        (f"{T}.loss", "ipo", "plan.tracks[0].training.loss: expected one of orpo, dpo, got 'ipo'"),
        (f"{T}.dpo_beta", 0, "plan.tracks[0].training.dpo_beta: expected a number > 0, got 0"),
        (
            f"{T}.dpo_beta",
            0.2,
            "plan.tracks[0].training.dpo_beta: expected 0.1, since it has no effect on orpo, got 0.2",
        ),
        (f"{T}.readings", 0, "plan.tracks[0].training.readings: expected a whole number >= 1, got 0"),
        (
            "tracks.1.training.readings",
            2,
            "plan.tracks[1].training.readings: expected 1, since tissue_type has no notes, got 2",
        ),
        (f"{T}.dropped", 1, "plan.tracks[0].training.dropped: expected a number from 0 to less than 1, got"),
        (
            f"{T}.dropped",
            0.2,
            "plan.tracks[0].training.dropped: expected 0, since it has no effect on 1 reading, got 0.2",
        ),
        (
            f"{T}.with_exclusions",
            1.5,
            "plan.tracks[0].training.with_exclusions: expected a number from 0 to 1, got 1.5",
        ),
        (
            f"{T}.with_exclusions",
            0,
            "plan.tracks[0].training.with_exclusions: expected 1, since it has no effect on 1 reading, got 0",
        ),
        (f"{T}.weighting", "x", "plan.tracks[0].training.weighting: expected one of patients, uniform"),
        (
            f"{S}.name",
            "lamb",
            "plan.tracks[0].server_optimizer.name: expected one of sgd, adam",
        ),
        (
            f"{S}.learning_rate",
            0,
            "plan.tracks[0].server_optimizer.learning_rate: expected a n",
        ),
        (
            f"{S}.momentum",
            1,
            "plan.tracks[0].server_optimizer.momentum: expected a number with",
        ),
        (
            f"{S}.beta1",
            -1,
            "plan.tracks[0].server_optimizer.beta1: expected a number with",
        ),
        (
            f"{S}.beta2",
            0.9,
            "plan.tracks[0].server_optimizer.beta2: expected 0.99, since it has",
        ),
        (
            f"{S}.epsilon",
            0,
            "plan.tracks[0].server_optimizer.epsilon: expected a number > 0",
        ),
        ("aggregation.mode", "clear", "plan.aggregation.mode: expected one of secagg-v1, got 'clear'"),
        (
            "aggregation.lost_before_upload",
            "ignore",
            "plan.aggregation.lost_before_upload: expected one of recover, abort, got 'ignore'",
        ),
        (
            "aggregation.word_bits",
            15,
            "plan.aggregation.word_bits: expected a whole number from 16 to 32, got",
        ),
        (
            "aggregation.word_bits",
            33,
            "plan.aggregation.word_bits: expected a whole number from 16 to 32, got",
        ),
        ("aggregation.word_bits", 20.0, "plan.aggregation.word_bits: expected a whole number, got 20.0"),
        (
            "aggregation.minimum_survivors",
            1,
            "plan.aggregation.minimum_survivors: expected a whole number >= 2",
        ),
        (
            "aggregation.minimum_survivors",
            5,
            "plan.aggregation.minimum_survivors: expected at most 4 sites, got 5",
        ),
        ("aggregation.max_abs_delta", 0.5, "plan.aggregation.max_abs_delta: expected a number >= 1, got 0.5"),
        (
            "aggregation.site_patients_cap",
            0,
            "plan.aggregation.site_patients_cap: expected a whole number >= 1",
        ),
        ("aggregation.timeout_s", 0, "plan.aggregation.timeout_s: expected a number > 0, got 0"),
        ("aggregation", None, "plan.aggregation: expected a mapping of AggregationPlan's keys, got nothing"),
    ],
)
def test_a_bad_field_is_refused_with_one_clear_line(path: str, value: Any, line: str) -> None:
    with pytest.raises(SettingsError) as caught:
        RunPlan.from_json(changed(path, value))
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("what", "line"),
    [
        ({"orpo_lambda": 0.0}, "orpo_lambda: expected 0.1, since it has no effect on dpo, got 0.0"),
        ({"nll_on": "sequence"}, "nll_on: expected answer, since it has no effect on dpo, got sequence"),
    ],
)
def test_what_has_no_effect_on_dpo_is_refused(what: dict[str, Any], line: str) -> None:
    with pytest.raises(SettingsError, match=line):
        replace(PLAN.tracks[0].training, loss="dpo", **what)


def required_paths() -> list[str]:
    optional = {
        *(
            "schema.",
            "privacy",
            "consortium",
            "dp",
            "mode",
            "rank",
            "alpha",
            "targets",
            "folds",
            "chosen_length",
            "rejected_length",
        ),
        *("label_policy", "rejected_from", "reject_from", "middle", "orpo_lambda", "nll_on", "weighting"),
        *("local_optimizer", "momentum", "beta1", "beta2", "epsilon", "max_abs_delta"),
        *("lost_before_upload", "word_bits", "side", "images_per_step"),
        *("loss", "dpo_beta", "readings", "dropped", "with_exclusions", "sites", "calibration"),
    }
    paths = [*CONTENT, *(f"tracks.0.{key}" for key in CONTENT["tracks"][0])]
    paths += [
        f"tracks.0.{part}.{key}"
        for part, fields in CONTENT["tracks"][0].items()
        if isinstance(fields, dict)
        for key in fields
    ]
    paths += [f"aggregation.{key}" for key in CONTENT["aggregation"]]
    return [p for p in paths if p.split(".")[-1] not in optional and "server_optimizer." not in p]


@pytest.mark.parametrize("path", required_paths())
def test_a_missing_field_is_refused_by_its_name(path: str) -> None:
    content = json.loads(PLAN.to_json())
    *parents, last = path.split(".")
    place: Any = content
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place[key]
    del place[last]
    with pytest.raises(
        SettingsError, match=rf"^plan\..*{last}: expected .*, got nothing$|^plan\.{last}: .*got nothing$"
    ):
        RunPlan.from_json(json.dumps(content))


def test_a_newer_schema_is_refused_before_its_unknown_keys() -> None:
    content = CONTENT | {"schema": 5, "quantum": True}
    with pytest.raises(UnsupportedSchemaError, match=r"plan: schema 5 is newer than 4"):
        RunPlan.from_json(json.dumps(content))
    with pytest.raises(UnsupportedSchemaError):
        run_plan(schema=5)


@pytest.mark.parametrize("text", ["", "[]", "{", "null", '{"schema": 1, "schema": 1}', '{"schema": NaN}'])
def test_what_is_no_plan_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^plan: expected"):
        RunPlan.from_json(text)


def test_a_plan_refuses_fewer_than_3_sites() -> None:
    with pytest.raises(ValueError, match=r"a plan refuses fewer than 3 sites, got 2 sites"):
        run_plan(sites=(SiteId("a"), SiteId("b")))
    least = AggregationPlan(minimum_survivors=3, site_patients_cap=1, timeout_s=1)
    assert len(run_plan(sites=tuple(SiteId(name) for name in "abc"), aggregation=least).sites) == 3


@pytest.mark.parametrize(
    ("make", "key"),
    [
        (lambda: AdapterPlan(rank=0, factors_digest=DIGEST), "rank"),
        (lambda: AdapterPlan(rank="8", factors_digest=DIGEST), "rank"),
        (lambda: TeacherPlan(privacy="dp", modality_dropout=0), "dp"),
        (lambda: PreferencePlan(pairs_per_patient=0), "pairs_per_patient"),
        (
            lambda: TrainingPlan(
                rounds=1, local_steps=1, patients_per_step=1, learning_rate=-1, max_prompt_tokens=1
            ),
            "lear",
        ),
        (lambda: ServerOptimizerPlan(name="adam", momentum=0.9), "momentum"),
        (lambda: AggregationPlan(mode="x", minimum_survivors=3, site_patients_cap=1, timeout_s=1), "mode"),
        (lambda: aggregation_plan(word_bits=33), "word_bits"),
        (lambda: aggregation_plan(lost_before_upload="wait"), "lost_before_upload"),
        (lambda: track_plan(track="x"), "track"),
        (lambda: track_plan(adapter=None), "adapter"),
        (lambda: run_plan(expires="never"), "expires"),
    ],
)
def test_a_bad_field_is_refused_from_code_as_well(make: Callable[[], object], key: str) -> None:
    with pytest.raises(ValueError, match=f"^{key}"):
        make()


@pytest.mark.parametrize("bits", [16, 20, 32])
def test_a_word_has_16_to_32_bits_and_32_where_nothing_is_said(bits: int) -> None:
    assert aggregation_plan(word_bits=bits).word_bits == bits
    assert aggregation_plan().word_bits == 32


SIX = tuple(SiteId(f"hospital-{letter}") for letter in "abcdef")


@pytest.mark.parametrize(
    ("changes", "least"),
    [
        # A roster of six has a share threshold of five.
        ({}, 5),
        ({"minimum_survivors": 6}, 6),
        ({"lost_before_upload": "abort"}, 6),
        ({"lost_before_upload": "abort", "minimum_survivors": 6}, 6),
    ],
)
def test_as_many_must_survive_as_plan_threshold_and_lost_sites_want(
    changes: dict[str, Any], least: int
) -> None:
    assert (
        run_plan(aggregation=aggregation_plan(**changes), sites=SIX).least_survivors(roster=6, threshold=5)
        == least
    )


def test_sites_may_be_lost_unless_the_plan_says_otherwise() -> None:
    assert aggregation_plan().lost_before_upload == "recover"


def test_the_middle_must_lie_after_the_chosen_and_hold_enough() -> None:
    def middle(first: int, last: int) -> PreferencePlan:
        return PreferencePlan(
            chosen_length=1,
            rejected_length=2,
            pairs_per_patient=1,
            rejected_from="middle",
            middle=(first, last),
        )

    assert middle(2, 5).middle == (2, 5)
    assert middle(2, 3).middle == (2, 3)
    with pytest.raises(SettingsError, match=r"middle: expected ranks after the 1 chosen ones"):
        middle(1, 5)
    with pytest.raises(SettingsError, match=r"middle: expected at least 2 ranks"):
        middle(2, 2)


def test_an_optimizer_refuses_what_has_no_effect_on_it() -> None:
    assert ServerOptimizerPlan(momentum=0.9).momentum == 0.9
    assert ServerOptimizerPlan(name="adam", beta1=0.5, beta2=0.5, epsilon=1e-8).beta1 == 0.5
    for key in ("beta1", "beta2", "epsilon"):
        with pytest.raises(SettingsError, match=f"{key}: expected .*, since it has no effect on sgd"):
            ServerOptimizerPlan(**{key: 0.5})


def test_the_plan_of_a_flower_run_is_under_the_key_plan() -> None:
    assert RunPlan.from_run_config({"plan": PLAN.to_json(), "other": 1}) == PLAN
    for run_config in ({}, {"plan": 3}, {"plan": None}):
        with pytest.raises(SettingsError, match=r"run config.plan: expected a plan's JSON, got no text"):
            RunPlan.from_run_config(run_config)


def test_a_track_is_found_by_its_name() -> None:
    assert PLAN.track("tissue_type") is PLAN.tracks[1]
    assert PLAN.track("tissue_type").definition is TISSUE_TYPE
    with pytest.raises(ValueError, match=r"Expected a track of the plan .*, got 'x'"):
        PLAN.track("x")


SITES = tuple(SiteId(f"hospital-{letter}") for letter in "abcd")


def test_a_track_may_have_fewer_sites_than_the_run_and_a_site_fewer_tracks() -> None:
    text, image = track_plan(sites=SITES[:3]), track_plan(track="tissue_type", sites=SITES[1:])
    plan = run_plan(tracks=(text, image))
    assert plan.sites_of(text) == SITES[:3]
    assert [len(plan.tracks_of(site)) for site in SITES] == [1, 2, 2, 1]
    assert plan.tracks_of(SITES[3]) == (image,)
    assert run_plan().sites_of(run_plan().tracks[0]) == SITES
    assert RunPlan.from_json(plan.to_json()) == plan


@pytest.mark.parametrize(
    ("sites", "line"),
    [
        (SITES[:2], r"tracks\[0\]\.sites: expected at least 3 for each track, got 2 sites"),
        (
            (*SITES[:3], SiteId("stranger")),
            r"tracks\[0\]\.sites: expected sites of the plan: .*, got 'stranger'",
        ),
        ((*SITES[:3], SITES[0]), r"tracks\[0\]\.sites: expected every one once, got 'hospital-a' twice"),
    ],
)
def test_a_tracks_sites_are_enough_of_the_plans_each_once(sites: tuple[SiteId, ...], line: str) -> None:
    with pytest.raises(SettingsError, match=line):
        run_plan(tracks=(track_plan(sites=sites), track_plan(track="tissue_type")))


def test_a_site_of_no_track_is_refused() -> None:
    with pytest.raises(
        SettingsError, match="sites: expected sites that take part in some track, got hospital-d"
    ):
        run_plan(tracks=(track_plan(sites=SITES[:3]),))
