"""Documentation that can be generated is, and what can be run is run."""

from __future__ import annotations

import importlib.util
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from datakit.cli import main

ROOT = Path(__file__).resolve().parent.parent


def _pages():
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.PAGES


@pytest.mark.parametrize("name", ["checks.md", "cli.md", "formats.md", "kinds.md"])
def test_generated_pages_are_up_to_date(name):
    assert (ROOT / "docs" / name).read_text("utf-8") == _pages()[name](), "run: make docs"


def test_every_command_and_option_has_help():
    for name, command in main.commands.items():
        assert command.help, name
        for parameter in command.params:
            if parameter.param_type_name == "option":
                assert parameter.help, f"{name} {parameter.name}"


def test_commands_in_the_readme_exist():
    text = (ROOT / "README.md").read_text("utf-8")
    for line in re.findall(r"^(?:\$ )?datakit ([^\n]*)", text, re.M):
        words = shlex.split(line.split("#")[0].replace("·", ";").split(";")[0])
        assert words[0] in main.commands or words[0].startswith("-"), line
        options = {o for p in main.commands[words[0]].params for o in p.opts} if words[0] in main.commands else set()
        assert {w for w in words if w.startswith("--")} <= options | {"--help"}, line


def test_python_blocks_of_the_readme_run(tmp_path):
    text = (ROOT / "README.md").read_text("utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, re.S)
    assert blocks
    (tmp_path / "raw").mkdir()
    good = (ROOT / "fixtures" / "openai" / "good.jsonl").read_bytes()
    (tmp_path / "raw" / "chat.jsonl").write_bytes(good)
    code = "\n".join(blocks)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_links_between_pages_lead_somewhere():
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]:
        for target in re.findall(r"\]\(([^)#][^)]*)\)", page.read_text("utf-8")):
            if "://" not in target:
                assert (page.parent / target.split("#")[0]).exists(), f"{page.name}: {target}"
