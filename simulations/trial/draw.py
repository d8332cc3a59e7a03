"""What hospitals and their coordinator bring along to a trial by hand (``deploy/README.md``), in one folder.

    python -m simulations.trial.draw FOLDER

    FOLDER/sources/SITE         a hospital's patients, as its own people would export them
    FOLDER/models/NAME          frozen models: a base a track, photo_encoder, slide_encoder, note_encoder
    FOLDER/plan.json            the plan with its answers
    FOLDER/TRACK.safetensors    the adapter that a track starts from

The patients are drawn and the models are tiny ones: what counts is that everything runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.errors import FederationError, one_line
from common.offline import stay_offline
from simulations.trial.hospitals import Hospitals, make_hospitals

OK, UNUSABLE = 0, 1


def main(argv: Sequence[str] | None = None) -> int:
    """Draw everything and return the exit status; SystemExit for help and for usage errors."""
    stay_offline()
    parser = argparse.ArgumentParser(prog="python -m simulations.trial.draw", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder, or an empty one")
    parser.add_argument(
        "--consortium", default="trial", metavar="NAME", help="the plan's (default: %(default)s)"
    )
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="of the scenario trial")
    arguments = parser.parse_args(argv)
    folder: Path = arguments.folder
    if folder.exists() and any(folder.iterdir()):
        parser.error(f"{folder} is not empty")
    try:
        hospitals = make_hospitals(folder, overrides=arguments.overrides, consortium=arguments.consortium)
        link_models(models_of(hospitals), folder / "models")
    except (OSError, FederationError) as error:
        print(f"draw: {one_line(str(error))}", file=sys.stderr)  # noqa: T201
        return UNUSABLE
    for site, source in hospitals.sources.items():
        print(f"{site:<14}{source}")  # noqa: T201
    print(f"{'plan':<14}{hospitals.package}, digest {hospitals.plan.digest()}")  # noqa: T201
    return OK


def models_of(hospitals: Hospitals) -> Mapping[str, Path]:
    """The frozen models by the name that they get."""
    return {
        **hospitals.bases,
        "photo_encoder": hospitals.photo_encoder,
        "slide_encoder": hospitals.slide_encoder,
        "note_encoder": hospitals.note_encoder,
    }


def link_models(models: Mapping[str, Path], folder: Path) -> None:
    """Give each model a short name: they lie in a cache, under names that tell nothing."""
    folder.mkdir(parents=True)
    for name, place in models.items():
        (folder / name).symlink_to(place.resolve(), target_is_directory=True)


if __name__ == "__main__":
    sys.exit(main())
