"""`distrain serve`: runs the queue of this machine."""

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
    unit: Annotated[
        bool, typer.Option("--systemd", help="Print a unit file for systemd with these options, and start nothing.")
    ] = False,
) -> None:
    """Run the jobs that `distrain submit` queues: as many at once as there are free GPUs or CPU slots.

    The oldest of the highest priority comes first. A run of higher priority may have others stopped, which are saved
    and resumed. Serve keeps no state of its own: when it ends, however that happens, the runs continue, and the next
    one takes them over. It starts only runs of its own user.

    Example: `distrain serve --root runs --slots 2`
    """
    from rich.console import Console

    from distrain.cli.output import print_event
    from distrain.errors import RunError
    from distrain.service.devices import require_leases, slot_names
    from distrain.service.server import Service
    from distrain.service.unit import unit_file
    from distrain.system.signals import stopping

    if unit:
        typer.echo(unit_file(root, slots=slots, max_devices=max_devices), nl=False)
        return
    require_leases()
    if root.exists() and not root.is_dir():
        raise RunError(f"{root} is not a folder; name the folder of the runs with --root")
    if not root.absolute().parent.is_dir():
        raise RunError(f"there is no folder {root.absolute().parent}; check --root")
    root.mkdir(exist_ok=True)
    console = Console(highlight=False, soft_wrap=True)

    def notify(text: str) -> None:
        print_event(console, f"{time.strftime('%F %T')}  {text}")

    with stopping() as stop:
        Service(root.absolute(), slots=len(slot_names(slots)), max_devices=max_devices, notify=notify).run(stop)
    notify("ended; runs that have begun continue")
