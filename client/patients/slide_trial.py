"""A slide in DICOM is read in a process of its own first.

The library that OpenSlide reads DICOM with (libdicom, as of OpenSlide 4.0.1) crashes on some damaged files:
of 400 with a few bytes changed about one took the process with it, of 1,000 such TIFF files none. A site that
imports a thousand patients must not end at one bad file, nor in the middle of a training.
"""

import os
import subprocess
import sys
from pathlib import Path

TRIAL_TIMEOUT_S = 600
MAGIC = b"DICM"
MAGIC_PLACE = 128

_TRIAL = """
import os, sys
from pathlib import Path
from client.patients.slides import Tiling, try_tiles
path, microns_per_pixel, size, least_tissue, most_tiles = sys.stdin.buffer.read().split(b"\\0")
try_tiles(
    Path(os.fsdecode(path)),
    Tiling(
        microns_per_pixel=float(microns_per_pixel),
        size=int(size),
        least_tissue=float(least_tissue),
        most_tiles=int(most_tiles),
    ),
)
"""


def needs_trial(path: Path) -> bool:
    """Whether the file is DICOM; OSError if it cannot be read."""
    with path.open("rb") as file:
        return file.read(MAGIC_PLACE + len(MAGIC))[MAGIC_PLACE:] == MAGIC


def survives(path: Path, settings: tuple[float, ...]) -> bool:
    """Whether a process that cuts the slide and reads every tile comes to its end.

    Args:
        path: The slide.
        settings: The fields of a `Tiling`, in its order.
    """
    # The child finds the modules where this process did, wherever it was started.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    # Not as arguments, which every user of the machine may list: a path may hold a name.
    question = b"\0".join([os.fsencode(path), *(str(value).encode() for value in settings)])
    try:
        # What the library says of the file stays out of logs.
        run = subprocess.run(  # nothing of the file is in the command
            [sys.executable, "-c", _TRIAL],
            input=question,
            env=environment,
            timeout=TRIAL_TIMEOUT_S,
            capture_output=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return False
    return run.returncode == 0
