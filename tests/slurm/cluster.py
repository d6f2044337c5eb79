"""A real SLURM on this one machine: munge, one controller and three nodes, on ports and in a folder of its own."""

import os
import secrets
import shutil
import signal
import socket
import stat
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from tests.cli_runner import wait_until

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol")
DATABASE = ("slurmdbd", "mariadbd", "mariadb-install-db", "sacct", "sacctmgr")
NODES = ("n1", "n2", "n3")
GPUS = 2  # of each node: SLURM deals them like any others, though nothing can be computed on them

# Three nodes of one host, with more CPUs than it has.
_CONFIGURATION = """
ClusterName=distrain
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
CryptoType=crypto/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
{accounting}
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=1,bf_interval=1
ReturnToService=2
JobRequeue=1
KillWait=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
"""


# What keeps the jobs that the controller has forgotten, which it does as soon as it may.
_ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={port}
AccountingStoragePass={folder}/munge/socket
MinJobAge=2
"""
_DATABASE = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdPort={port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database_port}
StorageUser=slurm
StoragePass=slurm
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
"""
_GRANT = "create user slurm@localhost identified by 'slurm'; grant all on *.* to slurm@localhost;"


class Cluster:
    """A running SLURM; its commands find it by `env`. With `accounting` it has a database, and sacct answers."""

    def __init__(self, folder: Path, *, accounting: bool = False) -> None:
        self.folder = folder
        self._accounting = accounting
        self.env = {"SLURM_CONF": str(folder / "slurm.conf")}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self) -> None:
        for name in ("state", "munge", *NODES):
            (self.folder / name).mkdir(parents=True)
        self.folder.chmod(0o755)
        self._write_configuration()
        self._start_munge()
        if self._accounting:
            self._start_database()
        self._run("slurmctld", "slurmctld", "-D", "-c", "-f", self.env["SLURM_CONF"])
        for node in NODES:
            self.start_node(node)
        self.wait_until_idle()

    def stop(self) -> None:
        subprocess.run(["scancel", "--signal=KILL", "--user=root"], env=self._environment(), check=False)
        time.sleep(0.5)
        for name in (*NODES, "slurmctld", "slurmdbd", "mariadbd", "munged"):
            if (process := self._processes.get(name)) is not None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()
                process.wait()
        for pid in self._steps():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def start_node(self, node: str) -> None:
        self._run(node, "slurmd", "-D", "-N", node, "-f", self.env["SLURM_CONF"])

    def kill_node(self, node: str) -> None:
        """Kill a node's daemon and all that its jobs have started there, as a power cut would, and tell SLURM."""
        self._processes[node].kill()
        self._processes[node].wait()
        import psutil

        for pid in self._steps(node):
            with suppress(psutil.NoSuchProcess):
                family = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
                for process in family:
                    process.kill()
        self.call("scontrol", "update", f"nodename={node}", "state=down", "reason=killed")

    def call(self, *command: str) -> str:
        done = subprocess.run(command, env=self._environment(), capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout.strip()

    def field(self, job_id: str, name: str) -> str:
        """One field of `scontrol show job`, such as JobState."""
        words = self.call("scontrol", "--oneliner", "show", "job", job_id).split()
        return next(word.partition("=")[2] for word in words if word.startswith(f"{name}="))

    def hurry(self, job_id: str) -> None:
        """Have a job that was queued again begin now: SLURM lets two minutes pass until then."""
        wait_until(lambda: self.field(job_id, "JobState") != "COMPLETING", f"end of job {job_id}", every_s=0.3)
        if self.field(job_id, "JobState") == "PENDING":
            self.call("scontrol", "update", f"JobId={job_id}", "StartTime=now")

    def wait_until_idle(self, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while True:
            done = subprocess.run(
                ["sinfo", "--noheader", "--Node", "--partition=normal", "--format=%T"],
                env=self._environment(), capture_output=True, text=True, check=False,
            )  # fmt: skip
            if done.stdout.split() == ["idle"] * len(NODES):
                return
            assert time.monotonic() < deadline, f"nodes do not become idle: {done.stdout}{done.stderr}"
            time.sleep(0.2)

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self.env}

    def _write_configuration(self) -> None:
        host, port = socket.gethostname().split(".")[0], _free_ports(3 + len(NODES))
        own, database = port + len(NODES) + 1, port + len(NODES) + 2
        accounting = _ACCOUNTING.format(port=own, folder=self.folder) if self._accounting else ""
        lines = [_CONFIGURATION.format(host=host, port=port, folder=self.folder, accounting=accounting)]
        (self.folder / "slurmdbd.conf").touch(mode=0o600)
        (self.folder / "slurmdbd.conf").write_text(
            _DATABASE.format(folder=self.folder, port=own, database_port=database)
        )
        self._database_port = database
        for number, node in enumerate(NODES, start=1):
            gpus = f"Gres=gpu:{GPUS}" if self._make_gpus(node) else ""
            place = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={port + number}"
            lines.append(f"NodeName={node} {place} CPUs=16 RealMemory=4000 {gpus}\n")
        for name, priority, default in (("normal", 1, "YES"), ("urgent", 10, "NO")):
            lines.append(f"PartitionName={name} Nodes={','.join(NODES)} PriorityTier={priority} Default={default}\n")
        (self.folder / "slurm.conf").write_text("".join(lines))

    def _make_gpus(self, node: str) -> bool:
        """Make device files for a node's GPUs, which SLURM only counts; returns whether that is permitted here."""
        files = [self.folder / f"{node}-gpu{number}" for number in range(GPUS)]
        try:
            for file in files:
                os.mknod(file, stat.S_IFCHR | 0o600, os.makedev(1, 3))
        except PermissionError:
            return False
        with (self.folder / "gres.conf").open("a") as lines:
            lines.writelines(f"NodeName={node} Name=gpu File={file}\n" for file in files)
        return True

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        folder.chmod(0o755)
        key = folder / "key"
        key.touch(mode=0o600)
        key.write_bytes(secrets.token_bytes(1024))
        names = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in names.items()]
        self._run("munged", "munged", "--foreground", "--force", *options)
        while not (folder / "socket").exists():
            assert self._processes["munged"].poll() is None, (folder / "log").read_text()
            time.sleep(0.05)

    def _start_database(self) -> None:
        folder = self.folder / "database"
        install = ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={folder}"]
        subprocess.run([*install, "--auth-root-authentication-method=normal"], check=True, capture_output=True)
        server = f"--socket={folder}/socket"
        port = f"--port={self._database_port}"
        places = [f"--datadir={folder}", server, port, "--bind-address=127.0.0.1", f"--pid-file={folder}/pid"]
        self._run("mariadbd", "mariadbd", "--no-defaults", "--user=root", *places)
        grant = ["mariadb", "--no-defaults", server, "--user=root", f"--execute={_GRANT}"]
        wait_until(lambda: subprocess.run(grant, capture_output=True, check=False).returncode == 0, "the database")
        self._run("slurmdbd", "slurmdbd", "-D")
        listing = ["sacctmgr", "--noheader", "list", "cluster"]
        environment = self._environment()
        wait_until(
            lambda: subprocess.run(listing, env=environment, capture_output=True, check=False).returncode == 0,
            "slurmdbd",
            every_s=0.5,
        )
        self.call("sacctmgr", "--immediate", "add", "cluster", "distrain")

    def _run(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.out").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                command, stdout=log, stderr=log, stdin=subprocess.DEVNULL, env=self._environment()
            )

    def _steps(self, node: str | None = None) -> list[int]:
        """The processes of this cluster that watch over jobs: each belongs to a node."""
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if not (path / "comm").read_text().startswith("slurmstepd"):
                    continue
                environment = (path / "environ").read_bytes()
                if str(self.folder).encode() in environment and (node is None or _is_on(path, node)):
                    found.append(int(path.name))
        return found


def _is_on(process: Path, node: str) -> bool:
    """Whether a slurmstepd belongs to a node: its children have the node's name in their environment."""
    children = (process / "task" / process.name / "children").read_text().split()
    return any(f"SLURMD_NODENAME={node}\0".encode() in Path(f"/proc/{pid}/environ").read_bytes() for pid in children)


def _free_ports(count: int) -> int:
    """The first of `count` ports in a row that nobody listens on, below those that Linux hands out by itself."""
    while True:
        first = 15000 + secrets.randbelow(4000)
        with suppress(OSError):
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
            return first


def missing(*, accounting: bool = False) -> str | None:
    """Why no SLURM can be started here; None where it can."""
    absent = [program for program in (*PROGRAMS, *(DATABASE if accounting else ())) if shutil.which(program) is None]
    if absent:
        packages = "slurmctld slurmd munge" + (" slurmdbd mariadb-server" if accounting else "")
        return f"needs a SLURM to start: {', '.join(absent)} missing (apt-get install {packages})"
    return None if os.geteuid() == 0 else "needs to be root, to start a SLURM"
