"""Writes the unit file with which systemd runs `distrain serve`."""

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from distrain.system.leases import LOCK_DIR


def unit_file(root: Path, *, slots: int | None, max_devices: int | None, more: Sequence[str] = ()) -> str:
    """Return a unit for the user's own systemd, or the machine's: it serves `root` from the start of the machine on.

    `more` are further words of the command.

    Only the service itself is stopped with it: the runs that it has started continue, and are taken over by the next.
    """
    options = [f"--root={root.absolute()}"]
    options += [] if slots is None else [f"--slots={slots}"]
    options += [] if max_devices is None else [f"--max-devices={max_devices}"]
    words = [*options, *more]
    command = " ".join(map(_quote, [sys.executable, "-m", "distrain", "serve", *words]))
    return f"""\
# The queue of this machine. To install it for this user:
#     distrain serve {shlex.join(words)} --systemd > ~/.config/systemd/user/distrain.service
#     systemctl --user enable --now distrain
#     loginctl enable-linger    # starts it with the machine, not at the login
# For the whole machine instead: add User= below, and save it as /etc/systemd/system/distrain.service.
# Secrets such as WANDB_API_KEY belong in ~/.config/distrain/secrets.env, which only you may read (chmod 600).
[Unit]
Description=distrain: the training queue of this machine
After=network-online.target

[Service]
Type=exec
ExecStart={command}
WorkingDirectory={_quote(str(Path.cwd()))}
{_environment()}
Restart=always
RestartSec=2
KillMode=process
TimeoutStopSec=30

[Install]
WantedBy=default.target
"""


def _environment() -> str:
    """Return the lines for the variables that decide which programs and which leases the service uses."""
    found = {"PATH": os.environ.get("PATH", os.defpath), LOCK_DIR: os.environ.get(LOCK_DIR)}
    return "\n".join(f"Environment={_quote(f'{name}={value}')}" for name, value in found.items() if value is not None)


def _quote(word: str) -> str:
    """Return a word of a command as systemd reads it: % and $ have a meaning there."""
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%").replace("$", "$$")
    return f'"{escaped}"' if " " in word or escaped != word else word
