"""What a comparison found, in sentences: what wins, what loses, what cannot be told, at what price.

Every verdict comes from the interval of a paired difference and from nothing else (`paired.word_for`): a
method that loses is said to lose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from common.tracks import TRACKS, Modality
from simulations.grids import by_rival, p_value
from simulations.paired import Word
from simulations.side_by_side import ALL_SITES, ALONE, MAIN
from simulations.standings import epsilon_of, percent, points

_NOUNS: Mapping[Modality, str] = {Modality.TEXT: "diagnosis", Modality.IMAGE: "tissue"}
_PARTS: Mapping[str, str] = {"union": "patients of the sites", "new": "new publications"}
_TOPS: Mapping[int, str] = {1: "first answer", 5: "first five", 10: "first ten"}
_DOUBT = 0.05
_SIGNS: Mapping[str, str] = {Word.BETTER: "better", Word.WORSE: "worse", Word.EVEN: "even"}


@dataclass(frozen=True, kw_only=True)
class Card:
    """One figure of the first screen.

    Attributes:
        label: Whose it is.
        hundred: For how many patients of a hundred the first answer is right.
        sentence: What that means beside the federated student.
        tone: ``main``, ``better``, ``worse`` or ``even``: of the federated student.
    """

    label: str
    hundred: int
    sentence: str
    tone: str


@dataclass(frozen=True, kw_only=True)
class Findings:
    """Sentences on one track; a list without any has nothing to say.

    Attributes:
        wins: Over whom the federated student wins; ``loses``, ``mixed`` and ``even`` likewise.
        own: What it brings a site on its own answers.
        price: What privacy costs.
        calibration: Whether confidence means what it says.
    """

    wins: list[str] = field(default_factory=list)
    loses: list[str] = field(default_factory=list)
    mixed: list[str] = field(default_factory=list)
    even: list[str] = field(default_factory=list)
    own: list[str] = field(default_factory=list)
    price: list[str] = field(default_factory=list)
    calibration: list[str] = field(default_factory=list)


def findings(track: Mapping[str, Any]) -> Findings:
    """What a track of ``evidence.json`` says."""
    found = Findings(
        own=_own(track["own_answers"]), price=_price(track), calibration=_calibration(track["calibration"])
    )
    for part in _PARTS:
        for pair in by_rival(track["comparisons"][part]):
            if epsilon_of(pair[1]["second"]) is None:
                getattr(found, _outcome(pair)).append(_against(pair, part))
    return found


def cards(name: str, track: Mapping[str, Any]) -> list[Card]:
    """The first screen of a track: the federated student, and what people will ask it against."""
    main = next((line for line in track["methods"] if line["method"] == MAIN and "union" in line), None)
    if main is None:
        return []
    top1, noun = main["union"]["top1"], _NOUNS[TRACKS[name].modality]
    reach = f"top{track['reach']}"
    first = f"It names the right {noun} first; 95 % interval {_ends(top1['interval'])}."
    if reach in main["union"]:
        ten = _hundred(main["union"][reach]["rate"])
        first += f" For {ten} the right one is among its {_TOPS[track['reach']]}."
    found = [Card(label=main["label"], hundred=_hundred(top1["rate"]), sentence=first, tone="main")]
    lines = {line["second"]: line for line in track["comparisons"]["union"] if line["top"] == 1}
    chosen = [f"best_{ALONE}", "pooled_orpo", _best_of(lines, ("linear_model", "text_linear")), "search"]
    found += [_rival_card(lines[rival]) for rival in chosen if rival in lines]
    return found + _new_card(main, noun) + _private_card(track)


def not_known(block: Mapping[str, Any], track: Mapping[str, Any]) -> list[str]:
    """What this comparison leaves open."""
    seeds = len(block["seeds"])
    even = [pair[1]["label"] for pair in by_rival(track["comparisons"]["union"]) if _outcome(pair) == "even"]
    trainings = "One training of each method" if seeds == 1 else f"{seeds} trainings of each method"
    found = [
        "Nothing here was tried with a hospital's own patients, and nobody was treated by these answers. The "
        "patients are published cases or drawn ones; what a clinic sees on a Monday is another mixture.",
        f"{trainings}: the intervals know other patients, not other trainings. The figures of the single "
        "seeds are in evidence.json.",
        "Another base model, more patients, other sites or other diseases can turn an order around that is "
        "close here.",
    ]
    if even:
        found.append(
            f"Whether the federated student is better or worse than: {', '.join(dict.fromkeys(even))}. The "
            "interval holds zero; more patients would be needed."
        )
    if track["privacy_price"]["union"]:
        found.append(
            "What another draw of the privacy noise would have given: each promise was kept once a seed."
        )
    else:
        found.append("What a promise of privacy would cost: no student with noise is in this comparison.")
    if not track["calibration"]:
        found.append("Whether confidence can be believed: no calibrated student is in this comparison.")
    return found


def lead(name: str, track: Mapping[str, Any]) -> str:
    """What a track found, in two sentences; empty without a federated student and a site alone."""
    lines = {line["second"]: line for line in track["comparisons"]["union"] if line["top"] == 1}
    alone = lines.get(f"best_{ALONE}")
    if alone is None:
        return ""
    noun = "diagnoses" if TRACKS[name].modality is Modality.TEXT else "tissues"
    said = (
        f"{len(track['sites'])} hospitals that learn together, and show nobody their patients, name "
        f"{_hundred(alone['first_rate'])} of 100 {noun} right at the first answer; the best of them alone "
        f"names {_hundred(alone['second_rate'])}."
    )
    lost = [line["label"] for line in lines.values() if line["word"] == Word.WORSE]
    if lost:
        said += f" Their student does worse than: {'; '.join(lost)}."
    return said


def _outcome(pair: Mapping[int, Mapping[str, Any]]) -> str:
    words = {line["word"] for line in pair.values()}
    if {Word.BETTER, Word.WORSE} <= words:
        return "mixed"
    if Word.BETTER in words:
        return "wins"
    return "loses" if Word.WORSE in words else "even"


def _against(pair: Mapping[int, Mapping[str, Any]], part: str) -> str:
    said = "; ".join(f"{_TOPS[top]} {_gain(line)}" for top, line in pair.items())
    return f"{pair[1]['label']}, {_PARTS[part]}: {said}."


def _gain(line: Mapping[str, Any]) -> str:
    return (
        f"{points(line['difference'])} points ({_from_to(line['interval'])}), {_word(line)}, "
        f"p {_equals(line['p_holm'])}"
    )


def _word(line: Mapping[str, Any]) -> str:
    if line["word"] == Word.EVEN:
        return "no difference to be seen"
    doubt = " (not beyond doubt among so many comparisons)" if line["p_holm"] > _DOUBT else ""
    return f"{line['word']}{doubt}"


def _equals(p: float) -> str:
    said = p_value(p)
    return said if said.startswith("<") else f"= {said}"


def _from_to(interval: Sequence[float]) -> str:
    return f"{points(interval[0])} to {points(interval[1])}"


def _ends(interval: Sequence[float]) -> str:
    return f"{_hundred(interval[0])} to {_hundred(interval[1])}"


def _hundred(rate: float) -> int:
    return round(100 * rate)


def _rival_card(line: Mapping[str, Any]) -> Card:
    size = f"{abs(100 * line['difference']):.1f} points"
    between = " to ".join(f"{100 * end:.1f}" for end in sorted(map(abs, line["interval"])))
    said = {
        Word.BETTER: f"The federated student is better by {size} (95 %: {between}).",
        Word.WORSE: f"The federated student is worse by {size} (95 %: {between}).",
        Word.EVEN: f"Federated minus this one: {points(line['difference'])} points "
        f"({_from_to(line['interval'])}): {Word.EVEN}.",
    }
    return Card(
        label=line["label"],
        hundred=_hundred(line["second_rate"]),
        sentence=said[line["word"]],
        tone=_SIGNS[line["word"]],
    )


def _best_of(lines: Mapping[str, Mapping[str, Any]], starts: tuple[str, ...]) -> str:
    """The strongest of the plain references: the one that is hardest to beat is the one to name."""
    return max(
        (name for name in lines if name.startswith(starts)),
        key=lambda name: lines[name]["second_rate"],
        default="",
    )


def _new_card(main: Mapping[str, Any], noun: str) -> list[Card]:
    top1 = main.get("new", {}).get("top1")
    if top1 is None:
        return []
    said = (
        f"The right {noun} first, where no site had a case of the same publication (95 %: "
        f"{_ends(top1['interval'])}). The harder test, and the one nearer to a new hospital."
    )
    return [
        Card(
            label="Federated student, new publications",
            hundred=_hundred(top1["rate"]),
            sentence=said,
            tone="main",
        )
    ]


def _private_card(track: Mapping[str, Any]) -> list[Card]:
    lines = [
        line
        for line in track["privacy_price"]["union"]
        if line["top"] == 1 and not line["second"].startswith("best_")
    ]
    if not lines:
        return []
    line = max(lines, key=lambda one: one["epsilon"])
    said = (
        f"With a promise to each patient (ε {line['epsilon']:g}): {points(line['difference'])} points "
        f"({_from_to(line['interval'])}) beside the one without noise."
    )
    return [Card(label=line["first_label"], hundred=_hundred(line["first_rate"]), sentence=said, tone="main")]


def _own(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for line in lines:
        if line["top"] == 1:
            where = "All sites together" if line["site"] == ALL_SITES else line["site"]
            rates = f"{percent(line['second_rate'])} alone, {percent(line['first_rate'])} federated"
            found.append(f"{where}: {rates}, {_gain(line)}.")
    return found


def _price(track: Mapping[str, Any]) -> list[str]:
    found = []
    for part, where in _PARTS.items():
        for pair in by_rival(track["privacy_price"][part]):
            said = "; ".join(f"{_TOPS[top]} {_gain(line)}" for top, line in pair.items())
            found.append(f"ε {pair[1]['epsilon']:g} against {pair[1]['label']}, {where}: {said}.")
    return found


def _calibration(lines: Sequence[Mapping[str, Any]]) -> list[str]:
    found = []
    for line in lines:
        for part, where in _PARTS.items():
            if part in line:
                found.append(f"{line['label']}, {where}: {_calibrated(line[part])}")
    return found


def _calibrated(found: Mapping[str, Any]) -> str:
    ece, floor = found["ece"], found["floor"]
    said = (
        f"calibration error {percent(ece['before'])} before, {percent(ece['after'])} after (a perfect one "
        f"would show about {percent(floor['after'])})"
    )
    if found["ratio_interval"] is not None:
        low, high = found["ratio_interval"]
        said += f", {found['ratio']:.2f} of before (95 %: {low:.2f} to {high:.2f})"
    accuracy = found["accuracy"]
    word = {"better": "higher", "worse": "lower"}.get(
        accuracy["word"], "not changed that these patients can show"
    )
    moved = f"{points(accuracy['difference'])} points, {_from_to(accuracy['interval'])}"
    return f"{said}; accuracy {word} ({moved})."
