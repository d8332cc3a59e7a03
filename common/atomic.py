"""A file is there whole or not at all.

It is written beside its place under a name of its own, flushed to the disk, and moved over the old file in
one step of the file system. A reader, or a crash, meets the old file or the new one, never a half.
"""

import os
import secrets
from pathlib import Path

PRIVATE_MODE = 0o600
PUBLIC_MODE = 0o666  # less what the user's umask takes away


def write_atomically(path: Path, content: str | bytes, *, private: bool = False) -> None:
    """Put bytes, or text as UTF-8, at ``path``; ``private`` leaves the file readable by its owner only.

    Guarantee: after an error the old file is untouched and no other file is left behind.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    data = content.encode() if isinstance(content, str) else content
    try:
        mode = PRIVATE_MODE if private else PUBLIC_MODE
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
