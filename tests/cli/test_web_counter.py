"""examples/web_counter.py as README says: real processes, and curl for a browser."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.cli.programs import ROOT, Program, output, running
from tests.docs.documents import README, blocks

pytestmark = pytest.mark.slow

COUNTER = [sys.executable, "-W", "error", str(ROOT / "examples" / "web_counter.py")]
PATIENCE_SECONDS = 60.0


@dataclass(frozen=True)
class Answer:
    """Of an HTTP request; status 0 is none at all."""

    status: int
    headers: dict[str, str]
    body: str


def curl(*arguments: str) -> Answer:
    done = subprocess.run(
        ["curl", "--insecure", "--silent", "--include", "--max-time", "20", *arguments],
        capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS,
    )  # fmt: skip
    if done.returncode:
        return Answer(0, {}, "")
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    first, *lines = head.splitlines()
    return Answer(int(first.split()[1]), dict(line.split(": ", 1) for line in lines), body)


@dataclass
class Nodes:
    """Processes of the example, by the address at which they count."""

    store: str
    at: dict[str, Program] = field(default_factory=dict)

    def url(self, address: str) -> str:
        return f"https://{address}/clicks"

    def leader(self) -> str:
        """The address of the one that leads."""
        return str(json.loads(output("-p", self.store, "status", "--json"))["leader"]["address"])

    def kill(self, address: str) -> None:
        program = self.at.pop(address)
        program.signal(signal.SIGKILL)
        program.ended()


@contextlib.contextmanager
def counting(store: str, count: int) -> Iterator[Nodes]:
    with contextlib.ExitStack() as stack:
        programs = [stack.enter_context(running(store, "127.0.0.1:0", program=COUNTER)) for _ in range(count)]
        lines = [program.until("Counting at https://127.0.0.1:") for program in programs]
        addresses = [re.findall(r"https://([^/]+)/clicks", line)[0] for line in lines]
        yield Nodes(store, dict(zip(addresses, programs, strict=True)))


class Visitor:
    """Clicks and looks, at another node each time, and brings what the last answer told."""

    def __init__(self, nodes: Nodes, number: int) -> None:
        self._nodes, self._number, self._turn = nodes, number, number
        self._epoch: str | None = None
        self.clicks: list[int] = []
        """What it was told each time it clicked."""

    def click(self) -> None:
        """Click once, however often it has to be sent."""
        key = f"visitor {self._number}, click {len(self.clicks)}"
        self.clicks.append(self._ask("-X", "POST", "-H", f"idempotency-key: {key}"))

    def look(self) -> int:
        return self._ask()

    def _ask(self, *options: str) -> int:
        give_up_at = time.monotonic() + PATIENCE_SECONDS
        while time.monotonic() < give_up_at:
            addresses = list(self._nodes.at)
            self._turn += 1
            token = ["-H", f"x-lbc-epoch: {self._epoch}"] if self._epoch else []
            answer = curl(*options, *token, self._nodes.url(addresses[self._turn % len(addresses)]))
            if answer.status == 200:
                assert int(answer.headers["x-lbc-epoch"]) >= int(self._epoch or 0)
                self._epoch = answer.headers["x-lbc-epoch"]
                return int(answer.body)
            assert answer.status in (0, 500, 503), answer
            time.sleep(0.05)
        raise AssertionError("nobody counts")


def until(condition: Callable[[], object]) -> None:
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < give_up_at
        time.sleep(0.02)


def test_the_counter_runs_as_shown(tmp_path: Path) -> None:
    ((_, shown),) = [block for block in blocks(README, "sh") if "web_counter.py" in block[1]]
    lines = [shlex.split(line, comments=True) for line in shown.splitlines()]
    addresses: dict[str, str] = {}
    told: list[str] = []
    with contextlib.ExitStack() as stack:
        for program, *arguments in lines:
            if program == "python":
                _, _, address = arguments
                started = [sys.executable, "-W", "error", str(ROOT / arguments[0])]
                node = stack.enter_context(running(str(tmp_path / "store"), "127.0.0.1:0", program=started))
                addresses[address] = re.findall(r"https://([^/]+)/", node.until("Counting at"))[0]
                continue
            assert program == "curl"
            *options, url = arguments
            for address, actual in addresses.items():
                url = url.replace(address, actual)
            done = subprocess.run(
                ["curl", "--silent", "--show-error", *options, url],
                cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
            )  # fmt: skip
            assert (done.returncode, done.stderr) == (0, ""), (options, url)
            told.append(done.stdout)
    assert len(addresses) >= 2
    assert told == ["1", "1"]


def test_a_browser_without_code_reads_its_clicks_on_any_node(tmp_path: Path) -> None:
    jar = tmp_path / "cookies"
    with counting(str(tmp_path / "store"), 3) as nodes:
        a, b, c = nodes.at
        for number, (one, other) in enumerate([(a, b), (b, c), (c, a), (a, c)], start=1):
            clicked = curl("-b", str(jar), "-c", str(jar), "-X", "POST", nodes.url(one))
            assert (clicked.status, clicked.body) == (200, str(number))
            assert f"\tlbc-epoch\t{clicked.headers['x-lbc-epoch']}\n" in jar.read_text()
            assert curl("-b", str(jar), "-c", str(jar), nodes.url(other)).body == str(number)
        repeated = [curl("-X", "POST", "-H", "idempotency-key: 5th", nodes.url(at)).body for at in (a, b, c)]
        assert repeated == ["5"] * 3
        assert curl("-X", "POST", "-H", f"idempotency-key: {'x' * 65}", nodes.url(a)).status == 422
        assert curl("-H", "x-lbc-epoch: many", nodes.url(a)).status == 400
        assert curl("-H", "x-lbc-epoch: 4711", nodes.url(a)).body == "5"
        assert curl(f"https://{a}/.lbc/status").status == 401, "that is for members"
        for program in nodes.at.values():
            program.signal(signal.SIGINT)
            assert program.ended() == 0
            said = [line for line in program.seen if "stood still" not in line]  # as a busy machine makes it do
            assert len(said) == 1, program.seen


def test_every_click_counts_once_though_the_leader_is_killed(tmp_path: Path) -> None:
    with counting(str(tmp_path / "store"), 3) as nodes, ThreadPoolExecutor(6) as pool:
        visitors, enough = [Visitor(nodes, number) for number in range(6)], threading.Event()

        def visit(visitor: Visitor) -> None:
            while not enough.is_set():
                visitor.click()
                assert visitor.look() >= visitor.clicks[-1]

        def clicked() -> int:
            return sum(len(visitor.clicks) for visitor in visitors)

        try:
            visits = [pool.submit(visit, visitor) for visitor in visitors]
            until(lambda: clicked() >= 20 or any(visit.done() for visit in visits))
            killed = nodes.leader()
            nodes.kill(killed)
            before = clicked()
            until(lambda: clicked() >= before + 20 or any(visit.done() for visit in visits))
        finally:
            enough.set()
        for visit in visits:
            visit.result()
        assert nodes.leader() != killed
        total = clicked()
        assert sorted(click for visitor in visitors for click in visitor.clicks) == list(range(1, total + 1))
        last = max(visitors, key=lambda visitor: visitor.clicks[-1])
        assert [last.look() for _ in nodes.at] == [total] * 2
