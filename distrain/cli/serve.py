"""`distrain serve`: runs the queue of this machine, and shows it in a browser."""

import shutil
import sys
import time
from pathlib import Path
from typing import Annotated

import typer

from distrain.cli.options import Root


def serve(
    root: Root = Path("runs"),
    slots: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="CPU slots: how many CPU processes train at once.",
            show_default="one for each core",
        ),
    ] = None,
    max_devices: Annotated[
        int | None, typer.Option(metavar="N", min=1, help="Use at most this many devices of a kind at once.")
    ] = None,
    host: Annotated[
        str, typer.Option(metavar="ADDRESS", help="Where the page listens; beyond this machine only with TLS.")
    ] = "127.0.0.1",
    port: Annotated[
        int | None,
        typer.Option(metavar="N", min=1, max=65535, help="The page's port.", show_default="8765, or the next free one"),
    ] = None,
    uds: Annotated[
        Path | None, typer.Option(metavar="PATH", help="A Unix socket, which only you can use, instead of a port.")
    ] = None,
    tls_cert: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The page's certificate, with its chain, in PEM.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(metavar="FILE", help="The key of the certificate, in PEM.")] = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Let other machines reach the page without TLS.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Another name, or NAME:PORT, by which browsers reach the page; repeatable."),
    ] = None,
    data_root: Annotated[
        list[Path] | None,
        typer.Option(metavar="DIR", help="Data and weights in this folder may be named in the page; repeatable."),
    ] = None,
    allow_code: Annotated[
        bool, typer.Option("--allow-code", help="Let recipes from the page name your code as package.module:name.")
    ] = False,
    page: Annotated[bool, typer.Option(help="Show the page.")] = True,
    link: Annotated[
        bool, typer.Option("--link", help="Print another link to the page of the running serve, and end.")
    ] = False,
    new_token: Annotated[
        bool, typer.Option("--new-token", help="Replace the token, which logs everybody out, and end.")
    ] = False,
    unit: Annotated[
        bool, typer.Option("--systemd", help="Print a unit file for systemd with these options, and start nothing.")
    ] = False,
) -> None:
    """Run the jobs that `distrain submit` queues, and show them, the devices and all runs in a page.

    The oldest of the highest priority comes first. A run of higher priority may have others stopped, which are saved
    and resumed. Serve keeps no state of its own: when it ends, however that happens, the runs continue, and the next
    one takes them over. It starts only runs of its own user.

    The line `page  http://...` has a link that logs a browser in once. Only this machine can reach the page: from your
    own, `ssh -L 8765:127.0.0.1:8765 MACHINE` makes the link work there.

    Example: `distrain serve --root runs --slots 2`
    """
    from rich.console import Console

    from distrain.cli.output import print_event
    from distrain.errors import ExitCode, UserError
    from distrain.service.devices import require_leases, slot_names
    from distrain.service.server import Service
    from distrain.service.unit import unit_file
    from distrain.service.web import server
    from distrain.service.web.options import PageOptions
    from distrain.system.exits import end_process
    from distrain.system.signals import stopping

    options = PageOptions(
        host=host,
        port=port,
        uds=_absolute(uds),
        tls_cert=_absolute(tls_cert),
        tls_key=_absolute(tls_key),
        is_insecure=insecure,
        allowed_hosts=tuple(allow_host or ()),
        data_roots=tuple(path.expanduser().resolve() for path in data_root or ()),
        allow_code=allow_code,
    )
    if unit:
        words = options.arguments if page else ["--no-page"]
        typer.echo(unit_file(root, slots=slots, max_devices=max_devices, more=words), nl=False)
        return
    if link or new_token:
        _change_access(root.absolute(), is_link=link)
        return
    require_leases()
    options.check()
    _check_root(root)
    is_new = not root.exists()
    root.mkdir(exist_ok=True)
    console = Console(highlight=False, soft_wrap=True)

    def notify(text: str) -> None:
        print_event(console, f"{time.strftime('%F %T')}  {text}")

    def announce(address: str) -> None:
        typer.echo(f"page  {address}")

    count, folder = len(slot_names(slots)), root.absolute()
    beside = (
        server.page(folder, options, slots=count, notify=notify, announce=announce) if page else server.no_page(folder)
    )
    try:
        with stopping() as stop:
            Service(folder, slots=count, max_devices=max_devices, notify=notify).run(stop, beside=beside)
    except UserError:
        if is_new:
            _remove_empty(folder)
        raise
    notify("ended; runs that have begun continue")
    if server.has_hanging_requests():
        sys.stdout.flush()
        end_process(ExitCode.FINISHED)


def _check_root(root: Path) -> None:
    from distrain.errors import RunError

    if root.exists() and not root.is_dir():
        raise RunError(f"{root} is not a folder; name the folder of the runs with --root")
    if not root.absolute().parent.is_dir():
        raise RunError(f"there is no folder {root.absolute().parent}; check --root")


def _remove_empty(root: Path) -> None:
    """Remove a folder that this `serve` has made, and that holds no run."""
    if all(path.name.startswith(".serve") for path in root.iterdir()):
        shutil.rmtree(root, ignore_errors=True)


def _change_access(root: Path, *, is_link: bool) -> None:
    """Print another link to the page that a `serve` shows, or replace the token."""
    from distrain.errors import RunError
    from distrain.service.queue import is_served
    from distrain.service.web.security.credentials import Credentials

    credentials = Credentials(root)
    if not is_link:
        if not root.is_dir():
            raise RunError(f"there is no folder {root}; name that of the runs with --root")
        credentials.renew()
        typer.echo(f"replaced the token in {credentials.token_file}; everybody is logged out")
        return
    if not is_served(root):
        raise RunError(f"no serve runs for {root}; `distrain serve --root {root}` starts one, and prints a link")
    address = credentials.read_address()
    if address is None:
        raise RunError(f"the serve of {root} shows no page; start it without --no-page")
    typer.echo(f"page  {credentials.login_link(address)}")


def _absolute(path: Path | None) -> Path | None:
    return None if path is None else path.expanduser().absolute()
