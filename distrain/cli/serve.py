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
    and resumed. Serve keeps nothing to itself: when it ends, however that happens, the runs continue, and the next
    one takes them over. It starts runs of its own user only.

    Example: `distrain serve --root runs --slots 2`
    """
    from rich.console import Console

    from distrain.cli.output import print_event
    from distrain.messages import counted
    from distrain.service.devices import list_devices, require_leases, slot_names
    from distrain.service.server import Service
    from distrain.service.unit import unit_file
    from distrain.system.signals import stopping

    if unit:
        typer.echo(unit_file(root, slots=slots, max_devices=max_devices), nl=False)
        return
    require_leases()
    root.mkdir(parents=True, exist_ok=True)
    console = Console(highlight=False, soft_wrap=True)

    def notify(text: str) -> None:
        print_event(console, f"{time.strftime('%F %T')}  {text}")

    cpus = len(slot_names(slots))
    gpus = len(list_devices("gpu"))
    notify(f"serving {root.absolute()} on {counted(gpus, 'GPU')} and {counted(cpus, 'CPU slot')}")
    with stopping() as stop:
        Service(root.absolute(), slots=cpus, max_devices=max_devices, notify=notify).run(stop)
    notify("ended; runs that have begun continue")
