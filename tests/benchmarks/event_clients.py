"""Measures whether a training is slower while clients follow it: with none, and with 100 on the event stream.

    python -m tests.benchmarks.event_clients [--clients 100] [--turns 5] [--steps 2000]

The training, the server and all clients are three processes of this machine; every client follows the run that trains:
its state, records, log lines, the queue and the devices. Trainings with and without clients take turns; a ratio is that
of neighbouring turns. It also prints what the clients received, and the processor time of the server in each turn.
"""

import argparse
import asyncio
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tests.cli_runner import QUIET, command, wait_until

_HZ = os.sysconf("SC_CLK_TCK")


def serve(root: str, port: str) -> None:
    """Serve the runs in a folder without a login."""
    import uvicorn

    from distrain.service.web.app import create_app
    from distrain.service.web.site import Site

    uvicorn.run(create_app(Site(root=Path(root), slots=2)), port=int(port), log_level="critical")


async def follow(port: str, run: str, number: str) -> None:
    """Read events with many clients until the end of the input, then print how many bytes and events each got."""
    os.nice(19)  # in reality these are other machines, which take no time from the training
    counts = await asyncio.gather(*(_read(int(port), run) for _ in range(int(number))))
    events, size = [count for count, _ in counts], sum(size for _, size in counts)
    print(json.dumps({"clients": len(counts), "events": [min(events), max(events)], "bytes": size}))


async def _read(port: int, run: str) -> tuple[int, int]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 22)
    writer.write(f"GET /api/v1/events?run={run} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    events, size, event = 0, 0, b""
    async for line in reader:
        size += len(line)
        if line.startswith(b"event: "):
            events, event = events + 1, line
        if event == b"event: status\n" and b'"state": "finished"' in line:
            break
    writer.close()
    return events, size


def train(root: Path, name: str, steps: int) -> subprocess.Popen[bytes]:
    options = [f"--run={root / name}", f"--set=train.max_steps={steps}", "--set=train.epochs=100000", "--device=cpu"]
    options += ["--set=eval.every_epochs=100000", "--set=checkpoint.every_epochs=100000"]  # only at the end
    return subprocess.Popen(command("fit", *options, *QUIET), cwd=root.parent, stdout=subprocess.DEVNULL)


def own(*arguments: object) -> "subprocess.Popen[str]":
    program = [sys.executable, "-m", "tests.benchmarks.event_clients", *map(str, arguments)]
    return subprocess.Popen(program, stdout=subprocess.PIPE, text=True)


def is_open(port: int) -> bool:
    with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
        return True
    return False


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _HZ


def measure(root: Path, name: str, *, steps: int, clients: int, port: int, server: int) -> tuple[float, float, str]:
    """Return steps a second, the processor time of the server in percent of one, and what clients received."""
    before, begun = processor_s(server), time.monotonic()
    training = train(root, name, steps)
    while not (root / name / "status.json").exists():
        time.sleep(0.01)
    following = own("--follow", port, name, clients) if clients else None
    if training.wait() != 0:
        raise SystemExit("the training has failed")
    share = 100 * (processor_s(server) - before) / (time.monotonic() - begun)
    received = ""
    if following is not None:
        received, _ = following.communicate(timeout=30)
    status = json.loads((root / name / "status.json").read_text(encoding="utf-8"))
    return steps / status["train_seconds"], share, received.strip()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--steps", type=int, default=2_000)
    parser.add_argument("--serve", nargs=2, metavar=("ROOT", "PORT"), help=argparse.SUPPRESS)
    parser.add_argument("--follow", nargs=3, metavar=("PORT", "RUN", "NUMBER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        serve(*options.serve)
        return
    if options.follow:
        asyncio.run(follow(*options.follow))
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder, "runs")
        root.mkdir()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = own("--serve", root, port)
        try:
            wait_until(lambda: is_open(port), "the start of the server")
            speeds: dict[int, list[float]] = {0: [], options.clients: []}
            for turn in range(options.turns + 1):  # the first one warms up
                for clients in (0, options.clients) if turn % 2 else (options.clients, 0):
                    name = f"turn-{turn}-{clients}"
                    speed, share, received = measure(
                        root, name, steps=options.steps, clients=clients, port=port, server=server.pid
                    )
                    print(
                        f"{clients:>4} clients  {speed:9.1f} steps/s  server {share:5.1f}% of a processor  {received}"
                    )
                    if turn:
                        speeds[clients].append(speed)
        finally:
            server.terminate()
            server.wait()
        ratios = [many / none for none, many in zip(speeds[0], speeds[options.clients], strict=True)]
        print(
            f"{options.clients} clients / none: {statistics.median(ratios):.3f} "
            f"({min(ratios):.3f} to {max(ratios):.3f}), Python {sys.version.split()[0]}, {platform.machine()}, "
            f"{os.cpu_count()} processors"
        )


if __name__ == "__main__":
    main()
