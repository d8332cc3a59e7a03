"""`consilium-site index build | show | search`: public knowledge in one file, and what fits a note."""

from __future__ import annotations

import argparse
from pathlib import Path

from client.terminal import OK, Command, add_json, say, say_json, say_table
from common.errors import BadFileError

INDEX_COMMAND_SCHEMA = 1
DEFAULT_HITS = 10

_DESCRIPTION = """\
An index of public knowledge: one document for each disease and each gene of the Human Phenotype Ontology's
annotations. `build` makes it, once; its digest tells whether two sites have the same. `show` says what is in
it. `search` finds documents for a note, which stays on this machine and is written nowhere. `predict
--method` answers notes with it.

Uses the Human Phenotype Ontology, in the releases that `show` names (Gargano et al., Nucleic Acids Research
52, D1333, 2024)."""


def _add(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="build|show|search")
    build = actions.add_parser("build", help="make the index from the ontology's tidied files")
    build.add_argument(
        "--hpo",
        type=Path,
        required=True,
        metavar="DIR",
        help="folder with hp_terms.jsonl.gz and disease_annotations.jsonl.gz",
    )
    build.add_argument(
        "--output", type=Path, required=True, metavar="FILE", help="the index; an older file is replaced"
    )
    show = actions.add_parser("show", help="what is in an index")
    search = actions.add_parser("search", help="the documents that fit a note best")
    for one in (show, search):
        one.add_argument("file", type=Path, metavar="FILE", help="the index")
        add_json(one)
    search.add_argument("--note", type=Path, required=True, metavar="FILE", help="the note, as plain text")
    search.add_argument("--kind", choices=("disease", "gene"), help="search only these (default: both)")
    search.add_argument(
        "--top",
        type=int,
        choices=range(1, 101),
        default=DEFAULT_HITS,
        metavar="N",
        help="documents, 1 to 100 (default: %(default)s)",
    )


def _check(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.action == "build":
        if not arguments.hpo.is_dir():
            parser.error(f"no folder {arguments.hpo}")
        if arguments.output.is_dir() or not arguments.output.absolute().parent.is_dir():
            parser.error(f"the output {arguments.output} is a folder, or lies in none")
        return
    for file in [arguments.file, *([arguments.note] if arguments.action == "search" else [])]:
        if not file.is_file():
            parser.error(f"no file {file}")


def _run(arguments: argparse.Namespace) -> int:
    {"build": _build, "show": _show, "search": _search}[arguments.action](arguments)
    return OK


def _build(arguments: argparse.Namespace) -> None:
    from client.retrieval.hpo import from_hpo

    index = from_hpo(arguments.hpo)
    index.save(arguments.output)
    say("index", arguments.output)
    say("documents", f"{len(index.of_kind('disease'))} diseases, {len(index.of_kind('gene'))} genes")
    say("digest", index.digest())


def _show(arguments: argparse.Namespace) -> None:
    from client.retrieval.index import OntologyIndex

    index = OntologyIndex.load(arguments.file)
    diseases, genes = len(index.of_kind("disease")), len(index.of_kind("gene"))
    if arguments.json:
        content = {"diseases": diseases, "genes": genes, "sources": index.sources, "digest": index.digest()}
        say_json(INDEX_COMMAND_SCHEMA, content)
        return
    say("documents", f"{diseases} diseases, {genes} genes")
    say("digest", index.digest())
    for source in index.sources:
        say("source", source)


def _search(arguments: argparse.Namespace) -> None:
    # The search stands on numerical libraries, which no other command has to wait for.
    from client.retrieval.index import OntologyIndex
    from client.retrieval.retrievers import Bm25Retriever

    try:
        note = arguments.note.read_text(encoding="utf-8").strip()
    except UnicodeDecodeError:
        raise BadFileError(arguments.note, "expected plain text in UTF-8") from None
    if not note:
        raise BadFileError(arguments.note, "expected a note, got an empty file")
    hits = Bm25Retriever(OntologyIndex.load(arguments.file)).search(note, arguments.top, arguments.kind)
    found = [(round(hit.score, 3), hit.document) for hit in hits]
    if arguments.json:
        rows = [{"score": score, "kind": d.kind, "id": d.id, "title": d.title} for score, d in found]
        say_json(INDEX_COMMAND_SCHEMA, {"documents": rows})
        return
    say_table(
        f"{len(found)} documents",
        ("score", "kind", "id", "title"),
        [(s, d.kind, d.id, d.title) for s, d in found],
    )


INDEX_COMMAND = Command(
    name="index",
    brief="make, show and search the index of public knowledge",
    description=_DESCRIPTION,
    add=_add,
    check=_check,
    run=_run,
)
