"""Coverage-guided bytes for ``common.wire.from_bytes``: ``python -m tests.fuzzing.wire -max_total_time=300``.

Half of the inputs get the digest that fits them, as an attacker would write it, so that what lies behind the
digest is reached. libFuzzer's own options apply; ``make soak`` sets time, length and the limit for a hang.
"""

import sys
import tracemalloc
from hashlib import sha256

import atheris

with atheris.instrument_imports(include=["common"]):
    from common.errors import BadMessageError, UnsupportedSchemaError
    from common.wire import DECODING_BYTES, from_bytes, to_bytes


def decode(data: bytes) -> None:
    """One input: a message that comes back the same, or one of two errors, in bounded memory."""
    forged = data[:1] < b"\x80"
    body = data[1:]
    message = body + sha256(body).digest() if forged else body
    tracemalloc.reset_peak()
    before = tracemalloc.get_traced_memory()[0]
    try:
        parsed = from_bytes(message)
    except (BadMessageError, UnsupportedSchemaError):
        parsed = None
    used = tracemalloc.get_traced_memory()[1] - before
    assert used <= DECODING_BYTES + len(message), f"{used} bytes for {len(message)}"
    if parsed is not None:
        assert to_bytes(parsed) == message, "one message, two spellings"


if __name__ == "__main__":
    tracemalloc.start()
    atheris.Setup(sys.argv, decode)
    atheris.Fuzz()
