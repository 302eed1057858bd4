"""A real Prometheus that reads what a test serves."""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.cameras import free_port

PATIENCE_SECONDS = 120.0


def has_prometheus() -> bool:
    return shutil.which("prometheus") is not None and shutil.which("promtool") is not None


class Prometheus:
    """One that runs.

    Attributes:
        url: of its own page.
    """

    def __init__(self, url: str) -> None:
        self.url = url

    def api(self, path: str, **arguments: str | float) -> Any:
        """The `data` of an answer of its API. Raises OSError, as for an expression that is wrong."""
        query = urllib.parse.urlencode(arguments)
        with urllib.request.urlopen(f"{self.url}/api/v1/{path}?{query}", timeout=30) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[dict[str, Any]]:
        """An expression's value now: samples with their labels."""
        found: list[dict[str, Any]] = self.api("query", query=expression)["result"]
        return found

    def wait_for(self, expression: str) -> list[dict[str, Any]]:
        """The same, as soon as there is something."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while not (found := self.query(expression)):
            if time.monotonic() > deadline:
                raise TimeoutError(f"Prometheus never had {expression}")
            time.sleep(0.2)
        return found


@contextmanager
def prometheus(
    folder: Path, config: dict[str, Any], rules: Path | None = None
) -> Iterator[Prometheus]:
    """A Prometheus with a configuration, until the end.

    Args:
        folder: for its data.
        config: as of its file.
        rules: a file of rules to load.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    if rules is not None:
        (folder / "rules").mkdir(exist_ok=True)
        shutil.copy(rules, folder / "rules")
    port = free_port()
    with (folder / "log.txt").open("w") as log:
        process = subprocess.Popen(
            ["prometheus", f"--config.file={folder / 'prometheus.yml'}",
             f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
    found = Prometheus(f"http://127.0.0.1:{port}")
    try:
        _wait_until_ready(found, process, folder / "log.txt")
        yield found
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()


def _wait_until_ready(found: Prometheus, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            urllib.request.urlopen(f"{found.url}/-/ready", timeout=10).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"Prometheus did not start: {log.read_text()[-2000:]}") from None
            time.sleep(0.1)
