"""`distrain devices`: lists the GPUs and CPU slots of this machine with who has them, and takes them out of service."""

from typing import TYPE_CHECKING, Annotated

import typer

from distrain.cli import complete
from distrain.cli.groups import refuse_misplaced
from distrain.cli.json_output import print_json
from distrain.cli.options import AsJson
from distrain.errors import LaunchError
from distrain.messages import byte_size, counted, nearest

if TYPE_CHECKING:
    from distrain.service.devices import DeviceState

app = typer.Typer(
    help="List the devices of this machine: which run has each of them, and which are out of service.\n\n"
    "Example: `distrain devices --json`",
    invoke_without_command=True,
)

DeviceId = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="A device as `distrain devices` lists it, or the beginning of its name.",
        autocompletion=complete.lease_ids,
    ),
]


@app.callback()
def _default(context: typer.Context, as_json: AsJson = False) -> None:
    if context.invoked_subcommand is None:
        list_(as_json)
    refuse_misplaced(context)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the devices: free, leased to a run, drained, filled by another program, or faulty (its lock file is).

    A run takes a lease on each of its devices, GPUs or slots of the CPU (one for each training process), so that two
    runs never share one by accident.

    Example: `distrain devices list --json`
    """
    from rich.console import Console

    from distrain.service.devices import list_devices
    from distrain.system.display import Heading, print_table

    found = list_devices()
    if as_json:
        print_json([device.as_json() for device in found])
        return
    headings = [
        Heading("device"),
        Heading("name", 2),
        Heading("memory", 1, is_right=True),
        Heading("state"),
        Heading("", is_text=True),
    ]
    rows = [
        [each.id, each.name, byte_size(each.memory_bytes) if each.memory_bytes else "", each.state, each.reason]
        for each in found
    ]
    print_table(Console(highlight=False, soft_wrap=True), headings, rows)


@app.command("drain")
def drain(
    device: DeviceId,
    reason: Annotated[
        str, typer.Option("--reason", metavar="REASON", help="Shown to those who look for a device.")
    ] = "",
) -> None:
    """Take a device out of service: no run gets it any more. A run that has it continues.

    It lasts until `distrain devices undrain`, or until the machine is started again.

    Example: `distrain devices drain cpu-1 --reason "used for something else today"`
    """
    from distrain.service.devices import require_leases

    folder, state = require_leases(), _find(device)
    if state.drain is not None:
        typer.echo(f"{state.id} is {state.drain}; nothing was changed")
        return
    folder.drain(state.id, reason)
    later = f"; {state.holder} keeps it" if state.holder is not None else ""
    typer.echo(f"drained {state.id}{later}")


@app.command("undrain")
def undrain(device: DeviceId) -> None:
    """Return a device to service.

    Example: `distrain devices undrain cpu-1`
    """
    from distrain.service.devices import require_leases

    folder, state = require_leases(), _find(device)
    was_drained = folder.undrain(state.id)
    typer.echo(f"{state.id} is in service{'' if was_drained else ' already'}")


def _find(name: str) -> "DeviceState":
    from distrain.service.devices import list_devices

    found = list_devices()
    for matches in ([one for one in found if one.id == name], [one for one in found if one.id.startswith(name)]):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise LaunchError(
                f"{counted(len(matches), 'device')} begin with {name!r}: {', '.join(one.id for one in matches)}"
            )
    raise LaunchError(
        f"there is no device {name!r} here{nearest(name, [one.id for one in found])}; `distrain devices` lists them"
    )
