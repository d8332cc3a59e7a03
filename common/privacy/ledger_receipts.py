"""What the coordinators have seen of a ledger: signed heads, in a file beside it.

A cut tail and a restored backup are whole chains too; only who saw a later head can tell. So a coordinator
signs the head that a site shows it, keeps it, and the site keeps the signature beside the ledger. Who
restores both files from one backup is found out by the coordinator's own copy alone: it goes back to the site
at the start of a run, and `Ledger.accept` refuses it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.atomic import write_atomically
from common.canonical import canonical_json, labeled_digest, read_object
from common.checks import require, require_digest, require_line, require_schema
from common.errors import BadFileError, SettingsError, UnsupportedSchemaError
from common.ids import SiteId, site_id
from common.pki import SIGNATURE_SIZE, Identity, PublicIdentity
from common.schema import build

RECEIPTS_SCHEMA = 1
RECEIPT_LABEL = "consilium ledger v1 receipt"


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """A coordinator's word that a site's ledger had this head.

    Attributes:
        site_id: The site whose ledger it is; the caller checks that it is his own.
        consortium: For which the coordinator spoke.
        head: Digest of the last entry that it saw, 64 hexadecimal digits.
        signature: The coordinator's, 64 bytes.
    """

    site_id: SiteId
    consortium: str
    head: str
    signature: bytes

    def __post_init__(self) -> None:
        site_id(self.site_id)
        require_line("consortium", self.consortium)
        require_digest("head", self.head)
        size = len(self.signature)
        require(size == SIGNATURE_SIZE, "signature", f"{size} bytes", f"{SIGNATURE_SIZE} bytes")

    def verify(self, coordinator: PublicIdentity) -> None:
        """BadSignatureError unless this coordinator signed it."""
        statement = _statement(self.site_id, self.consortium, self.head)
        coordinator.verify(statement, self.signature, f"receipt for {self.site_id}'s ledger")


@dataclass(frozen=True, kw_only=True)
class KeptReceipt:
    """A receipt and who signed it."""

    receipt: Receipt
    coordinator: PublicIdentity

    @property
    def signer(self) -> tuple[SiteId, str]:
        """Whose latest receipt is kept: the coordinator and the consortium."""
        return self.coordinator.site_id, self.receipt.consortium


@dataclass(frozen=True, kw_only=True)
class _Line:
    """A kept receipt as JSON holds it, bytes in hexadecimal."""

    coordinator: SiteId
    key: str
    site_id: SiteId
    consortium: str
    head: str
    signature: str


def countersign(identity: Identity, site_id: SiteId, consortium: str, head: str) -> Receipt:
    """The receipt of the coordinator with this identity for the head of a site's ledger."""
    signature = identity.sign(_statement(site_id, consortium, head))
    return Receipt(site_id=site_id, consortium=consortium, head=head, signature=signature)


def receipts_path(ledger: Path) -> Path:
    """Where the receipts for a ledger are."""
    return ledger.with_name(f"{ledger.name}.receipts.json")


def write_receipts(path: Path, cohort: str, kept: Sequence[KeptReceipt]) -> None:
    """Put the receipts at ``path``; file and folder are on the disk when this returns."""
    lines = [_line(one) for one in sorted(kept, key=lambda one: one.signer)]
    content = {"schema": RECEIPTS_SCHEMA, "cohort": cohort, "receipts": lines}
    write_atomically(path, canonical_json(content) + "\n", private=True)
    sync_folder(path.parent)


def read_receipts(path: Path, cohort: str) -> tuple[KeptReceipt, ...]:
    """The receipts at ``path``, whose signatures are verified.

    Raises:
        BadFileError: The file is gone, or holds no receipts for this cohort.
        BadSignatureError: A receipt was changed.
        UnsupportedSchemaError: A newer version wrote it.
    """
    try:
        content = read_object(path.read_text(encoding="utf-8"), "receipts")
        require_schema("receipts", content.get("schema"), RECEIPTS_SCHEMA)
        if set(content) != {"schema", "cohort", "receipts"} or content["cohort"] != cohort:
            raise BadFileError(path, f"expected receipts for cohort {cohort}, nothing else")
        kept = tuple(_kept(line) for line in _list(content["receipts"]))
    except UnsupportedSchemaError as error:
        raise error.at(path) from error
    except FileNotFoundError as error:
        reason = "the receipts of this ledger are gone; restore them from a backup, an older one will do"
        raise BadFileError(path, reason) from error
    except (OSError, ValueError, SettingsError) as error:
        raise BadFileError(path, f"not readable as receipts: {error}") from error
    for one in kept:
        one.receipt.verify(one.coordinator)
    return kept


def sync_folder(folder: Path) -> None:
    """Have a folder's names on the disk: a new file is as durable as the folder that names it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _statement(site: SiteId, consortium: str, head: str) -> bytes:
    return labeled_digest(RECEIPT_LABEL, site.encode(), consortium.encode(), head.encode())


def _line(kept: KeptReceipt) -> _Line:
    receipt, coordinator = kept.receipt, kept.coordinator
    return _Line(
        coordinator=coordinator.site_id,
        key=coordinator.key.hex(),
        site_id=receipt.site_id,
        consortium=receipt.consortium,
        head=receipt.head,
        signature=receipt.signature.hex(),
    )


def _kept(content: Any) -> KeptReceipt:
    line = build(_Line, content, "receipt")
    receipt = Receipt(
        site_id=line.site_id,
        consortium=line.consortium,
        head=line.head,
        signature=bytes.fromhex(line.signature),
    )
    coordinator = PublicIdentity(site_id=line.coordinator, key=bytes.fromhex(line.key))
    return KeptReceipt(receipt=receipt, coordinator=coordinator)


def _list(content: Any) -> list[Any]:
    require(isinstance(content, list), "receipts", type(content).__name__, "a list")
    return list(content)
