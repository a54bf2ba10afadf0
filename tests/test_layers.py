"""The layers: which part may import which, and what light commands must not load. The table is the architecture."""

from __future__ import annotations

import ast
import functools
import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from support.waiting import LONGEST

ROOT = Path(__file__).resolve().parent.parent
FOUNDATION = {"errors", "files", "units", "versions", "visible", "architecture"}
TERMINAL = {"typer", "rich"}
TEST_ORACLES = {"transformers", "diffusers", "accelerate"}
NEVER = {*TEST_ORACLES, "click"}


@dataclass(frozen=True)
class Layer:
    """`modules`: parts of helios_cli that it may import in addition to itself. `banned`: packages it may not
    import at all. `lazy`: packages it may import only inside functions."""

    modules: set[str]
    banned: set[str] = frozenset()
    lazy: set[str] = frozenset()


LAYERS = {
    "__init__": Layer({"", "api", "engine", "errors", "recipe"}),
    "api": Layer({*FOUNDATION, "engine", "farm", "film", "cost", "recipe"}, banned={"torch", "numpy", *TERMINAL}),
    "__main__": Layer({"cli"}),
    "errors": Layer(set(), banned={"torch", "numpy", "pydantic", *TERMINAL}),
    "files": Layer(set(), banned={"torch", "numpy", "pydantic", *TERMINAL}),
    "units": Layer(set(), banned={"torch", "numpy", "pydantic", *TERMINAL}),
    "visible": Layer(set(), banned={"torch", "numpy", "pydantic", *TERMINAL}),
    "versions": Layer(set(), banned={"torch", "numpy", "pydantic", *TERMINAL}),
    "architecture": Layer({"units"}, banned={"torch", "numpy", "pydantic", *TERMINAL}),
    "machine": Layer(FOUNDATION, banned=TERMINAL, lazy={"torch"}),
    "measured": Layer({*FOUNDATION, "", "machine"}, banned={"torch", "numpy", "pydantic", *TERMINAL}),
    "device": Layer({*FOUNDATION, "machine"}, banned=TERMINAL, lazy={"torch"}),
    "child": Layer({"", *FOUNDATION, "machine"}, banned={"torch", "numpy", *TERMINAL}),
    "console": Layer(FOUNDATION, banned={"torch"}, lazy={"rich"}),
    "track": Layer({*FOUNDATION, "engine"}, banned={"torch", *TERMINAL}),
    "farm_track": Layer({*FOUNDATION, "engine", "track"}, banned={"torch", *TERMINAL}),
    "progress": Layer({*FOUNDATION, "console", "engine", "track"}, banned={"torch", "typer"}, lazy={"rich"}),
    "farm_view": Layer(
        {*FOUNDATION, "console", "engine", "farm_track", "progress", "stop", "track"},
        banned={"torch", "typer"},
        lazy={"rich"},
    ),
    "films_view": Layer(
        {*FOUNDATION, "console", "engine", "farm_track", "farm_view", "film", "progress", "stop"},
        banned={"torch", "typer"},
        lazy={"rich"},
    ),
    "stop": Layer(set(), banned={"torch", "numpy", *TERMINAL}),
    "options": Layer({*FOUNDATION, "recipe", "weights"}, banned={"torch", "rich"}),
    "live": Layer({*FOUNDATION, "engine", "film", "recipe", "weights"}, banned={"numpy", *TERMINAL}, lazy={"torch"}),
    "plan_view": Layer({*FOUNDATION, "console", "cost"}, banned={"torch", *TERMINAL}),
    "doctor_view": Layer({*FOUNDATION, "console", "weights"}, banned={"torch", *TERMINAL}),
    "check_view": Layer({*FOUNDATION, "console", "check"}, banned={"torch", *TERMINAL}),
    "recipe": Layer(FOUNDATION, banned={"torch", *TERMINAL}),
    "sampling": Layer(FOUNDATION, banned=TERMINAL),
    "model": Layer({*FOUNDATION, "measured"}, banned=TERMINAL),
    "weights": Layer(FOUNDATION, banned=TERMINAL),
    "film": Layer({"", *FOUNDATION, "machine", "recipe", "weights"}, banned={"torch", *TERMINAL}),
    "engine": Layer(
        {
            "",
            *FOUNDATION,
            "machine",
            "device",
            "measured",
            "child",
            "cost",
            "check",
            "film",
            "recipe",
            "sampling",
            "model",
            "weights",
        },
        banned=TERMINAL,
    ),
    "farm": Layer(
        {"", *FOUNDATION, "machine", "device", "child", "stop", "cost", "engine", "film", "recipe", "weights"},
        banned={"torch", *TERMINAL},
        lazy={"ray"},
    ),
    "cost": Layer(
        {"", *FOUNDATION, "machine", "device", "measured", "film", "recipe", "weights"}, banned={"torch", *TERMINAL}
    ),
    "check": Layer({*FOUNDATION, "film"}, banned={"torch", *TERMINAL}),
    "bench": Layer(
        {
            "",
            *FOUNDATION,
            "machine",
            "device",
            "child",
            "stop",
            "cost",
            "engine",
            "farm",
            "farm_track",
            "farm_view",
            "film",
            "recipe",
            "sampling",
            "model",
            "weights",
        },
        banned=TERMINAL,
    ),
    "train": Layer(
        {
            "",
            *FOUNDATION,
            "machine",
            "device",
            "child",
            "check",
            "engine",
            "film",
            "recipe",
            "sampling",
            "model",
            "weights",
            "bench",
        },
        banned=TERMINAL,
    ),
    "train_view": Layer({*FOUNDATION, "console", "progress", "train"}, banned={"torch", "typer"}, lazy={"rich"}),
    "commands": Layer(
        {
            "",
            *FOUNDATION,
            "console",
            "progress",
            "films_view",
            "machine",
            "device",
            "engine",
            "farm",
            "film",
            "recipe",
            "weights",
            "cost",
            "check",
            "bench",
            "options",
            "stop",
            "plan_view",
            "doctor_view",
            "check_view",
            "live",
            "train",
            "train_view",
        },
        banned={"rich"},
        lazy={"torch", "numpy"},
    ),
    "cli": Layer({"", "commands", "console", "errors", "stop"}, banned={"torch", "rich"}),
}

WEIGHTS_WITH_TORCH = {"ahead", "load", "offload", "reader"}
"""The modules of weights/ that may import torch when they are imported; the others read files and ask the Hub."""

COMPARED_WITH = {("bench", "reference")}
"""The module that runs the test oracles on purpose, in a process of its own: the other side of a benchmark."""

PRINTERS = {"console.py"}
EXITERS = {"console.py", "cli.py", "__main__.py"}


def sources(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def part_of(path: Path) -> str:
    """`helios_cli/film/writer.py` belongs to `engine`, `helios_cli/units.py` to `units`."""
    return path.relative_to(ROOT / "helios_cli").with_suffix("").parts[0]


def imports(tree: ast.AST, package: str, *, at_import: bool = False) -> set[str]:
    """Dotted names that a module imports; with `at_import` only those that run when it is imported."""
    found = set()
    for node in walk(tree, at_import=at_import):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join(
                    [*package.split(".")[: len(package.split(".")) - node.level + 1], *filter(None, [base])]
                )
            found.update(f"{base}.{alias.name}" for alias in node.names)
    return found


def walk(node: ast.AST, *, at_import: bool):
    """All statements below `node`; with `at_import` without function bodies and `if TYPE_CHECKING`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue
        if at_import and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if at_import and isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        yield child
        yield from walk(child, at_import=at_import)


def faults(part: str, name: str, tree: ast.Module) -> list[str]:
    """Return the imports by which the module `name` of `part` breaks the table."""
    layer = LAYERS[part]
    package = f"helios_cli.{part}"
    own = f"commands.{name}" if part == "commands" else part
    found = []
    for imported in imports(tree, package):
        top, _, rest = imported.partition(".")
        if top == "helios_cli":
            target = rest.split(".")[0] if rest.split(".")[0] in LAYERS else ""
            if target not in layer.modules and not f"{rest}.".startswith(f"{own}."):
                found.append(f"{package}.{name} imports {imported}")
        elif top in TEST_ORACLES and (part, name) in COMPARED_WITH:
            continue
        elif top in NEVER | layer.banned:
            found.append(f"{package}.{name} imports {top}")
    for imported in imports(tree, package, at_import=True):
        if imported.partition(".")[0] in layer.lazy or (
            part == "weights" and imported.partition(".")[0] == "torch" and name not in WEIGHTS_WITH_TORCH
        ):
            found.append(f"{package}.{name} imports {imported} when it is imported")
    return found


def test_imports_follow_the_table():
    found = [fault for path in sources("helios_cli") for fault in faults(part_of(path), path.stem, tree_of(path))]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("part", "name", "text"),
    [
        ("units", "units", "import torch"),
        ("recipe", "plan", "def f():\n    import torch"),
        ("recipe", "plan", "from helios_cli.engine import events"),
        ("recipe", "plan", "from ..engine import events"),
        ("model", "dit", "from helios_cli.sampling.noise import draw"),
        ("weights", "hub", "import torch"),
        ("engine", "render", "from helios_cli.console import console"),
        ("engine", "render", "import rich.progress"),
        ("commands", "plan", "import torch"),
        ("commands", "plan", "from helios_cli.commands.render import render"),
        ("commands", "plan", "from helios_cli.model import dit"),
        ("cli", "cli", "from helios_cli.engine import events"),
        ("machine", "machine", "class A:\n    import torch"),
        ("model", "umt5", "def f():\n    from transformers import UMT5Config"),
    ],
)
def test_the_table_catches(part, name, text):
    assert len(faults(part, name, ast.parse(text))) == 1


@pytest.mark.parametrize(
    ("part", "name", "text"),
    [
        ("commands", "plan", "def f():\n    import torch\nfrom helios_cli import __version__"),
        ("commands", "plan", "if TYPE_CHECKING:\n    import torch"),
        ("recipe", "plan", "from .schema import Recipe\nfrom helios_cli.units import chunks_for"),
        ("weights", "load", "import torch"),
    ],
)
def test_the_table_allows(part, name, text):
    assert faults(part, name, ast.parse(text)) == []


def test_no_part_imports_one_that_imports_it():
    """The table has no circle: some part always imports only parts that are already placed."""
    placed, left = {""}, dict(LAYERS)
    while free := [part for part, layer in left.items() if layer.modules <= placed | {part}]:
        placed.update(free)
        for part in free:
            del left[part]
    assert not left


def test_measurements_on_a_bare_machine_import_no_package_but_torch():
    """Checks quickly, by reading, what `bench/test_bare.py` runs in the slow tiers."""
    seen, left, packages = set(), {"helios_cli.bench.ours", "helios_cli.bench.chip", "helios_cli.bench.everything"}, {}
    while left:
        module = left.pop()
        seen.add(module)
        path = ROOT.joinpath(*module.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        for imported in imports(tree_of(path), module.rpartition(".")[0], at_import=True):
            top, *rest = imported.split(".")
            if top == "helios_cli":
                names = (".".join([top, *rest[:end]]) for end in range(len(rest) + 1))
                left |= {name for name in names if is_module(name)} - seen
            else:
                packages[top] = module
    for package in {*sys.stdlib_module_names, "torch", "triton", "numpy", "helios_kernels"}:
        packages.pop(package, None)
    assert len(seen) > 100 and not packages


def is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def test_every_part_has_a_layer():
    """A new folder or top-level module needs a line in the table."""
    assert {part_of(path) for path in sources("helios_cli")} <= set(LAYERS)


def test_kernels_know_nothing_of_helios_cli():
    for path in (ROOT / "kernels").rglob("*.py"):
        tops = {name.partition(".")[0] for name in imports(ast.parse(path.read_text()), "helios_kernels")}
        assert not tops & {"helios_cli", *NEVER, *TERMINAL}, path


def test_only_the_console_prints_and_only_the_boundary_exits():
    for path in sources("helios_cli"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                call = ast.unparse(node.func)
                place = f"{path}:{node.lineno}"
                assert call != "print" or path.name in PRINTERS, place
                assert call not in ("sys.exit", "exit", "quit", "os._exit", "SystemExit") or path.name in EXITERS, place


def test_no_error_is_swallowed_whole():
    """No bare `except:`, and no `except Exception` whose body does nothing."""
    for path in sources("helios_cli", "kernels"):
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, f"{path}:{node.lineno}"
                broad = ast.unparse(node.type) in ("Exception", "BaseException")
                assert not (broad and isinstance(node.body[0], ast.Pass)), f"{path}:{node.lineno}"


def test_no_generator_hands_its_mode_to_who_takes_its_values():
    """A mode of PyTorch set by a `with` around a `yield` also holds in the consumer until it requests the next
    value. A mode set by a decorator of the generator does not, and a context manager is meant to pass it on."""
    modes = re.compile(
        r"torch\.(inference_mode|no_grad|enable_grad|set_grad_enabled|autocast|device)\b|sdpa_kernel|stream\("
    )
    for path in sources("helios_cli", "kernels"):
        if not modes.search(path.read_text()):
            continue
        for function in ast.walk(tree_of(path)):
            decorators = map(ast.unparse, getattr(function, "decorator_list", ()))
            if not isinstance(function, ast.FunctionDef) or any("contextmanager" in name for name in decorators):
                continue
            for block in filter(lambda node: isinstance(node, ast.With), ast.walk(function)):
                yields = any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(block))
                held = [item for item in block.items if modes.search(ast.unparse(item.context_expr))]
                assert not (yields and held), f"{path}:{block.lineno}"


BROKEN_RECIPE = 'version = 1\n[[shot]]\npromt = "a boat"\nseconds = -1\n'

LIGHT_COMMANDS = [
    (["--help"], 0),
    (["--version"], 0),
    (["nonsense"], 2),
    (["doctor", "--nonsense"], 2),
    (["models", "list"], 0),
    (["models", "info", "./no-such-folder"], 2),
    (["recipe", "check", "broken.toml"], 2),
    (["plan", "broken.toml"], 2),
    (["plan", "a boat", "--seconds", "2"], 0),
    (["bench", "render", "--synthetic", "huge"], 2),
    (["render", "broken.toml"], 2),
    (["render", "a boat", "--size", "huge"], 2),
    (["live", "a boat", "--hold", "soon"], 2),
    (["live", "a boat", "--serve", "eight"], 2),
]

REPORT_MODULES = """
import json, sys
from helios_cli.cli import main
code = main(sys.argv[1:])
heavy = {"torch", "diffusers", "transformers", "numpy", "accelerate"} & set(sys.modules)
sys.stderr.write("\\n" + json.dumps([code, sorted(heavy)]))
"""


@pytest.mark.process
@pytest.mark.slow
def test_a_film_needs_no_compiler(tmp_path):
    """Three seconds of every start, once."""
    heavy = "torch._dynamo", "torch._inductor", "sympy", "triton"
    script = f"import sys; from helios_cli.cli import main; main(sys.argv[1:]); print(set({heavy}) & set(sys.modules))"
    film = ["render", "a red ball moves left", "--size", "64x64", "--frames", "1", "--device", "cpu", "-q"]
    run = subprocess.run(
        [sys.executable, "-c", script, *film], cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST
    )
    assert run.stdout.splitlines()[-1:] == ["set()"], run.stdout + run.stderr


@pytest.mark.process
@pytest.mark.parametrize(("arguments", "code"), LIGHT_COMMANDS, ids=str)
def test_light_commands_leave_torch_alone(arguments, code, tmp_path):
    (tmp_path / "broken.toml").write_text(BROKEN_RECIPE)
    command = [sys.executable, "-c", REPORT_MODULES, *arguments]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST)
    assert json.loads(run.stderr.splitlines()[-1]) == [code, []], run.stderr


@pytest.mark.process
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["nonsense"]], ids=str)
def test_help_imports_no_command(arguments):
    """Starting costs what the terminal needs, and no part of helios that a command uses."""
    script = (
        "import sys; from helios_cli.cli import main; main(sys.argv[1:]);"
        "sys.stderr.write('\\n' + ' '.join(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=LONGEST)
    imported = set(run.stderr.splitlines()[-1].split())
    own = {name.split(".", 1)[1] for name in imported if name.startswith("helios_cli.")}
    assert own == {"cli", "commands", "console", "errors", "stop", "units", "visible"}
    assert not imported & {"yaml", "huggingface_hub", "PIL", "ftfy", "numpy", "torch"}


@pytest.mark.process
def test_a_plan_of_a_prompt_imports_no_part_that_other_films_need():
    script = "import sys; from helios_cli.cli import main; main(sys.argv[1:]); print(*sys.modules)"
    plan = ["plan", "a boat", "--seconds", "2"]
    run = subprocess.run([sys.executable, "-c", script, *plan], capture_output=True, text=True, timeout=LONGEST)
    imported = set(run.stdout.splitlines()[-1].split())
    rare = {"recipe.contents", "recipe.lists", "film.after", "film.ffmpeg", "film.sound", "weights.adapters"}
    rare = {f"helios_cli.{name}" for name in rare}
    assert "helios_cli.cost.estimate" in imported and not imported & {
        *rare,
        "yaml",
        "tomllib",
        "html",
        "concurrent.futures",
    }
