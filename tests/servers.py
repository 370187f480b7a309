"""Real store servers for the tests: installed under `.servers/`, started on loopback, ended by process id.

One server of each kind serves all test processes at once (pytest-xdist workers, several runs). Each holds a
shared file lock while it uses the server; who finds itself to be the last ends it. A process that is killed
loses its lock with its life, and a server that was left behind is adopted by the next run.

    python -m tests.servers install     install all that can be had here; fails if something is missing
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.ports import free_port

ROOT = Path(__file__).resolve().parent.parent
SERVERS = ROOT / ".servers"
NODE_PACKAGES = {"azurite": "azurite@3.35.0", "s3rver": "s3rver@3.7.1"}
MINISTACK = "ministack==1.5.33"
CEPH_PACKAGES = ("radosgw", "ceph-mon", "ceph-osd", "ceph-common", "bc")
KINDS = ("ministack", "ceph", "azurite", "s3rver")
START_ATTEMPTS = 3
READY_SECONDS = 30.0

_restarted: list[subprocess.Popen[bytes]] = []
"""Children of this process; whose object is kept is not warned of."""


class Unavailable(Exception):
    """The server cannot be had on this machine; the message says why."""


@dataclass(frozen=True)
class Server:
    """One that runs. `pids` are by role, in the order in which to end them."""

    kind: str
    port: int
    pids: dict[str, int]
    directory: Path

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"


# Installing


def install(kind: str) -> None:
    """Make the server's programs available. Raises Unavailable."""
    SERVERS.mkdir(exist_ok=True)
    with _locked(SERVERS / f"{kind}.install.lock"):
        if is_installed(kind):
            return
        try:
            if kind == "ministack":
                _install_ministack()
            elif kind == "ceph":
                _install_ceph()
            else:
                _install_from_npm(kind)
        except (OSError, subprocess.CalledProcessError) as error:
            detail = getattr(error, "stdout", None) or ""
            raise Unavailable(f"{kind} cannot be installed: {error}\n{detail[-2000:]}") from error


def is_installed(kind: str) -> bool:
    if kind == "ceph":
        return all(shutil.which(tool) for tool in ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "ceph"))
    return _program(kind).exists()


def _program(kind: str) -> Path:
    if kind == "ministack":
        return SERVERS / "ministack/bin/ministack"
    return SERVERS / kind / "node_modules/.bin" / {"azurite": "azurite-blob", "s3rver": "s3rver"}[kind]


def _install_ministack() -> None:
    # An environment of its own: it pins libraries that ours must be free to choose.
    target = SERVERS / "ministack"
    if shutil.which("uv"):
        _call("uv", "venv", "--quiet", "--clear", "--python", sys.executable, str(target))
        _call("uv", "pip", "install", "--quiet", "--python", str(target / "bin/python"), MINISTACK)
    else:
        _call(sys.executable, "-m", "venv", "--clear", str(target))
        _call(str(target / "bin/python"), "-m", "pip", "install", "--quiet", MINISTACK)


def _install_from_npm(kind: str) -> None:
    if not shutil.which("npm"):
        raise Unavailable(f"{kind} needs Node.js and npm, which are not installed")
    _call("npm", "install", "--no-audit", "--no-fund", "--prefix", str(SERVERS / kind), NODE_PACKAGES[kind])


def _install_ceph() -> None:
    if not shutil.which("apt-get"):
        raise Unavailable("Ceph is installed from Debian's packages only, and there is no apt-get here")
    if os.geteuid() != 0:
        raise Unavailable(f"Ceph is not installed; as root: apt-get install {' '.join(CEPH_PACKAGES)}")
    _call("apt-get", "update")
    _call("apt-get", "install", "-y", "--no-install-recommends", *CEPH_PACKAGES)


def _call(*command: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(
        command,
        check=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=900,
    )


# Starting and ending


@contextlib.contextmanager
def shared_server(kind: str, *, keep_logs: Callable[[], bool] = lambda: False) -> Iterator[Server]:
    """The server of this kind that all test processes share; started by the first, ended by the last. Logs
    that are kept stay until the next start."""
    directory = SERVERS / "run" / kind
    directory.mkdir(parents=True, exist_ok=True)
    users = (directory.parent / f"{kind}.users.lock").open("w")
    gate = directory.parent / f"{kind}.gate.lock"
    try:
        with _locked(gate):
            fcntl.flock(users, fcntl.LOCK_SH)
            server = _adopted(kind, directory) or _remembered(start(kind, _emptied(directory)))
        yield server
    finally:
        with _locked(gate):
            try:
                fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass  # others still use it
            else:
                if remaining := _adopted(kind, directory):
                    stop(remaining, keep_logs=keep_logs())
                (directory / "server.json").unlink(missing_ok=True)
        users.close()


@contextlib.contextmanager
def own_server(kind: str, directory: Path) -> Iterator[Server]:
    """A server for one test alone, which may stop and continue its processes."""
    directory.mkdir(parents=True, exist_ok=True)
    server = start(kind, directory)
    try:
        yield server
    finally:
        stop(server)


def start(kind: str, directory: Path) -> Server:
    """Install if needed, start, and wait until it answers. Raises Unavailable. Logs stay in `directory`."""
    install(kind)
    for attempt in range(START_ATTEMPTS):
        work = directory / f"{int(time.time())}-{os.getpid()}-{attempt}"
        work.mkdir()
        port = free_port()
        pids = _start_ceph(work, port) if kind == "ceph" else {kind: _spawn(kind, work, port)}
        server = Server(kind, port, pids, work)
        if pids and _is_ready(server):
            return server
        stop(server, keep_logs=True)
    raise Unavailable(f"{kind} did not start; see {directory}\n{_last_words(work)}")


def stop(server: Server, *, keep_logs: bool = False) -> None:
    """End the server's processes, each after the other: politely, then not."""
    for pid in server.pids.values():
        for sent in (signal.SIGCONT, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, sent)
            if sent is not signal.SIGCONT and _wait_until_gone(pid, 3.0):
                break
    if not keep_logs:
        shutil.rmtree(server.directory, ignore_errors=True)


def restart_gateway(server: Server) -> None:
    """Start a gateway of Ceph in place of the one that was killed, without waiting for it to answer."""
    command = ["radosgw", "-c", str(server.directory / "ceph.conf"), "-n", "client.rgw", "--foreground"]
    with (server.directory / "log/gateway.log").open("ab") as log:
        started = subprocess.Popen(
            command, cwd=server.directory, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    server.pids["gateway"] = started.pid
    _restarted.append(started)


def _last_words(work: Path) -> str:
    """The end of what the server has written."""
    for name in ("log/setup.log", "start.log", "log"):
        if (work / name).is_file():
            return (work / name).read_text(errors="replace")[-1000:]
    return ""


def _spawn(kind: str, work: Path, port: int) -> int:
    program = str(_program(kind))
    environment = dict(os.environ)
    if kind == "ministack":
        command = [program]
        environment |= {"GATEWAY_PORT": str(port), "BIND_HOST": "127.0.0.1"}
    elif kind == "azurite":
        command = [program, "--inMemoryPersistence", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
        command += ["--skipApiVersionCheck", "--disableTelemetry", "--silent"]
    else:
        command = [program, "-d", str(work / "data"), "-a", "127.0.0.1", "-p", str(port)]
        (work / "data").mkdir()
    # Through a shell that ends at once: the server outlives the test process that happened to start it.
    script = 'exec 3>&1; "$@" > log 2>&1 < /dev/null 3>&- & echo $! >&3'
    started = subprocess.run(
        ["sh", "-c", script, "sh", *command],
        cwd=work,
        env=environment,
        start_new_session=True,
        check=True,
        text=True,
        stdout=subprocess.PIPE,
    )
    return int(started.stdout)


def _start_ceph(work: Path, port: int) -> dict[str, int]:
    with (work / "start.log").open("w") as log:
        result = subprocess.run(
            ["bash", str(ROOT / "tests/tools/start_ceph.sh"), str(work), str(port), str(free_port())],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
            check=False,
            timeout=300,
        )
    if result.returncode != 0:
        return {}
    roles = {"gateway": "client.rgw", "osd": "osd.0", "monitor": "mon.a"}
    return {role: int((work / f"{name}.pid").read_text()) for role, name in roles.items()}


def _is_ready(server: Server) -> bool:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline and all(_is_alive(pid) for pid in server.pids.values()):
        try:
            urllib.request.urlopen(server.endpoint, timeout=2).close()
        except urllib.error.HTTPError as answer:
            answer.close()  # any answer is an answer
        except OSError:
            time.sleep(0.05)
            continue
        return True
    return False


def _emptied(directory: Path) -> Path:
    for entry in directory.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
    return directory


def _remembered(server: Server) -> Server:
    births = {role: _birth(pid) for role, pid in server.pids.items()}
    known = {"port": server.port, "pids": server.pids, "births": births, "directory": str(server.directory)}
    (server.directory.parent / "server.json").write_text(json.dumps(known))
    return server


def _adopted(kind: str, directory: Path) -> Server | None:
    """The server that was started there and still runs, whoever started it."""
    try:
        known = json.loads((directory / "server.json").read_text())
    except (FileNotFoundError, ValueError):
        return None
    server = Server(kind, known["port"], known["pids"], Path(known["directory"]))
    # The number of a process that ended may belong to a stranger now: compare when it was born.
    living = {role: pid for role, pid in server.pids.items() if _birth(pid) == known["births"][role]}
    if len(living) == len(server.pids) and _is_ready(server):
        return server
    stop(Server(kind, server.port, living, server.directory))
    return None


def _birth(pid: int) -> str:
    """When the process was started, in a form only good for comparing; empty if it is not there."""
    if sys.platform == "linux":
        try:
            # proc(5): after the name in parentheses, the state is field 3 and the start time field 22.
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return ""
        return "" if fields[0] == "Z" else fields[19]
    command = ["ps", "-o", "stat=,lstart=", "-p", str(pid)]
    shown = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False).stdout.split(None, 1)
    return shown[1].strip() if len(shown) == 2 and not shown[0].startswith("Z") else ""


def _is_alive(pid: int) -> bool:
    return _birth(pid) != ""


def _wait_until_gone(pid: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while _is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def main() -> int:
    if sys.argv[1:] != ["install"]:
        print(__doc__, file=sys.stderr)
        return 2
    failed = False
    for kind in KINDS:
        try:
            install(kind)
            print(f"{kind}: installed")
        except Unavailable as error:
            failed = True
            print(f"{kind}: NOT AVAILABLE: {error}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
