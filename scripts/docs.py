"""`make docs`: writes docs/reference/cli.md from the commands and checks every link between the documents."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
REFERENCE = ROOT / "docs" / "reference" / "cli.md"
MSM = str(Path(sys.executable).parent / "msm")


def help_of(*command: str) -> str:
    """What a command says of itself, in 100 columns."""
    environment = {**os.environ, "COLUMNS": "100", "TERMINAL_WIDTH": "100", "NO_COLOR": "1"}
    done = subprocess.run([MSM, *command, "--help"], capture_output=True, text=True, check=True, env=environment)
    return "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())


def commands(overview: str) -> list[str]:
    """The names of the commands in the overview."""
    listed = overview.partition("Commands:")[2].partition("\n\n")[0]
    return re.findall(r"^  ([a-z]+)\s", listed, re.MULTILINE)


def reference() -> str:
    """The page of all commands."""
    overview = help_of()
    names = commands(overview)
    with ThreadPoolExecutor(2) as pool:
        pages = list(pool.map(help_of, names))
    parts = ["# Commands", "Made by `make docs` from what the commands say of themselves.", f"```\n{overview}\n```"]
    parts += [f"## msm {name}\n\n```\n{page}\n```" for name, page in zip(names, pages, strict=True)]
    return "\n\n".join(parts) + "\n"


def broken_links() -> list[str]:
    """Links of Markdown files that lead nowhere."""
    found = []
    for page in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
            if "://" not in target and not (page.parent / target).exists():
                found.append(f"{page.relative_to(ROOT)}: {target}")
    return found


def main() -> int:
    REFERENCE.parent.mkdir(exist_ok=True)
    REFERENCE.write_text(reference())
    print(f"wrote {REFERENCE.relative_to(ROOT)}")
    for link in broken_links():
        print(f"broken link in {link}", file=sys.stderr)
    return 1 if broken_links() else 0


if __name__ == "__main__":
    sys.exit(main())
