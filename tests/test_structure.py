"""The house: imports point one way, the base install is light, public names are meant, nothing heavy is loaded."""

from __future__ import annotations

import ast
import importlib
import io
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Container
from pathlib import Path

import pytest

import datakit

ROOT = Path(__file__).resolve().parent.parent

# A module may import what stands on a line above its own, or beside it. TYPE_CHECKING imports do not count.
LEVELS = [
    ["errors", "findings", "launch", "limit", "policies", "terminal"],
    ["schema", "reading.limits", "reading.foreign", "tally"],
    ["reading.rows"],
    ["messages", "reading.columnar", "reading.decode", "formats.shapes"],
    ["reading.blocks", "reading.splits", "formats.declare", "checks.declare"],
    ["formats.parse", "reading.delimiter"],
    [
        "formats.catalog.texts",
        "formats.catalog.conversations",
        "formats.catalog.preferences",
        "formats.catalog.prompts",
    ],
    ["formats.catalog", "formats.normalise", "formats.reshape"],
    ["formats"],
    ["formats.mapping"],
    [
        "checks.reasons",
        "checks.structure",
        "checks.turns",
        "checks.tools",
        "checks.preference",
        "checks.kto",
        "checks.content",
        "checks.formatting",
        "checks.cleaning",
        "checks.pairing",
        "checks.mixing",
    ],
    ["checks"],
    ["reading.sources", "reading.sample", "detection", "encode", "plain", "whole"],
    ["output.footer", "output.rowgroup", "step"],
    [
        "fit",
        "pack",
        "labels",
        "control",
        "methods",
        "tokens.load",
        "templates.blind",
        "templates.looks",
        "templates.environment",
        "templates.tracked",
    ],
    ["easydel", "sizes", "tokens.engines", "templates.compiler", "templates.output"],
    ["tokens.encode", "templates.spans"],
    ["tokens.positions", "tokens.compare"],
    ["templates.skeletons"],
    ["templates.foresight"],
    ["templates.template"],
    ["jobs"],
    ["sequences"],
    ["formatter"],
    ["report", "worker", "workers"],
    ["startup"],
    ["output.disk", "output.card", "output.manifest", "output.shards", "output.transaction"],
    ["output.place"],
    ["plan", "shards"],
    ["ready"],
    ["mixing.filters", "mixing.order", "mixing.schedule"],
    ["mixing.recipe"],
    ["mixing.apportion"],
    ["mixing.arrangement"],
    ["run", "describe", "jsonschema"],
    ["rewrite"],
    ["easydata.sources"],
    ["easydata.files"],
    ["easydata.making"],
    ["cleaning.words", "cleaning.rows", "cleaning.texts", "cleaning.evaluation"],
    ["cleaning.keys", "cleaning.minhash"],
    ["cleaning.division", "cleaning.duplicates", "cleaning.contamination"],
    ["pairing.contents"],
    ["pairing.relation", "pairing.rows", "pairing.selection"],
    ["pairing.matching"],
    ["pairing.unpairing"],
    ["pairing.joining"],
    ["api"],
    ["preparation", "screen"],
    ["mixing.sources"],
    ["mixing.gather"],
    ["mixing.writing", "mixing.blocks"],
    ["mixing.streaming", "mixing.torch_stream"],
    ["tokenview"],
    ["commandline"],
    ["commands.group"],
    ["commands.cleaning", "commands.converting", "commands.formatting", "commands.mixing", "commands.pairing"],
    ["cli"],
    ["__main__"],
]
PACKAGES = {"cleaning", "commands", "easydata", "mixing", "pairing", "reading", "output", "templates", "tokens"}
"""Docstrings and public names only."""

TRAINGLUE = [
    ["bco", "engines", "memory", "precision.formats", "handoff.modelfile"],
    ["methods", "rewards", "precision.float8"],
    ["precision.preparing", "precision.audit"],
    ["precision"],
    ["config", "options", "hooks", "data"],
    ["models", "streams", "runs"],
    ["callbacks"],
    ["training", "machine.probe", "machine.signatures"],
    ["machine.diagnosis", "handoff.exporting"],
    ["cli"],
    ["__main__"],
]

HOUSES = [("datakit", LEVELS, PACKAGES), ("trainglue", TRAINGLUE, {"machine", "handoff"})]


def _modules(house: str):
    for path in sorted((ROOT / house).rglob("*.py")):
        name = ".".join(path.relative_to(ROOT / house).with_suffix("").parts)
        yield name.removesuffix("__init__").removesuffix("."), path


def _imports(path: Path, house: str, known: Container[str]):
    """Names of modules of the same house that a module imports at any place but under TYPE_CHECKING."""
    tree = ast.parse(path.read_text("utf-8"))
    hidden = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in hidden:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == house:
            base = node.module.removeprefix(house).removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}".strip(".")
                yield inner if inner in known else base


@pytest.mark.parametrize(("house", "levels", "packages"), HOUSES)
def test_imports_point_one_way(house, levels, packages):
    packages = {"", *packages}
    level = {name: number for number, names in enumerate(levels) for name in names}
    assert {name for name, _ in _modules(house)} - packages == set(level), "a new module needs a level"
    for name, path in _modules(house):
        if name in packages:
            continue
        for target in set(_imports(path, house, level)) - packages:
            assert level[target] <= level[name], f"{house}.{name} imports {house}.{target}, which stands above it"


@pytest.mark.parametrize(("house", "levels", "packages"), HOUSES)
def test_there_is_no_cycle(house, levels, packages):
    known = {name for names in levels for name in names}
    graph = {name: set(_imports(path, house, known)) & known - {name} for name, path in _modules(house)}
    done: set[str] = set()

    def visit(name, trail):
        assert name not in trail, f"cycle: {' -> '.join([*trail, name])}"
        if name not in done:
            for target in graph.get(name, ()):
                visit(target, [*trail, name])
            done.add(name)

    for name in graph:
        visit(name, [])


def test_datakit_never_imports_trainglue():
    for _, path in _modules("datakit"):
        assert "trainglue" not in path.read_text("utf-8").replace("datakit-trainglue", "")


def test_trainglue_never_imports_the_command_line_of_datakit():
    for name, path in _modules("trainglue"):
        found = {
            imported for imported in _imports(path, "datakit", ()) if imported.split(".")[0] in ("cli", "commands")
        }
        assert not found, f"trainglue.{name} imports {found}"


WAY = "cli config methods options data streams engines models hooks training runs callbacks".split()


def _lines_of_code(path: Path) -> int:
    """Lines that hold more than a docstring or a comment."""
    code, docs = set(), set()
    source = path.read_text("utf-8")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            docs |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.string.strip() and token.type != tokenize.COMMENT:
            code |= set(range(token.start[0], token.end[0] + 1))
    return len(code - docs)


def test_the_way_of_a_run_is_read_in_one_sitting():
    sizes = {name: _lines_of_code(path) for name, path in _modules("trainglue")}
    assert sum(sizes[name] for name in WAY) <= 2400
    assert sum(sizes.values()) <= 4050


def test_importing_datakit_is_light():
    heavy = ("torch", "transformers", "datasets", "ray", "pandas", "trl")
    code = f"import sys, datakit, datakit.cli; print([m for m in {heavy!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_names_are_sorted_and_there():
    importlib.import_module("datakit.api")  # a module must not take the place of a verb of its name
    names = [name for name in datakit.__all__ if not name.startswith("__")]
    assert names == sorted(names)
    assert all(callable(getattr(datakit, name)) for name in names)


def test_base_dependencies_need_no_trainer():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    base = " ".join(project["dependencies"])
    assert not any(name in base for name in ("torch", "transformers", "datasets", "trl", "unsloth"))
    assert {"hf", "train", "unsloth", "all"} <= project["optional-dependencies"].keys()
    assert "unsloth" not in " ".join(project["optional-dependencies"]["all"])


def test_version_and_changelog_agree():
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert f"## {datakit.__version__}" in text


def test_windows_is_refused_clearly():
    code = "import sys; sys.platform = 'win32'\ntry:\n    import datakit\nexcept ImportError as e:\n    print(e)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Windows" in done.stdout
    assert "WSL" in done.stdout
