"""Messages as Flower records, and back.

Arrays go into an ``ArrayRecord``, which Flower sends in chunks and does not resend where a chunk has not
changed, so that a frozen block travels once. The head goes into a ``ConfigRecord`` as one JSON string.
Importing this module first also keeps Flower quiet: whoever imports it before anything else of Flower
has a process that reports to nobody.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# Read by Flower while it is imported, hence above its import. A process that Flower itself starts has read
# them before it comes here: the deployment sets them too.
QUIET: Mapping[str, str] = MappingProxyType({"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"})
os.environ.update(QUIET)

import numpy as np  # noqa: E402
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict  # noqa: E402
from numpy.typing import NDArray  # noqa: E402

from common.canonical import canonical_json, read_object  # noqa: E402
from common.errors import BadMessageError  # noqa: E402
from common.ids import RunId, SiteId, run_id, site_id  # noqa: E402
from common.messages import Message  # noqa: E402
from common.wire import MAX_HEAD, Flattened, from_parts, to_parts  # noqa: E402

# The last events of a process that Flower started are still to come; this stops them.
if (telemetry := sys.modules.get("flwr.supercore.telemetry")) is not None:
    telemetry.FLWR_TELEMETRY_ENABLED = "0"  # type: ignore[attr-defined]

HEAD_RECORD = "head"
HEAD_KEY = "json"
ARRAYS_RECORD = "arrays"
SITE_RECORD = "site"
SITE_KEY = "site_id"

# What numpy.save writes for one axis (NEP 1): magic, length of the rest of the header, the rest.
_NPY_START = 10
_NPY_HEADER = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>..)"
    rb"\{'descr': '(?P<dtype><[fu]4)', 'fortran_order': False, 'shape': \((?P<count>[0-9]{1,18}),\), \} *\n",
    re.DOTALL,
)

# The key of a node's configuration that holds the site's name: --node-config 'site="hospital-1"'.
NODE_CONFIG_SITE = "site"


class Recorder:
    """Makes the records of one exchange; an adapter that goes to many sites becomes Flower's arrays once."""

    def __init__(self) -> None:
        self._flattened: Flattened = {}
        # The values are kept beside their array, so that nothing else can take their identity.
        self._arrays: dict[int, tuple[NDArray[Any], Array]] = {}

    def record(self, message: Message) -> RecordDict:
        """The record that carries ``message``."""
        head, arrays = to_parts(message, self._flattened)
        for values in arrays.values():
            if id(values) not in self._arrays:
                self._arrays[id(values)] = (values, Array(values))
        return RecordDict(
            {
                HEAD_RECORD: ConfigRecord({HEAD_KEY: canonical_json(head)}),
                ARRAYS_RECORD: ArrayRecord(
                    {name: self._arrays[id(values)][1] for name, values in arrays.items()}
                ),
            }
        )


def to_record(message: Message) -> RecordDict:
    """The record that carries ``message``."""
    return Recorder().record(message)


def from_record(record: RecordDict) -> Message:
    """The message of a record. BadMessageError, UnsupportedSchemaError."""
    if set(record) != {HEAD_RECORD, ARRAYS_RECORD}:
        raise BadMessageError(f"expected the records {HEAD_RECORD}, {ARRAYS_RECORD}, got {sorted(record)}")
    head, arrays = record[HEAD_RECORD], record[ARRAYS_RECORD]
    if not isinstance(head, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise BadMessageError("expected a ConfigRecord as head and an ArrayRecord as arrays")
    text = head.get(HEAD_KEY)
    if len(head) != 1 or not isinstance(text, str):
        raise BadMessageError(f"expected a head of one string, {HEAD_KEY}")
    return from_parts(_read_head(text), {name: _read_array(name, array) for name, array in arrays.items()})


def site_record(site: SiteId) -> RecordDict:
    """A node's answer to the question which site it is."""
    return RecordDict({SITE_RECORD: ConfigRecord({SITE_KEY: site})})


def site_of_record(record: RecordDict) -> SiteId:
    """The site of such an answer. BadMessageError."""
    named = record.get(SITE_RECORD)
    text = named.get(SITE_KEY) if isinstance(named, ConfigRecord) else None
    if not isinstance(text, str):
        raise BadMessageError("expected a site's name")
    try:
        return site_id(text)
    except ValueError as error:
        raise BadMessageError(str(error)) from error


def run_name(flower_run_id: int) -> RunId:
    """Our name of a run of Flower's."""
    return run_id(f"run-{flower_run_id}")


def _read_head(text: str) -> dict[str, Any]:
    # Here too: what JSON grows into must not depend on what a stranger sends.
    if len(text) > MAX_HEAD:
        raise BadMessageError(f"head: expected at most {MAX_HEAD} characters, got {len(text)}")
    try:
        return read_object(text, "head")
    except (ValueError, RecursionError) as error:
        raise BadMessageError(f"head: expected a JSON object ({type(error).__name__})") from error


def _read_array(name: str, array: Array) -> NDArray[Any]:
    """The values of a one-axis array, without a copy.

    NumPy's own reader is not made for what a stranger sends: it evaluates the header as Python text, opens
    zip files, and allocates whatever size the header claims.
    """
    header = _NPY_HEADER.match(array.data)
    if header is None or header.end() != _NPY_START + int.from_bytes(header["length"], "little"):
        raise BadMessageError(f"array {name}: expected the npy format 1.0 with one axis")
    dtype = np.dtype(header["dtype"].decode())
    if int(header["count"]) * dtype.itemsize != len(array.data) - header.end():
        raise BadMessageError(f"array {name}: expected {int(header['count'])} values")
    return np.frombuffer(array.data, dtype=dtype, offset=header.end())
