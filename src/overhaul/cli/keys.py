"""`overhaul keys`: which keys sign what, changing them, and rehearsing their theft."""

import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from overhaul.cli.opening import repository_option
from overhaul.cli.output import json_option, print_json, progress_bars
from overhaul.errors import TrustError
from overhaul.host.files import replace_bytes
from overhaul.trust.keyring import DEMO_WARNING

if TYPE_CHECKING:
    from securesystemslib.signer import Signer

    from overhaul.publishing.keys import KeysChanged
    from overhaul.publishing.opening import Repository
    from overhaul.trust.requests import SigningRequest

PIN_VARIABLE = "OVERHAUL_TOKEN_PIN"

_file = click.Path(path_type=Path, dir_okay=False)
_existing = click.Path(path_type=Path, dir_okay=False, exists=True)


@click.group(name="keys")
def command() -> None:
    """List, change and sign with the keys of every role, and rehearse their theft.

    A change that needs keys kept elsewhere is written to a file with `sign-request`, signed there with `sign`, and
    published with `import`.
    """


@command.command(name="list")
@repository_option
@json_option
def list_keys(directory: Path, as_json: bool) -> None:
    """List the keys of every role, and which private halves are here.

    \b
    Example:
      overhaul keys list --repository /srv/updates
    """
    repository = _open(directory)
    keyring = repository.keyring
    listing = keyring.listing()
    if as_json:
        print_json({"directory": str(keyring.directory), "demo": keyring.demo, "roles": listing})
        return
    click.echo(f"Keys in {keyring.directory}")
    for role in listing:
        click.echo(f"{role.title}: {role.threshold} of {len(role.keyids)} must sign")
        for keyid in role.keyids:
            click.echo(f"  {keyid[:16]}  {'here' if keyid in role.held else 'not here'}")
    if keyring.demo:
        click.secho(DEMO_WARNING, fg="red", bold=True, err=True)


@command.command(name="rotate")
@click.argument("role")
@click.option("--keys", "count", type=click.IntRange(1, 64), help="How many keys it gets. [default: as many as it has]")
@click.option("--threshold", type=click.IntRange(1, 64), help="How many must sign. [default: as many as now]")
@repository_option
@json_option
def rotate(role: str, count: int | None, threshold: int | None, directory: Path, as_json: bool) -> None:
    """Give ROLE new keys; the old ones count no more.

    The keys of root must sign once more themselves, so that devices follow; other roles are rotated without theirs.

    \b
    Examples:
      overhaul keys rotate timestamp
      overhaul keys rotate root --keys 5 --threshold 3
    """
    from overhaul.publishing.keys import rotate_role

    _print_changed(rotate_role(_open(directory), role, keys=count, threshold=threshold), as_json=as_json)


@command.command(name="revoke")
@click.argument("keyid")
@click.option("--replace", "replacing", is_flag=True, help="Make a new key in its place.")
@repository_option
@json_option
def revoke(keyid: str, replacing: bool, directory: Path, as_json: bool) -> None:
    """Let one key count for no role any more; KEYID may be shortened.

    \b
    Example:
      overhaul keys revoke 3f9a12 --replace
    """
    from overhaul.publishing.keys import revoke_key

    _print_changed(revoke_key(_open(directory), keyid, replace=replacing), as_json=as_json)


@command.command(name="add")
@click.argument("role")
@click.option("--public", type=_existing, help="PEM of the public half of a key that is kept elsewhere.")
@click.option("--token", metavar="hsm:ID?label=LABEL", help="Key on a PKCS#11 token ($PYKCS11LIB names its library).")
@repository_option
@json_option
def add(role: str, public: Path | None, token: str | None, directory: Path, as_json: bool) -> None:
    """Let one more key count for ROLE: a new one, or one that is named.

    \b
    Examples:
      overhaul keys add root --public alice.pem
      overhaul keys add timestamp --token 'hsm:2?label=updates'
    """
    from overhaul.publishing.keys import add_key

    if public is not None and token is not None:
        raise click.UsageError("Give --public or --token, not both.")
    data = None if public is None else public.read_bytes()
    _print_changed(add_key(_open(directory), role, public=data, token=token), as_json=as_json)


@command.command(name="threshold")
@click.argument("role")
@click.argument("number", type=click.IntRange(1, 64))
@repository_option
@json_option
def threshold_command(role: str, number: int, directory: Path, as_json: bool) -> None:
    """Let NUMBER of the keys of ROLE be needed to sign it.

    \b
    Example:
      overhaul keys threshold targets 2
    """
    from overhaul.publishing.keys import set_threshold

    _print_changed(set_threshold(_open(directory), role, number), as_json=as_json)


@command.command(name="abandon")
@click.argument("role")
@repository_option
@json_option
def abandon(role: str, directory: Path, as_json: bool) -> None:
    """Drop a change of the keys of ROLE that was begun and is not published.

    \b
    Example:
      overhaul keys abandon root
    """
    from overhaul.publishing.keys import abandon_change

    dropped = abandon_change(_open(directory), role)
    if as_json:
        print_json({"role": role, "dropped": dropped})
    else:
        click.echo(f"{role}: {'the change is dropped' if dropped else 'no change was waiting'}.")


@command.command(name="sign-request")
@click.argument("file", type=_file)
@click.option("--renew", multiple=True, metavar="ROLE", help="Sign this role again although nothing changed.")
@repository_option
@json_option
def sign_request(file: Path, renew: tuple[str, ...], directory: Path, as_json: bool) -> None:
    """Write to FILE what waits for keys that are not here.

    \b
    Examples:
      overhaul keys sign-request root.request
      overhaul keys sign-request yearly.request --renew root --renew targets
    """
    from overhaul.publishing.keys import request_signatures

    request = request_signatures(_open(directory), renew=renew)
    replace_bytes(file, request.encode())
    _print_request(request, file, as_json=as_json)


@command.command(name="sign")
@click.argument("file", type=_existing)
@click.option("--keys", "directory", type=click.Path(path_type=Path, file_okay=False), help="Directory of keys.")
@click.option("--key", "files", multiple=True, type=_existing, help="Private key in a PEM file.")
@click.option("--token", "tokens", multiple=True, metavar="hsm:ID?label=LABEL", help="Key on a PKCS#11 token.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
def sign(
    file: Path, directory: Path | None, files: tuple[Path, ...], tokens: tuple[str, ...], yes: bool, as_json: bool
) -> None:
    """Sign what FILE asks for, where the keys are; needs no repository and no network.

    Shows what would change and asks first. Several people can sign the file one after another.

    \b
    Examples:
      overhaul keys sign root.request --keys /media/stick/keys
      overhaul keys sign root.request --key alice.pem --yes
      overhaul keys sign root.request --token 'hsm:2?label=alice'
    """
    from overhaul.trust.keyfiles import load_key_file
    from overhaul.trust.keyring import Keyring
    from overhaul.trust.requests import decode_request
    from overhaul.trust.tokens import TokenSigner, read_token_key

    request = decode_request(file.read_bytes())
    if not (directory or files or tokens):
        raise click.UsageError("Name the keys to sign with: --keys, --key or --token.")
    if not yes:
        _print_request(request, file, as_json=False, err=True)
        click.confirm("Sign this?", abort=True, err=True)
    signers: dict[str, Signer] = {}
    for path in files:
        signer = load_key_file(path, passphrases=_secret)
        signers[signer.public_key.keyid] = signer
    for token in tokens:
        key = read_token_key(token, pin=_pin)
        signers[key.keyid] = TokenSigner(token, key, pin=_pin)
    if directory is not None:
        keyring = Keyring.open(directory, passphrases=_secret)
        for keyid in keyring.held(request.keyids):
            [signers[keyid]] = keyring.signers("", keyids=[keyid], threshold=1)
    usable = signers.keys() & set(request.keyids)
    if not usable:
        raise TrustError("None of these keys counts for what is to be signed; ask the publisher which keys do.")
    signed = request.signed_with(signers.get)
    replace_bytes(file, signed.encode())
    _print_request(signed, file, as_json=as_json)


@command.command(name="import")
@click.argument("file", type=_existing)
@repository_option
@json_option
def import_command(file: Path, directory: Path, as_json: bool) -> None:
    """Publish what was signed elsewhere.

    \b
    Example:
      overhaul keys import root.request
    """
    from overhaul.publishing.keys import import_signatures
    from overhaul.trust.requests import decode_request

    _print_changed(import_signatures(_open(directory), decode_request(file.read_bytes())), as_json=as_json)


@command.command(name="drill")
@click.option("--product", help="Rehearse thefts for this product only. [default: all]")
@repository_option
@json_option
def drill_command(product: str | None, directory: Path, as_json: bool) -> None:
    """Tell what stolen keys are worth to a thief, and rehearse thefts and recoveries.

    The rehearsal is held on a twin in memory with keys of its own: nothing of the repository is written, and no
    genuine key signs a forgery. A device with the real trust client follows, is attacked, and must follow again.
    Ends with status 4 when something went otherwise than it must.

    \b
    Example:
      overhaul keys drill --repository /srv/updates
    """
    from overhaul.publishing.drill import drill

    with progress_bars(quiet=as_json) as progress:
        report = drill(_open(directory), product=product, progress=progress)
    if as_json:
        print_json(report)
    else:
        click.echo("A thief who can sign as    needs        gets alone            gets with the online keys  here")
        for one in report.roles:
            click.echo(
                f"{one.role:<26} {one.threshold} of {one.keys:<6} {one.alone:<21} {one.with_online:<26} {one.held}"
            )
            for other in one.shared_with:
                click.echo(f"  shares keys with {other}: both fall together")
        absent = sorted({one.recovered_by for one in report.roles if not one.can_recover_here})
        for role in absent:
            click.echo(f"Recovery will need the keys of {role}, which are not here.")
        for tried in report.rehearsals:
            stolen = ", ".join(f"{count} {role}" for role, count in sorted(tried.stolen.items()) if count) or "none"
            after = "needs a new root.json" if tried.followed is None else "follows" if tried.followed else "IS LOST"
            mark = "ok " if tried.is_sound else "BAD"
            click.echo(
                f"{mark} {tried.product}: stolen {stolen}: {tried.seen.name.lower()}; device {after}; "
                f"thief again: {tried.seen_again.name.lower()}"
            )
    if not report.is_sound:
        bad = sum(not one.is_sound for one in report.rehearsals)
        raise TrustError(
            f"{bad} of {len(report.rehearsals)} rehearsals went otherwise than they must; they are listed."
        )


def _open(directory: Path) -> "Repository":
    from overhaul.publishing.opening import open_repository

    return replace(open_repository(directory), passphrases=_secret)


def _secret(name: str) -> bytes | None:
    """Ask for what locks a key file or token: the environment for a token's PIN, then the person."""
    if not name.endswith(".pem"):
        pin = _pin(name)
        return None if pin is None else pin.encode()
    return None if not sys.stdin.isatty() else _ask(f"Passphrase of {name}").encode() or None


def _pin(label: str) -> str | None:
    return os.environ.get(PIN_VARIABLE) or (_ask(f"PIN of token {label}") if sys.stdin.isatty() else None)


def _ask(what: str) -> str:
    answer: str = click.prompt(what, hide_input=True, default="", show_default=False, err=True)
    return answer


def _print_changed(changed: "KeysChanged", *, as_json: bool) -> None:
    if as_json:
        print_json(changed)
        return
    for one in changed.roles:
        click.echo(f"{one.role}: {one.threshold} of {len(one.keyids)} keys must sign")
        for keyid in one.added:
            click.echo(f"  + {keyid}")
        for keyid in one.revoked:
            click.echo(f"  - {keyid}")
    click.echo(
        f"Published under root version {changed.root_version}."
        if changed.changed
        else "All of it was published before."
    )


def _print_request(request: "SigningRequest", file: Path, *, as_json: bool, err: bool = False) -> None:
    missing = {one.role: one.missing for one in request.roles}
    if as_json:
        print_json({"file": str(file), "id": request.id, "missing": missing})
        return
    click.echo(f"{file}  id {request.id}", err=err)
    for one in request.roles:
        for line in one.describe():
            click.echo(line, err=err)
        click.echo(f"  {one.missing} more signatures needed" if one.missing else "  signed", err=err)
