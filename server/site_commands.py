"""`consilium-coordinator init | enrol | revoke`: the consortium, and who is in it."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from common.atomic import write_atomically
from common.audit import AuditLog
from common.certificates import fingerprint, in_groups, read_certificate
from common.enrolment_messages import write_invitation
from common.errors import BadFileError, HomeInUseError, SuperLinkError
from common.ids import SiteId, site_id
from common.settings import load_settings, read_yaml
from common.terminal import OK, REFUSED, Command, add_json, confirm, say, say_json
from server.arguments import add_home, home_of
from server.home import DEFAULTS, SETTINGS_SCHEMA, CoordinatorHome, HomeSettings
from server.invitations import make_coordinator, make_invitation, revoke_site
from server.listings import say_sites
from server.nodes import Nodes
from server.status import is_up, site_rows
from server.superlink import SuperLink

ENROL_SCHEMA = 1
_KEYS = {
    "bind": (str, "ADDRESS", "address that gateway and enrolment listen on"),
    "gateway_port": (int, "PORT", "where sites' nodes come in, over mutual TLS"),
    "enrolment_port": (int, "PORT", "where sites enrol and renew, over TLS"),
    "private_host": (
        str,
        "ADDRESS",
        "private address of Flower's own interfaces; never one that sites reach",
    ),
    "superlink_port": (int, "PORT", "theirs"),
    "health_port": (int, "PORT", "GET /health and GET /metrics, on the private address"),
    "certificate_days": (int, "DAYS", "life of a site's certificate"),
    "token_hours": (float, "HOURS", "life of an invitation"),
}

_INIT = """\
Make a coordinator's home: its settings (HOME/coordinator.yaml), its identity, and the consortium's own
certificate authority. Only you can enter the folder. Keep a copy of it where nobody else reads it: without
the authority's key no site can enrol or renew. It is made once: a home that is there already is left as it
is.

Read the fingerprints to the sites' administrators over another channel (the telephone, a letter)."""
_ENROL = """\
Invite a site: writes a file to hand to its administrator, over a channel that you both trust, since whoever
has the file first can enrol under the site's name. It is good once and for some hours; a new invitation makes
an older one useless. The site's administrator types: consilium-site enrol FILE. `up` has to run then.

--list shows the sites that have enrolled, and revoked ones."""
_REVOKE = """\
End a site's part at once: its certificates are refused, its node is taken out in the middle of whatever it
does, its open invitation is void. What it has contributed stays in the sums that were taken. It may enrol
again, with new keys, after a new invitation."""


def _add_init(parser: argparse.ArgumentParser) -> None:
    add_home(parser)
    parser.add_argument(
        "--consortium", required=True, metavar="NAME", help="lower-case letters, digits and hyphens"
    )
    parser.add_argument(
        "--host", required=True, metavar="NAME", help="name or address by which sites reach this machine"
    )
    defaults = read_yaml(DEFAULTS)
    for key, (kind, what, words) in _KEYS.items():
        parser.add_argument(
            f"--{key.replace('_', '-')}", type=kind, metavar=what, help=f"{words} (default: {defaults[key]})"
        )


def _init(arguments: argparse.Namespace) -> int:
    home = CoordinatorHome(arguments.home.absolute())
    given = {key: getattr(arguments, key) for key in _KEYS if getattr(arguments, key) is not None}
    given = {
        "schema": SETTINGS_SCHEMA,
        "consortium": arguments.consortium,
        "host": arguments.host,
        **given,
    }
    settings = load_settings(HomeSettings, read_yaml(DEFAULTS), given, where="coordinator")
    if home.settings_file.exists():
        raise HomeInUseError(home.root, home.settings_file.name)
    identity = make_coordinator(home, settings)
    for folder in (home.sites, home.identities, home.packages, home.runs, home.run, home.logs):
        folder.mkdir(mode=0o700, exist_ok=True)
    # Last: a home with settings is whole. A JSON value is a YAML value too.
    lines = [f"{key}: {json.dumps(value)}" for key, value in given.items()]
    write_atomically(
        home.settings_file, "# Every key: consilium-coordinator init --help\n" + "\n".join(lines) + "\n"
    )
    AuditLog(home.audit_file).append("made", consortium=settings.consortium, host=settings.host)
    say("consortium", settings.consortium)
    say("home", home.root)
    say("settings", home.settings_file)
    say("fingerprint", in_groups(identity.public().fingerprint()))
    say("authority", in_groups(fingerprint(read_certificate(home.authority / "ca.crt"))))
    say("next", "consilium-coordinator up, and for each site: consilium-coordinator enrol SITE")
    return OK


def _add_enrol(parser: argparse.ArgumentParser) -> None:
    add_home(parser)
    parser.add_argument("site", nargs="?", type=_site, metavar="SITE", help="the name that the site gets")
    parser.add_argument("--hours", type=float, metavar="H", help="life of the invitation")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="where to write it (default: SITE.invitation.json)"
    )
    parser.add_argument("--list", action="store_true", help="show the sites that have enrolled")
    add_json(parser)


def _check_enrol(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.list == (arguments.site is not None):
        parser.error("name a SITE, or give --list")
    if arguments.hours is not None and not arguments.hours > 0:
        parser.error(f"--hours: expected a number > 0, got {arguments.hours:g}")


def _enrol(arguments: argparse.Namespace) -> int:
    home = home_of(arguments)
    if arguments.list:
        return _list_sites(home, as_json=arguments.json)
    settings = home.settings()
    if arguments.hours is not None:
        settings = replace(settings, token_hours=arguments.hours)
    path: Path = arguments.out or Path(f"{arguments.site}.invitation.json")
    if path.exists():
        raise BadFileError(path, "is there already; name another file with --out")
    invitation = make_invitation(home, settings, arguments.site)
    write_invitation(invitation, path)
    AuditLog(home.audit_file).append("invited", site=arguments.site, expires=invitation.expires)
    authority = fingerprint(read_certificate(home.authority / "ca.crt"))
    if arguments.json:
        content = {"site": arguments.site, "file": str(path), "expires": invitation.expires}
        say_json(ENROL_SCHEMA, {**content, "authority": authority, "up": is_up(home)})
        return OK
    say("invitation", path)
    say("good until", invitation.expires)
    say("authority", in_groups(authority))
    say("next", f"hand the file to {arguments.site}; there: consilium-site enrol {path.name}")
    if not is_up(home):
        say("mind", "the enrolment service does not run; start it with: consilium-coordinator up")
    return OK


def _list_sites(home: CoordinatorHome, *, as_json: bool) -> int:
    rows = site_rows(home, datetime.now(UTC))
    if as_json:
        say_json(ENROL_SCHEMA, {"sites": rows})
    else:
        say_sites(rows)
    return OK


def _add_revoke(parser: argparse.ArgumentParser) -> None:
    add_home(parser)
    parser.add_argument("site", type=_site, metavar="SITE")
    parser.add_argument(
        "--reason", required=True, metavar="TEXT", help="for the audit log; nothing of patients"
    )
    parser.add_argument("--yes", action="store_true", help="do not ask")


def _revoke(arguments: argparse.Namespace) -> int:
    home = home_of(arguments)
    if not arguments.yes:
        confirm(f"Revoke {arguments.site}? It is shut out at once.")
    record = revoke_site(home, arguments.site)
    audit = AuditLog(home.audit_file).append
    audit("revoked", site=arguments.site, reason=arguments.reason)
    say("revoked", f"{arguments.site}: {len(record.certificates)} certificates are refused from now on")
    if not is_up(home):
        say("node", "is registered with no SuperLink: `up` does not run")
        return OK
    settings = home.settings()
    try:
        # `up` would see it in a moment; whoever revokes wants it done when the command returns.
        Nodes(home, SuperLink(settings.private_host, settings.superlink_port), audit).sync()
    except SuperLinkError as error:
        say("node", f"not taken out yet, `up` does it as soon as it can: {error}")
        return REFUSED
    say("node", "taken out")
    return OK


def _site(text: str) -> SiteId:
    try:
        return site_id(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


INIT = Command(name="init", brief="make a coordinator's home", description=_INIT, add=_add_init, run=_init)
ENROL = Command(
    name="enrol", brief="invite a site, or list the sites", description=_ENROL,
    add=_add_enrol, check=_check_enrol, run=_enrol,
)  # fmt: skip
REVOKE = Command(name="revoke", brief="shut a site out", description=_REVOKE, add=_add_revoke, run=_revoke)
