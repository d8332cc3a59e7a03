"""`consilium-site enrol | renew | sites | approve-site | identity`: who this site is, whom it trusts."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

from client.approval import approve_site, approved_sites, own_identity, public_file
from client.directory import identity_file, look_up, other_sites
from client.enrolment import COORDINATOR, enrol, renew
from client.guard_app import install_executables
from client.home import SiteHome
from client.settings import read_settings
from client.terminal import (
    OK,
    REFUSED,
    Command,
    add_home,
    add_json,
    confirm,
    say,
    say_json,
    say_table,
)
from common.certificates import fingerprint, in_groups, parse_certificate, without_groups
from common.enrolment_messages import Invitation, read_invitation
from common.errors import DigestMismatchError
from common.pki import PublicIdentity

IDENTITY_SCHEMA = SITES_SCHEMA = 1

_ENROL = """\
Take part in a federation. What the invitation says of the coordinator is shown first: compare the two
fingerprints with what the coordinator reads to you over another channel (the telephone, a letter). Then keys
are made here, which never leave, and the coordinator signs a certificate. It can be run again after a
failure. No plan and no other site is approved by it."""
_SITES = """\
Ask the coordinator which other sites take part, and list them with their fingerprints and whether they are
approved here. Where the coordinator cannot be reached, the list is that of the last time, and the exit status
is 3."""
_RENEW = """\
Get a new certificate for this site, for a new key. The running site does so by itself when a third of the
certificate's life is left; this is for one that was away for longer, or whose key may be known to others."""
_IDENTITY = """\
Show who this site is in a federation: its name, the fingerprint of its key, the file to send to the other
sites, and which sites are approved here. The identity is made by `enrol`."""
_APPROVE_SITE = """\
Approve another site's identity. Ask its administrator for the fingerprint over another channel (the
telephone, a letter) and type what he reads: what the coordinator offers, or a file, proves nothing by
itself. Secure aggregation takes part only with approved sites."""


def _add_identity(parser: argparse.ArgumentParser) -> None:
    add_home(parser)
    add_json(parser)


def _identity(arguments: argparse.Namespace) -> int:
    consortium = SiteHome(arguments.home).the_consortium(arguments.consortium)
    identity, approved = own_identity(consortium.root), approved_sites(consortium.root)
    if arguments.json:
        say_json(
            IDENTITY_SCHEMA,
            {
                "site": identity.site_id,
                "consortium": consortium.name,
                "fingerprint": identity.public().fingerprint(),
                "public_file": str(public_file(consortium.root, identity)),
                "approved": {site: public.fingerprint() for site, public in approved.items()},
            },
        )
        return OK
    say("site", identity.site_id)
    say("consortium", consortium.name)
    say("fingerprint", in_groups(identity.public().fingerprint()))
    say("public file", public_file(consortium.root, identity))
    for site, public in approved.items():
        say("approved", f"{site}  {in_groups(public.fingerprint())}")
    return OK


def _add_enrol(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "invitation", type=Path, metavar="INVITATION", help="the file that the coordinator made for this site"
    )
    parser.add_argument(
        "--fingerprint",
        action="append",
        default=[],
        metavar="HEX",
        help="do not ask, compare: the coordinator's or the authority's; given twice, both",
    )
    parser.add_argument("--yes", action="store_true", help="neither ask nor compare")
    add_home(parser, consortium=False)


def _check_enrol(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> None:
    if not arguments.invitation.is_file():
        parser.error(f"no file {arguments.invitation}")
    if arguments.yes and arguments.fingerprint:
        parser.error("--yes compares nothing: give it, or --fingerprint")


def _enrol(arguments: argparse.Namespace) -> int:
    home = SiteHome(arguments.home)
    settings, invitation = read_settings(home.settings_file), read_invitation(arguments.invitation)
    consortium = home.consortium(invitation.consortium)
    _show_invitation(invitation)
    expected = _fingerprints(invitation)
    for typed in arguments.fingerprint:
        if without_groups(typed) not in expected.values():
            raise DigestMismatchError("invitation", expected["coordinator"], without_groups(typed))
    if not (arguments.yes or arguments.fingerprint):
        confirm("Did the coordinator read the same fingerprints to you?")
    public = enrol(consortium, settings.site, invitation, https_proxy=settings.network.https_proxy)
    install_executables(consortium)
    say("enrolled", f"{public.site_id} in {consortium.name}")
    say("fingerprint", in_groups(public.fingerprint()))
    say("", "read it to the coordinator and to the administrators of the other sites")
    if reason := look_up(consortium, settings):
        say("later", reason)
    for label, value in (
        ("next", f"consilium-site sites --home {home.root}"),
        ("", f"consilium-site approve-site NAME --fingerprint HEX --home {home.root}, for each of them"),
        ("", f"consilium-site plans --home {home.root}, and approve"),
        ("", f"consilium-site start --home {home.root}"),
    ):
        say(label, value)
    return OK


def _show_invitation(invitation: Invitation) -> None:
    say("consortium", invitation.consortium)
    say("this site", invitation.site)
    say("enrolment", invitation.enrolment)
    say("gateway", invitation.gateway)
    for label, digits in _fingerprints(invitation).items():
        say(label, in_groups(digits))
    say("good until", invitation.expires)


def _fingerprints(invitation: Invitation) -> dict[str, str]:
    """Of the coordinator's identity and of the consortium's authority. BadCertificateError."""
    authority = parse_certificate(invitation.authority.encode(), "authority of the invitation")
    coordinator = PublicIdentity(site_id=COORDINATOR, key=bytes.fromhex(invitation.coordinator))
    return {"coordinator": coordinator.fingerprint(), "authority": fingerprint(authority)}


def _add_renew(parser: argparse.ArgumentParser) -> None:
    add_home(parser)


def _renew(arguments: argparse.Namespace) -> int:
    home = SiteHome(arguments.home)
    settings, consortium = read_settings(home.settings_file), home.the_consortium(arguments.consortium)
    certificate = renew(consortium, https_proxy=settings.network.https_proxy)
    say("certificate", f"good until {certificate.not_valid_after_utc.isoformat(timespec='seconds')}")
    return OK


def _add_sites(parser: argparse.ArgumentParser) -> None:
    add_home(parser)
    add_json(parser)


def _sites(arguments: argparse.Namespace) -> int:
    home = SiteHome(arguments.home)
    settings, consortium = read_settings(home.settings_file), home.the_consortium(arguments.consortium)
    reason, sites = look_up(consortium, settings), other_sites(consortium)
    if arguments.json:
        rows = [asdict(site) for site in sites]
        say_json(SITES_SCHEMA, {"consortium": consortium.name, "fresh": reason is None, "sites": rows})
    else:
        cells = ((site.site, site.state, in_groups(site.fingerprint)) for site in sites)
        say_table(f"other sites of {consortium.name}", ("site", "state", "fingerprint"), cells)
        for site in sites:
            if site.state == "another key":
                say(
                    "WARNING",
                    f"{site.site} is offered with {in_groups(site.offered or '')}; ask its administrator",
                )
    if reason is not None:
        print(f"consilium-site: {reason}", file=sys.stderr)  # noqa: T201
    return OK if reason is None else REFUSED


def _add_approve_site(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "other", metavar="FILE|NAME", help="the other site's public identity, or its name as `sites` lists it"
    )
    parser.add_argument(
        "--fingerprint",
        required=True,
        metavar="HEX",
        help="as its administrator reads it; spaces are allowed",
    )
    add_home(parser)


def _approve_site(arguments: argparse.Namespace) -> int:
    consortium = SiteHome(arguments.home).the_consortium(arguments.consortium)
    file = identity_file(consortium, arguments.other)
    approved = approve_site(consortium.root, file, without_groups(arguments.fingerprint))
    say("approved", f"{approved.site_id}  {in_groups(approved.fingerprint())}")
    return OK


SETUP_COMMANDS = (
    Command(
        name="enrol",
        brief="take part in a federation, by the coordinator's invitation",
        description=_ENROL,
        add=_add_enrol,
        check=_check_enrol,
        run=_enrol,
    ),
    Command(
        name="sites",
        brief="list the other sites of a federation, and whether they are approved",
        description=_SITES,
        add=_add_sites,
        run=_sites,
    ),
    Command(
        name="renew",
        brief="get a new certificate",
        description=_RENEW,
        add=_add_renew,
        run=_renew,
    ),
    Command(
        name="identity",
        brief="show who this site is, and whom it approved",
        description=_IDENTITY,
        add=_add_identity,
        run=_identity,
    ),
    Command(
        name="approve-site",
        brief="approve another site's identity",
        description=_APPROVE_SITE,
        add=_add_approve_site,
        run=_approve_site,
    ),
)
