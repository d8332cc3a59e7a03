"""`consilium-site rotate-keys`: new keys for what the site keeps, without losing any of it.

Every step leaves files that open: an interrupted command is run once more and finishes what it began.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from client.home import SiteHome
from client.keys import Keyring, make_master_key
from client.session_store import sealed_sessions
from client.settings import SiteSettings, read_settings
from client.terminal import OK, Command, say
from common.daemon_lock import holder
from common.durable import sync_folder
from common.errors import KeysInUseError, UnsafeKeyError
from common.master_key import create_master_key, key_file, next_file, open_master_key

DESCRIPTION = """\
Change the keys that protect what this site keeps on its disk. The daemon has to be stopped meanwhile.

--data makes a new data key and encrypts pairs and secure sums anew. --master changes the key that wraps the
data key: a master key in a file is replaced by a new one; where the settings name another place than before
(another file, env:NAME, command:PROGRAM), --from says where it was. Keep no copy of an old master key longer
than the backups that need it. An interrupted command is simply run again."""


def add_rotate_keys(parser: argparse.ArgumentParser) -> None:
    """The command's arguments."""
    parser.add_argument("--home", type=Path, required=True, metavar="DIR", help="this site's home folder")
    parser.add_argument("--master", action="store_true", help="change the master key")
    parser.add_argument("--data", action="store_true", help="change the data key")
    parser.add_argument(
        "--from",
        dest="origin",
        metavar="PLACE",
        help="with --master: where the master key was before, as file:PATH, env:NAME or command:PROGRAM",
    )


def check_rotate_keys(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    """Refuse what makes no sense together."""
    if not (arguments.master or arguments.data):
        parser.error("expected --master, --data or both")
    if arguments.origin is not None and not arguments.master:
        parser.error("expected --from together with --master")


def run_rotate_keys(arguments: argparse.Namespace) -> int:
    """Do it. FederationError or OSError if keys or files cannot be used; run again, it goes on from there."""
    home = SiteHome(arguments.home)
    settings = read_settings(home.settings_file)
    if arguments.master:
        say("master key", rotate_master(home, settings, arguments.origin))
    if arguments.data:
        say("data key", rotate_data(home, settings))
    return OK


def rotate_master(home: SiteHome, settings: SiteSettings, origin: str | None = None) -> str:
    """Wrap the data keys by another master key; only ``keyring.json`` changes, and the key's own file.

    Args:
        home: The site's.
        settings: They say where the master key is from now on.
        origin: Where it was, if that is another place. Without it a key in a file is replaced by a new one,
            and a command wraps anew, for an HSM that has changed its key.

    Returns:
        What was done, for people.

    Raises:
        FederationError: As `Keyring.open`.
        UnsafeKeyError: The new master key cannot be used, or there is nothing to change.
    """
    place = settings.master_key
    _require_stopped(home)
    with Keyring.open(home, settings, alone=True, master_key=origin) as keyring:
        if origin not in (None, place):
            keyring.save(make_master_key(place, home.root))
            return f"now in {place}; the one in {origin} is no longer needed"
        if place.startswith("env:"):
            raise UnsafeKeyError(place, "expected --from, with the place where the old master key is")
        if place.startswith("command:"):
            keyring.save(open_master_key(place, home.root))
            return "the data key was wrapped anew by the command"
        return _replace_file(keyring, key_file(place, home.root))


def rotate_data(home: SiteHome, settings: SiteSettings) -> str:
    """Make a new data key and encrypt all pairs and secure sums anew; finishes a rotation that was cut off.

    Guarantee: the old data key is dropped only when nothing needs it any more.

    Returns:
        What was done, for people.

    Raises:
        FederationError: As `Keyring.open`, or a file that is damaged; the old data key is kept then.
    """
    _require_stopped(home)
    with Keyring.open(home, settings, alone=True) as keyring:
        if len(keyring.numbers) == 1:
            keyring.add_key()
        pairs, sums = _rekey_all_pairs(home, keyring), _reseal_all(home, keyring)
        keyring.drop_old_keys()
        return f"number {keyring.current}; encrypted anew: {pairs} files of pairs, {sums} of secure sums"


def _require_stopped(home: SiteHome) -> None:
    """A daemon's worker opens the keys; between two workers nobody has them open."""
    for name in home.consortia():
        number = holder(home.consortium(name).daemon_lock)
        if number is not None:
            raise KeysInUseError(home.keyring_file, f"stop the daemon of {name} first, process {number}")


def _replace_file(keyring: Keyring, path: Path) -> str:
    """A new master key in the place of the old one, by way of a file beside it."""
    successor = next_file(path)
    done = f"the change of {path} that was interrupted is finished"
    if open_master_key(f"file:{path}", path.parent).name == keyring.master.name:
        # What a crash may have left there wraps nothing yet.
        successor.unlink(missing_ok=True)
        create_master_key(successor)
        keyring.save(open_master_key(f"file:{successor}", path.parent))
        done = f"a new one in {path}"
    successor.replace(path)
    sync_folder(path.parent)
    return done


def _rekey_all_pairs(home: SiteHome, keyring: Keyring) -> int:
    changed = 0
    for name in home.consortia():
        for path in sorted(home.consortium(name).pairs.glob("*.json")):
            changed += _rekey(path, keyring)
    return changed


def _rekey(path: Path, keyring: Keyring) -> bool:
    # Brings torch along, for which other commands would wait.
    from client.preferences.store import rekey_pairs

    old = keyring.key(min(keyring.numbers))
    changed = rekey_pairs(path, old_key=old, new_key=keyring.data_key)
    # On the disk before the old key goes.
    sync_folder(path.parent)
    return changed


def _reseal_all(home: SiteHome, keyring: Keyring) -> int:
    changed = 0
    for name in home.consortia():
        consortium = home.consortium(name)
        folders = sorted(consortium.sessions.iterdir()) if consortium.sessions.is_dir() else []
        for folder in folders:
            changed += sealed_sessions(consortium, folder.name, keyring).reseal()
    return changed


KEY_COMMANDS = (
    Command(
        name="rotate-keys",
        brief="change the keys that protect what this site keeps",
        description=DESCRIPTION,
        add=add_rotate_keys,
        run=run_rotate_keys,
        check=check_rotate_keys,
    ),
)
