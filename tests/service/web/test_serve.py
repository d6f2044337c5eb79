"""`distrain serve` with its page, as a process: the link, ports, sockets, TLS, and a page that cannot end the queue."""

import os
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from distrain.errors import LaunchError, StorageError, UserError
from distrain.runs.query import find_runs
from distrain.service.table import JobTable
from distrain.service.unit import unit_file
from distrain.service.web.listener import listen
from distrain.service.web.options import PageOptions
from tests.cli_runner import Done, distrain, wait_until
from tests.service.web.pages import shown
from tests.users import as_nobody, public_folder

# `serve` with a page that hangs or fails in a way that no page should.
FAULTY = """
import sys, time
from distrain.service.web import app as web_app
create = web_app.create_app
def create_faulty(site):
    {fault}
    app = create(site)
    app.add_api_route("/hang", lambda: time.sleep(60))
    return app
web_app.create_app = create_faulty
from distrain.cli import main
main()
"""


@dataclass
class Serve:
    """A `serve` in a folder of its own."""

    folder: Path
    process: subprocess.Popen[str] | None = None

    @property
    def env(self) -> dict[str, str]:
        return {"DISTRAIN_LOCK_DIR": str(self.folder / "locks"), "HOME": str(self.folder)}

    @property
    def out(self) -> str:
        return (self.folder / "out").read_text()

    @property
    def err(self) -> str:
        return (self.folder / "err").read_text()

    @property
    def link(self) -> str:
        (line,) = [line for line in self.out.splitlines() if line.startswith("page  ")]
        return line.removeprefix("page  ")

    def start(self, *arguments: str, program: tuple[str, ...] = ("-m", "distrain")) -> "Serve":
        with (self.folder / "out").open("w") as out, (self.folder / "err").open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, *program, "serve", "--root=runs", *arguments],
                cwd=self.folder,
                env={**os.environ, **self.env},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                text=True,
            )
        wait_until(lambda: "serving" in self.out or self.process is None or self.process.poll() is not None, "a start")
        return self

    def call(self, *arguments: str) -> Done:
        return distrain(*arguments, cwd=self.folder, env=self.env)

    def stop(self) -> tuple[int, float]:
        """End it as systemd does; returns its exit code, and how long that took."""
        assert self.process is not None
        begun = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(30), time.monotonic() - begun


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    found = Serve(tmp_path)
    yield found
    if found.process is not None:
        found.process.kill()
        found.process.wait()


def status_of(url: str, **more: str) -> int:
    return httpx.get(url, headers=more, timeout=20, trust_env=False, verify=False).status_code


def test_serve_prints_a_link_and_another_one_and_replaces_the_token(serve: Serve) -> None:
    serve.start("--slots=1")
    assert status_of(serve.link) == 200
    folder = serve.folder / "runs" / ".serve"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*") if path.is_file()} == {0o600}
    second = serve.call("serve", "--root=runs")
    assert second.code == 2 and "already serves" in second.err and "--link` prints a link" in second.err
    done = serve.call("serve", "--root=runs", "--link")
    assert done.code == 0
    assert done.out.startswith("page  http://127.0.0.1:")
    assert done.out.split()[1] != serve.link
    assert status_of(done.out.split()[1]) == 200
    token = (folder / "token").read_text().strip()
    address = serve.link.partition("/login")[0]
    assert status_of(f"{address}/", Authorization=f"Bearer {token}") == 200
    assert serve.call("serve", "--root=runs", "--new-token").code == 0
    assert (folder / "token").read_text().strip() != token
    assert status_of(f"{address}/api/v1/runs", Authorization=f"Bearer {token}") == 401
    code, seconds = serve.stop()
    assert code == 0
    assert seconds < 4
    assert token not in serve.out + serve.err


def test_two_serves_have_a_port_each_and_one_that_is_named_must_be_free(tmp_path: Path) -> None:
    with shown(tmp_path / "a") as one, shown(tmp_path / "b") as other:
        assert one.address != other.address
        port = int(other.address.rpartition(":")[2])
        with pytest.raises(LaunchError, match=f"--port {port} is in use"):
            listen(PageOptions(port=port))
        done = distrain("serve", "--root=c", f"--port={port}", cwd=tmp_path)
        assert (done.code, (tmp_path / "c").exists()) == (2, False), done.err
    with listen(PageOptions(port=port)) as listener:
        assert listener.proto == socket.IPPROTO_TCP, "else each answer waits 40 ms for an acknowledgement"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"host": "0.0.0.0"}, "--tls-cert FILE --tls-key FILE, or --insecure"),
        ({"host": "::"}, "--tls-cert FILE --tls-key FILE, or --insecure"),
        ({"host": "example.org"}, "--tls-cert FILE --tls-key FILE, or --insecure"),
        ({"tls_cert": Path("text")}, "go together"),
        ({"tls_cert": Path("text"), "tls_key": Path("none")}, "no such file"),
        ({"tls_cert": Path("text"), "tls_key": Path("text")}, "cannot be used"),
        ({"uds": Path("x.sock"), "port": 1234}, "--uds cannot be combined"),
        ({"uds": Path("missing/x.sock")}, "there is no folder"),
        ({"data_roots": (Path("missing"),)}, "there is no such folder"),
        ({"allowed_hosts": ("http://x/",)}, "not the name of a host"),
        ({"host": "999.1.1.1", "is_insecure": True}, "not an address of this machine"),
        ({"host": "192.0.2.1", "is_insecure": True}, "cannot listen on 192.0.2.1"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], sentence: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("text").write_text("x")
    with pytest.raises(UserError, match=sentence) as error:
        found = PageOptions(**options)
        found.check()
        listen(found)
    assert "\n" not in str(error.value)


def test_a_page_for_other_machines_needs_a_decision(serve: Serve) -> None:
    done = serve.call("serve", "--root=runs", "--host=0.0.0.0")
    assert done.code == 2
    assert len(done.err.splitlines()) == 1
    assert not (serve.folder / "runs").exists()


def test_secrets_that_others_could_know_are_refused(tmp_path: Path) -> None:
    root = tmp_path / "runs"
    with shown(root):
        pass
    folder, token = root / ".serve", root / ".serve" / "token"
    for path, mode in ((token, 0o640), (folder, 0o750)):
        path.chmod(mode)
        with pytest.raises(StorageError, match="others can read"), shown(root):
            pass
        path.chmod(mode & 0o700)
    token.rename(tmp_path / "mine")
    token.symlink_to(tmp_path / "mine")
    with pytest.raises(StorageError, match="link"), shown(root):
        pass
    token.unlink()
    os.mkfifo(token, 0o600)
    with pytest.raises(StorageError, match="not what distrain writes"), shown(root):
        pass
    token.unlink()
    token.mkdir(0o700)
    with pytest.raises(StorageError, match="not what distrain writes"), shown(root):
        pass
    token.rmdir()
    token.touch(0o600)
    with pytest.raises(StorageError, match="holds no token"), shown(root):
        pass
    folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError, match="link"), shown(root):
        pass


def test_secrets_of_another_user_are_refused_and_are_no_run() -> None:
    def look() -> object:
        seen = [run.path.name for run in find_runs(root)], JobTable(root).read()
        try:
            with shown(root):
                pass
        except StorageError as error:
            return f"{seen} {error}"
        return "shown"

    with public_folder() as folder:
        root = folder / "runs"
        with shown(root):
            text = as_nobody(look)
    assert text.startswith("([], []) ")
    assert "belongs to root" in text
    assert "--no-page" in text


def test_a_page_that_fails_does_not_end_the_queue(serve: Serve) -> None:
    serve.start("--slots=1", program=("-c", FAULTY.format(fault="raise ValueError('a fault')")))
    wait_until(lambda: "the page has ended (ValueError: a fault)" in serve.out, "a note on the page")
    time.sleep(0.5)
    assert serve.process is not None
    assert serve.process.poll() is None
    assert serve.stop()[0] == 0


def test_serve_ends_in_seconds_though_a_request_hangs(serve: Serve) -> None:
    serve.start(program=("-c", FAULTY.format(fault="pass")))
    address = serve.link.partition("/login")[0]
    token = (serve.folder / "runs" / ".serve" / "token").read_text().strip()
    assert status_of(f"{address}/login") == 200
    with pytest.raises(httpx.ReadTimeout):
        headers = {"Authorization": f"Bearer {token}"}
        httpx.get(f"{address}/hang", headers=headers, timeout=1, trust_env=False, verify=False)
    code, seconds = serve.stop()
    assert code == 0, serve.err
    assert seconds < 6
    assert "ended; runs that have begun continue" in serve.out
    assert not (serve.folder / "runs" / ".serve" / "address").exists()


@pytest.mark.slow
def test_connections_leave_the_queue_the_files_that_it_needs(serve: Serve) -> None:
    limited = (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (200, 200)); from distrain.cli import main; main()"
    )
    serve.start("--slots=1", program=("-c", limited))
    assert status_of(serve.link) == 200
    port = int(serve.link.partition("/login")[0].rpartition(":")[2])
    silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(400)]
    time.sleep(2.5)  # ticks of the scheduler, which reads files
    assert serve.process is not None
    assert psutil.Process(serve.process.pid).num_fds() < 200
    assert "failed" not in serve.out
    for connection in silent:
        connection.close()
    assert status_of(serve.link) == 200


def test_no_page_runs_the_queue_alone(serve: Serve) -> None:
    serve.start("--no-page")
    assert "page  http" not in serve.out
    assert not (serve.folder / "runs" / ".serve").exists()
    done = serve.call("serve", "--root=runs", "--link")
    assert done.code == 2
    assert "shows no page" in done.err


def test_a_unix_socket_is_private_and_needs_the_token(tmp_path: Path) -> None:
    path = tmp_path / "page.sock"
    options = PageOptions(uds=path)
    with shown(tmp_path / "runs", options) as page:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert page.link.startswith("http://localhost:8765/login?code=")
        with httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost:9000") as client:
            assert client.get("/").status_code == 303
            assert client.get("/", headers={"Authorization": f"Bearer {page.token}"}).status_code == 200
            assert client.get("/", headers={"Host": "evil.example:9000"}).status_code == 400
            answer = client.post("/api/v1/login", json={"code": page.code})
            assert answer.status_code == 200
            headers = {"X-CSRF-Token": answer.json()["csrf"], "Origin": "http://localhost:9000"}
            assert client.post("/api/v1/logout", headers={**headers, "Origin": "http://localhost:1"}).status_code == 403
            assert client.post("/api/v1/logout", headers=headers).status_code == 204
        with pytest.raises(StorageError, match="used by another program"):
            listen(options)
    assert not path.exists()
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    listen(options).close()
    path.unlink()
    path.write_text("a file")
    with pytest.raises(StorageError, match="not a socket of yours"):
        listen(options)
    with pytest.raises(StorageError, match="no socket can be created"):
        listen(PageOptions(uds=tmp_path / ("x" * 120)))
    tmp_path.chmod(0o777)
    with pytest.raises(StorageError, match="others can write"):
        listen(options)


def test_tls_protects_the_cookie_and_other_machines_may_come(tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    names = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]
    words = ["openssl", "req", "-x509", *curve, "-nodes", "-keyout", str(key), "-out", str(cert), *names, "-days", "1"]
    subprocess.run(words, check=True, capture_output=True)
    options = PageOptions(host="0.0.0.0", tls_cert=cert, tls_key=key, allowed_hosts=("gpu.example.org",))
    with shown(tmp_path / "runs", options) as page:
        port = int(page.address.rpartition(":")[2])
        assert page.address == f"https://{socket.gethostname()}:{port}"
        context = ssl.create_default_context(cafile=str(cert))
        with httpx.Client(base_url=f"https://127.0.0.1:{port}", verify=context, trust_env=False) as client:
            answer = client.post("/api/v1/login", json={"code": page.code})
            cookie = answer.headers["set-cookie"]
            assert cookie.startswith(f"__Host-distrain-{port}=")
            assert "; Secure" in cookie
            assert "Path=/" in cookie
            assert "max-age" in answer.headers["strict-transport-security"]
            assert client.get("/").status_code == 200
            csrf = {"X-CSRF-Token": answer.json()["csrf"]}
            for host, origin, code in (
                (f"127.0.0.1:{port}", f"http://127.0.0.1:{port}", 403),
                (f"127.0.0.1:{port}", f"https://127.0.0.1:{port}", 204),
            ):
                sent = {**csrf, "Host": host, "Origin": origin}
                assert client.post("/api/v1/logout", headers=sent).status_code == code, sent
            token = {"Authorization": f"Bearer {page.token}"}
            for host, code in (
                ("gpu.example.org", 200),
                ("gpu.example.org:8443", 200),
                (f"{socket.gethostname()}:{port}", 200),
                ("127.0.0.2", 400),
                (f"127.0.0.2:{port}", 400),
                ("example.org", 400),
            ):
                assert client.get("/", headers={**token, "Host": host}).status_code == code, host
        with pytest.raises(httpx.RemoteProtocolError):
            httpx.get(f"http://127.0.0.1:{port}/", trust_env=False)


def test_the_unit_of_systemd_has_the_options_of_the_page() -> None:
    words = PageOptions(
        host="10.0.0.5",
        port=80,
        tls_cert=Path("/c.pem"),
        tls_key=Path("/k.pem"),
        is_insecure=True,
        allowed_hosts=("a", "b"),
        data_roots=(Path("/data one"),),
        allow_code=True,
    ).arguments
    unit = unit_file(Path("/runs"), slots=2, max_devices=None, more=words)
    assert (
        "serve --root=/runs --slots=2 --host=10.0.0.5 --port=80 --tls-cert=/c.pem --tls-key=/k.pem --allow-host=a "
        '--allow-host=b "--data-root=/data one" --insecure --allow-code\n' in unit
    )
    repeated = next(line for line in unit.splitlines() if " --systemd > " in line)
    assert "serve --root=/runs --slots=2 --host=10.0.0.5" in repeated and "'--data-root=/data one'" in repeated
    assert PageOptions().arguments == []
