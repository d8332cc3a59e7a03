"""Who stands where: the methods of a ``results.json`` in the order in which people compare them.

From what nobody trained, over what each site reaches alone, to the federated student and what is made of it,
the pooled one (which hospitals cannot have), plain linear models and the teachers (which see more than a
student does). Terminal table, report and the comparison of several runs read from here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from simulations.method_settings import CALIBRATIONS

MEAN = "_mean"
OWN_ANSWERS = "own_answers"
NEW_PUBLICATIONS = "new_publications"
MAIN_LEARNING = "orpo"
_ACRONYMS = ("orpo", "sft", "dpo", "rag", "cot", "cft", "rcft")
_EPSILON = re.compile(r"(distributed|local)_eps_([0-9]+(?:-[0-9]+)?)")


class Kind(StrEnum):
    """What sort of a method it is; in the order of the standings."""

    BASE = "base"
    SEARCH = "search"
    LOCAL = "local"
    LOCAL_MEAN = "local-mean"
    FEDERATED = "federated"
    RETRIEVAL = "retrieval"
    POOLED = "pooled"
    REFERENCE = "reference"
    TEACHER = "teacher"
    OTHER = "other"


_KINDS = tuple(Kind)
_LABELS = {
    Kind.BASE: "Base model, untrained",
    Kind.LOCAL: "{site} alone",
    Kind.LOCAL_MEAN: "One site alone, mean",
    Kind.FEDERATED: "Federated student",
    Kind.POOLED: "All data in one place",
    Kind.TEACHER: "Teacher of {site}",
}
_NAMED = {
    "search": (Kind.SEARCH, "Search in public descriptions"),
    "rag_base": (Kind.RETRIEVAL, "Student, ten answers at once"),
    "rag_cot": (Kind.RETRIEVAL, "Student, five questions (CoT)"),
    "rag_rag": (Kind.RETRIEVAL, "Student with documents (RAG)"),
    "rag_rag_cot": (Kind.RETRIEVAL, "Documents, then questions (RAG-driven CoT)"),
    "rag_cot_rag": (Kind.RETRIEVAL, "Questions, then documents (CoT-driven RAG)"),
    "rag_router": (Kind.RETRIEVAL, "Router by length of the note"),
    "linear_model": (Kind.REFERENCE, "Linear model, coded findings"),
    "linear_model_with_exclusions": (Kind.REFERENCE, "Linear model, coded findings and exclusions"),
    "text_linear": (Kind.REFERENCE, "Linear model, words of the note"),
}
"""Methods that are no kind of student trained from patients, by name, in the order of the standings."""
_SUFFIXES = {
    "pooled_temperature": "calibrated (temperature, all data in one place)",
    "temperature": "calibrated (temperature)",
    "label_smoothing": "calibrated (label smoothing)",
    "cft": "calibrated (CFT)",
    "rcft": "calibrated (RCFT)",
}
_NOISE = {"distributed": "noise for ε {}", "local": "each site its own noise for ε {}"}
_OWN_LABELS = {Kind.LOCAL: "This site alone", Kind.TEACHER: "Its teacher"}


@dataclass(frozen=True, kw_only=True)
class Standing:
    """One line of a comparison.

    Attributes:
        method: Its name in ``results.json``.
        site: Whose it is, where each site has its own.
        kind: What sort of a method it is.
        label: What people call it.
        scores: The rates, their ``interval`` and ``n``, on the test patients that are compared.
    """

    method: str
    site: str | None
    kind: Kind
    label: str
    scores: Mapping[str, Any]

    @property
    def is_winner_to_be(self) -> bool:
        """Whether this is the method that the run is about: the federated student."""
        return self.kind is Kind.FEDERATED and _is_main(self.method)


def standings(track: Mapping[str, Any], test: str | None = None) -> tuple[Standing, ...]:
    """Return the methods of a track of ``results.json``, in the order of comparison.

    Args:
        track: One of the content's ``tracks``.
        test: None for the union test, or ``NEW_PUBLICATIONS``; methods not judged on it are left out.
    """
    found = [standing for standing in _all(track["methods"], test) if standing.scores]
    return tuple(sorted(found, key=_place))


def charted(found: tuple[Standing, ...]) -> tuple[Standing, ...]:
    """Return what a first picture shows: of the teachers, and of what else each site has, the mean only."""
    means = {standing.method for standing in found if standing.method.endswith(MEAN)}
    return tuple(
        standing
        for standing in found
        if standing.site is None or standing.kind is Kind.LOCAL or f"{standing.method}{MEAN}" not in means
    )


def own_answers(track: Mapping[str, Any]) -> dict[str, tuple[Standing, ...]]:
    """Return for each site the methods on the patients whose answer that site has training patients for.

    Of the methods that each site runs by itself, a site is shown its own alone.
    """
    by_site: dict[str, list[Standing]] = {}
    for standing in standings(track):
        entry = track["methods"][standing.method]
        result = entry if standing.site is None else entry[standing.site]
        for site, scores in result.get(OWN_ANSWERS, {}).items():
            if standing.site in (None, site):
                by_site.setdefault(site, []).append(replace(standing, scores=scores))
    return {site: tuple(found) for site, found in by_site.items()}


def own_label(standing: Standing) -> str:
    """Return what a method is called where a site reads its own figures."""
    if standing.site is None:
        return standing.label
    return _OWN_LABELS.get(standing.kind, f"{standing.label}, its own")


def first_of(kind: Kind, found: tuple[Standing, ...]) -> Standing | None:
    """Return the main method of a kind: the one trained with ORPO, where there are several."""
    return next((standing for standing in found if standing.kind is kind), None)


def headline(track: Mapping[str, Any]) -> str:
    """Return in one sentence what people want to know first; empty where no federated student was judged."""
    found = standings(track)
    federated = _top1_in_hundred(first_of(Kind.FEDERATED, found))
    alone = _top1_in_hundred(first_of(Kind.LOCAL_MEAN, found))
    pooled = _top1_in_hundred(first_of(Kind.POOLED, found))
    if federated is None:
        return ""
    units = track.get("n_test_units", track["n_test"])
    cases = f"{track.get('unit', 'patient')}s" if units == track["n_test"] else "tiles"
    sentence = f"The federated student names the right answer first for {federated} of 100 test {cases}"
    if alone is not None:
        sentence += f"; a site that trains alone reaches {alone} on average"
    if pooled is not None:
        sentence += f"; with all data in one place it would be {pooled}"
    return f"{sentence}."


def percent(rate: float | None) -> str:
    """Return a rate as people read it: ``71.2 %``; a dash where it was not measured."""
    return "–" if rate is None else f"{100 * rate:.1f} %"


def percent_interval(ends: Sequence[float] | None) -> str:
    """Return an interval as people read it: ``68.9–73.4``; empty where there is none."""
    return "" if ends is None else f"{100 * ends[0]:.1f}–{100 * ends[1]:.1f}"


def points(share: float) -> str:
    """Return a difference of two rates in percentage points as people read it: ``+13.2``."""
    return f"{100 * share:+.1f}".replace("-", "\N{MINUS SIGN}")


def method_label(method: str, site: str | None = None) -> str:
    """Return what people call a method of ``results.json``."""
    if method in _NAMED:
        return _NAMED[method][1]
    kind = _kind(method)
    if kind is Kind.OTHER:
        words, suffix = _words(method.removesuffix(MEAN)), ""
        label = words[:1].upper() + words[1:]
    else:
        label = "Teachers" if kind is Kind.TEACHER and site is None else _LABELS[kind].format(site=site)
        suffix = _suffix(method.removesuffix(MEAN).partition("_")[2].removeprefix(MAIN_LEARNING).strip("_"))
    if method.endswith(MEAN) and kind is not Kind.LOCAL_MEAN:
        label += ", mean"
    return f"{label}, {suffix}" if suffix else label


def calibration_of(method: str) -> tuple[str, str] | None:
    """Return the method that was calibrated and how, of the name of a calibrated one."""
    found = [how for how in CALIBRATIONS if method.endswith(f"_{how}")]
    return (method.removesuffix(f"_{found[0]}"), found[0]) if found else None


def epsilon_of(method: str) -> float | None:
    """Return the epsilon that a method's name promises; None where it promises none."""
    found = _EPSILON.search(method)
    return None if found is None else float(found[2].replace("-", "."))


def _suffix(name: str) -> str:
    """Return in words how a student differs from the main one of its kind."""
    noise = _EPSILON.fullmatch(name)
    if noise is not None:
        return _NOISE[noise[1]].format(noise[2].replace("-", "."))
    whole = calibration_of(f"_{name}")
    if whole is None:
        return _words(name)
    before = _suffix(whole[0].strip("_"))
    return f"{before}, {_SUFFIXES[whole[1]]}" if before else _SUFFIXES[whole[1]]


def _all(methods: Mapping[str, Any], test: str | None) -> Iterator[Standing]:
    for name, entry in methods.items():
        by_site = {None: entry} if _is_one_result(entry) else entry
        for site, result in by_site.items():
            yield Standing(
                method=name,
                site=site,
                kind=_kind(name),
                label=method_label(name, site),
                scores=result if test is None else result.get(test, {}),
            )


def _is_one_result(entry: Mapping[str, Any]) -> bool:
    # A site may be called top1, yet its entry is then an object and no number.
    return "top1" in entry and not isinstance(entry["top1"], Mapping)


def _kind(method: str) -> Kind:
    if method in _NAMED:
        return _NAMED[method][0]
    first = method.partition("_")[0]
    if first == Kind.LOCAL:
        return Kind.LOCAL_MEAN if method.endswith(MEAN) else Kind.LOCAL
    return Kind(first) if first in _LABELS else Kind.OTHER


def _place(standing: Standing) -> tuple[int, int, float, str, bool]:
    """Sort by kind, ORPO first, a mean after its sites; sites stay in their order."""
    method = standing.method.removesuffix(MEAN)
    return (_KINDS.index(standing.kind), *_variant(method), method, standing.site is None)


def _variant(method: str) -> tuple[int, float]:
    """Sort the methods of a kind: the main one, its other losses, calibrated, private, others."""
    if method in _NAMED:
        return (0, list(_NAMED).index(method))
    calibrated, epsilon = calibration_of(method), epsilon_of(method)
    if calibrated is not None:
        return (2, CALIBRATIONS.index(calibrated[1]))
    if epsilon is not None:
        return (3, -epsilon)
    if _is_main(method):
        return (0, 0.0)
    return (1 if method.count("_") == 1 else 4, 0.0)


def _is_main(method: str) -> bool:
    return method.partition("_")[2] in ("", MAIN_LEARNING)


def _words(name: str) -> str:
    return " ".join(word.upper() if word in _ACRONYMS else word for word in name.split("_"))


def _top1_in_hundred(standing: Standing | None) -> int | None:
    if standing is None or standing.scores["top1"] is None:
        return None
    return round(100 * standing.scores["top1"])
