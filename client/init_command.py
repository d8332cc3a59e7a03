"""`consilium-site init`: a new home, with settings that explain themselves, keys, and an empty ledger."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from client.home import PRIVATE_FOLDER, SiteHome
from client.keys import Keyring
from client.settings import DEFAULTS, SETTINGS_SCHEMA, SiteSettings
from client.terminal import OK, Command, add_home, say
from common.atomic import write_atomically
from common.errors import HomeInUseError, SettingsError
from common.ids import SiteId, site_id
from common.privacy.ledger import Ledger
from common.settings import load_settings, read_yaml

TEMPLATE = Path(__file__).parent / "conf" / "new_site.yaml"
DEFAULT_COHORT = "patients"
_GIVEN = "@given@"
# Any of them makes a folder somebody's home.
_PARTS = ("site.yaml", "keyring.json", "cohorts", "consortia")

_INIT = """\
Make a new home for this site: its settings (HOME/site.yaml, with every key explained), its keys, and an
empty ledger of what was taken from its patients. Only you can enter the folder. It is made once: a home that
is there already is left as it is."""


def _add_init(parser: argparse.ArgumentParser) -> None:
    add_home(parser, consortium=False)
    parser.add_argument(
        "--site", type=_site, required=True, metavar="NAME", help="lower-case letters, digits and hyphens"
    )
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="folder of the patients")
    parser.add_argument(
        "--cohort", default=DEFAULT_COHORT, metavar="NAME", help="names its patients (default: %(default)s)"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="another setting, such as approvals_needed=2 or models.bases.rare_disease=/srv/base; "
        "may be given several times",
    )


def _check_init(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if not arguments.data.is_dir():
        parser.error(f"no folder {arguments.data}")


def _init(arguments: argparse.Namespace) -> int:
    home = SiteHome(arguments.home.absolute())
    given = {
        "schema": SETTINGS_SCHEMA,
        "site": arguments.site,
        "cohort": arguments.cohort,
        "data": str(arguments.data.resolve()),
        **_given(arguments.set),
    }
    settings = load_settings(SiteSettings, read_yaml(DEFAULTS), given, where="site")
    make_home(home, settings, given)
    for label, value in (
        ("site", settings.site),
        ("home", home.root),
        ("settings", home.settings_file),
        ("ledger", home.ledger_file(settings.cohort)),
        ("master key", settings.master_key),
        ("next", f"read {home.settings_file} and set what this site needs"),
        ("", f"consilium-site check-data {settings.data}"),
        ("", f"consilium-site enrol INVITATION --home {home.root}, with the coordinator's invitation"),
        ("keep safe", "a copy of the master key, apart from copies of the home"),
    ):
        say(label, value)
    return OK


def make_home(home: SiteHome, settings: SiteSettings, given: Mapping[str, Any]) -> None:
    """Make what a new home holds; ``given`` are the settings that are not defaults.

    Guarantee: after an error nothing of the home is left, and an older home is untouched.

    Raises:
        HomeInUseError: A home, or a part of one, is there.
        BadFileError: The cohort has a name that cannot be a folder's.
        UnsafeKeyError: The master key cannot be used.
    """
    for part in _PARTS:
        if (home.root / part).exists():
            raise HomeInUseError(home.root, part)
    ledger = home.ledger_file(settings.cohort)
    home.root.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
    home.root.chmod(PRIVATE_FOLDER)
    try:
        Keyring.create(home, settings).close()
        ledger.parent.mkdir(mode=PRIVATE_FOLDER, parents=True)
        Ledger.create(ledger, settings.cohort).close()
        # Last: a folder with settings is a home.
        write_atomically(home.settings_file, settings_text(given), private=True)
    except BaseException:
        shutil.rmtree(home.root / "cohorts", ignore_errors=True)
        home.keyring_file.unlink(missing_ok=True)
        raise


def settings_text(given: Mapping[str, Any]) -> str:
    """A new home's ``site.yaml``: what was given, and every other key with its meaning and default."""
    chosen = OmegaConf.to_yaml(OmegaConf.create(dict(given)))
    return TEMPLATE.read_text(encoding="utf-8").replace(_GIVEN, chosen)


def _given(texts: list[str]) -> dict[str, Any]:
    for text in texts:
        if not text.partition("=")[1]:
            raise SettingsError("--set", repr(text), "KEY=VALUE")
    try:
        found = OmegaConf.to_container(OmegaConf.from_dotlist(texts))
    except (OmegaConfBaseException, YAMLError) as error:
        raise SettingsError("--set", str(error).partition("\n")[0], "KEY=VALUE") from error
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _site(text: str) -> SiteId:
    try:
        return site_id(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


INIT_COMMAND = Command(
    name="init",
    brief="make a new home for this site",
    description=_INIT,
    add=_add_init,
    check=_check_init,
    run=_init,
)
