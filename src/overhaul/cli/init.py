"""`overhaul init`: a new repository."""

from dataclasses import asdict
from pathlib import Path

import click

from overhaul.cli.output import json_option, print_json
from overhaul.release.channels import Channels
from overhaul.trust.keyring import DEMO_WARNING


@click.command(name="init")
@click.argument("directory", metavar="REPO", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--product",
    "-p",
    "products",
    multiple=True,
    default=("os",),
    show_default=True,
    help="Product it carries; may be repeated.",
)
@click.option(
    "--channel",
    "-c",
    "channels",
    multiple=True,
    default=Channels().names,
    show_default=True,
    help="Channel of every product, the most stable first; may be repeated.",
)
@click.option(
    "--keys",
    type=click.Path(path_type=Path, file_okay=False),
    help="Directory for the private keys, outside of REPO. [default: REPO-keys beside it]",
)
@click.option(
    "--storage",
    default="store",
    show_default=True,
    help="Where the published objects live: a directory in REPO, or s3://bucket/prefix.",
)
@click.option("--endpoint", metavar="URL", help="S3-compatible service other than Amazon's.")
@click.option("--region", help="Region of the bucket.")
@click.option("--allow-http", is_flag=True, help="Speak plain http to that service.")
@click.option("--public-url", default="", help="Where devices will reach the public tree.")
@click.option("--with-builds", is_flag=True, help="Add the role that signs images built on demand.")
@click.option("--demo-keys", is_flag=True, help="Make throw-away keys, for trying things out only.")
@json_option
def command(
    directory: Path,
    products: tuple[str, ...],
    channels: tuple[str, ...],
    keys: Path | None,
    storage: str,
    endpoint: str | None,
    region: str | None,
    allow_http: bool,
    public_url: str,
    with_builds: bool,
    demo_keys: bool,
    as_json: bool,
) -> None:
    """Make a repository in REPO: configuration, keys and first signed metadata.

    Devices get their copy of REPO/root.json; their trust begins with it. Run again after an interruption, it
    finishes what was begun.

    \b
    Examples:
      overhaul init updates --product kiosk
      overhaul init /srv/updates --product kiosk --channel stable --channel beta --keys /media/stick/keys
      overhaul init updates --storage s3://bucket/updates --endpoint https://s3.example.com
      overhaul init try-out --demo-keys
    """
    from overhaul.publishing.create import create_repository
    from overhaul.repository.opening import StorageAddress

    created = create_repository(
        directory,
        products=products,
        keys=keys,
        storage=StorageAddress(url=storage, endpoint=endpoint, region=region, allow_http=allow_http),
        public_url=public_url,
        channels=channels,
        with_builds=with_builds,
        demo_keys=demo_keys,
    )
    if as_json:
        print_json({name: str(value) if isinstance(value, Path) else value for name, value in asdict(created).items()})
        return
    click.echo(f"Repository   {created.directory} with {', '.join(created.products)}")
    click.echo(f"Settings     {created.settings}")
    click.echo(f"Serve        {created.public}")
    click.echo(f"For devices  {created.root}")
    click.echo(f"Keys         {created.keys}")
    if created.demo_keys:
        click.secho(DEMO_WARNING, fg="red", bold=True, err=True)
    else:
        click.echo("Move the keys of root, targets and the products to a place that is offline, and keep a copy.")
