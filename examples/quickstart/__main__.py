"""`make quickstart`: start a mesh, deploy real models, ask each of them four ways, show who answered.

Everything goes through the same commands and clients a user has: `msm up`, `msm deploy`, curl, tritonclient (HTTP and
gRPC) and `msm infer`. The mesh goes on running until Ctrl-C; with `--exit` it is stopped after the show.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from examples.quickstart import clients, zoo

ROOT = Path(__file__).resolve().parents[2]
MSM = str(Path(sys.executable).parent / "msm")
START_DEADLINE_S = 30.0
console = Console(width=None if sys.stdout.isatty() else 120)


def main() -> int:
    options = arguments()
    began = time.monotonic()
    home = Path(options.home).resolve()
    console.print("[bold]1. Models[/] trained on real data sets, one pretrained network from a package")
    cases = zoo.build(home / "models")
    with mesh(home / "data", options) as addresses:
        console.print("[bold]2. Deploy[/]")
        with ThreadPoolExecutor(2) as pool:
            for line in pool.map(lambda case: deploy(case, home / "data"), cases):
                console.print(f"   {line}")
        console.print("[bold]3. Ask[/] each model four ways, through Envoy")
        wrong = show(cases, addresses["gateway"], home / "data")
        console.print(f"   took {time.monotonic() - began:.1f} s in all")
        console.print(f"[bold]Inference[/]  {addresses['gateway']}   (REST and gRPC)")
        console.print(f"[bold]API, status page[/]  {addresses['api']}   (token: msm token --show)")
        if wrong:
            console.print(f"[red]{wrong} answers were wrong[/]")
        elif not options.exit:
            console.print("The mesh goes on running. Ctrl-C stops it.")
            wait_for_interrupt()
    return 1 if wrong else 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make quickstart", description=__doc__)
    parser.add_argument("--exit", action="store_true", help="stop the mesh after the show")
    parser.add_argument("--home", default=str(ROOT / ".msm"), help="where models and the mesh's data are kept")
    parser.add_argument("--gateway-port", default="8080", help="port for inference requests (0: any free one)")
    parser.add_argument("--api-port", default="8081", help="port for the API and the status page (0: any free one)")
    return parser.parse_args()


@contextmanager
def mesh(data: Path, options: argparse.Namespace) -> Iterator[dict[str, str]]:
    """Run `msm up` as a child, yield its addresses, stop it in order."""
    command = [MSM, "up", "--data-dir", str(data)]
    command += ["--gateway-port", options.gateway_port, "--api-port", options.api_port]
    data.mkdir(parents=True, exist_ok=True)
    (data / "node.json").unlink(missing_ok=True)
    log = data / "up.log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True)
    try:
        yield wait_until_up(process, data, log)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)


def wait_until_up(process: subprocess.Popen[bytes], data: Path, log: Path) -> dict[str, str]:
    """The addresses of the mesh, once it answers; its own words when it does not start."""
    deadline = time.monotonic() + START_DEADLINE_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the mesh did not start:\n{log.read_text()}")
        if (data / "node.json").exists():
            addresses: dict[str, str] = json.loads((data / "node.json").read_text())
            return addresses
        time.sleep(0.05)
    raise SystemExit(f"the mesh was not up within {START_DEADLINE_S} s:\n{log.read_text()}")


def msm(data: Path, *arguments: str) -> str:
    """Run one msm command against this mesh and return what it printed."""
    environment = {**os.environ, "MSM_HOME": str(data)}
    done = subprocess.run([MSM, *arguments], capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise SystemExit(f"msm {' '.join(arguments)} failed ({done.returncode}):\n{done.stderr}{done.stdout}")
    return done.stdout


def deploy(case: zoo.Case, data: Path) -> str:
    """Deploy one model; already deployed and unchanged is fine."""
    arguments = [
        "deploy",
        case.name,
        str(case.path),
        "--version",
        "v1",
        *(["--trusted"] if case.trusted else []),
    ]
    msm(data, *arguments)
    found = json.loads(msm(data, "get", "model", case.name, "--output", "json"))["status"]["versions"]["v1"]
    megabytes = (found.get("memoryBytes") or 0) / 2**20
    return f"{case.name:<14} {case.about:<44} {found['format']:<9} {megabytes:6.2f} MiB measured"


def show(cases: list[zoo.Case], gateway: str, data: Path) -> int:
    """Ask every model by every client and print a table; returns the number of wrong answers."""
    ways = {
        "curl": clients.by_curl,
        "tritonclient HTTP": clients.by_triton_http,
        "tritonclient gRPC": clients.by_triton_grpc,
    }
    table = Table("model", "answer", *ways, "msm infer", "answered by")
    wrong = 0
    for case in cases:
        answers = [ask(gateway, case) for ask in ways.values()]
        printed = json.loads(msm(data, "infer", case.name, "--json", clients.oip_body(case), "--output", "json"))
        answers.append(clients.from_json(printed))
        verdicts = [case.is_right(answer) for answer in answers]
        wrong += verdicts.count(False)
        reply = httpx.post(
            f"{gateway}/v2/models/{case.name}/infer", content=clients.oip_body(case), headers=clients.JSON
        )
        who = f"{reply.headers['x-msm-version']} in {reply.headers['x-msm-worker']}"
        marks = ["[green]right[/]" if right else "[red]WRONG[/]" for right in verdicts]
        table.add_row(case.name, clients.summary(case, answers[0]), *marks, who)
    console.print(table)
    return wrong


def wait_for_interrupt() -> None:
    try:
        signal.pause()
    except KeyboardInterrupt:
        console.print("stopping …")


if __name__ == "__main__":
    sys.exit(main())
