"""The rules of the house, held by the tests: direction of imports, no torch in the control plane, sizes, docstrings."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = ("configs", "storage", "adapters", "daemon")
LARGEST_FILE = 400
LARGEST_FUNCTION = 60
LARGEST_TOP = {"storage": 4, "adapters": 12, "daemon": 8}
"""Most files beside the folders of a room, its `__init__.py` among them."""
HEAVY = ("torch", "transformers", "kornia", "accelerate", "torchmetrics", "torchvision")
"""Packages that only `adapters` and the inference plane may import."""
TENSOR_PLANE = ("daemon/serving/", "daemon/demo/")
"""Parts of the daemon that run in a process of their own and may hold tensors."""
DURABLE = "storage/durable/"
"""The only folder with fsync and rename."""
PICKLES = "adapters/checkpoints/pickles.py"
"""The only file that reads pickles; only `mfmd import --unsafe-pickle` reaches it."""
PICKLE_READERS = {"torch.load", "torch.jit.load", "torch.package.PackageImporter", "np.load"}
DURABLE_CALLS = {("os", "fsync"), ("os", "fdatasync"), ("os", "rename"), ("os", "replace"), ("shutil", "move")}
LATE_IN_CLI = ("configs", "storage", "adapters", "daemon", "pydantic", "httpx", "yaml", "numpy")
"""What a command file imports only inside functions: `mfmd --help` needs none of it, and settings alone cost 0.2 s."""
CLI_HELPERS = "daemon/cli/settings/"
"""The folder of the command line that the command files themselves import late."""

SOURCES = {path.relative_to(ROOT).as_posix(): path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))}
CONTROL_PLANE = [name for name in SOURCES if not name.startswith(("adapters/", *TENSOR_PLANE))]

Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache
def _tree(name: str) -> ast.Module:
    return ast.parse(SOURCES[name].read_text(encoding="utf-8"), filename=name)


def _functions(name: str) -> Iterator[Function]:
    return (node for node in ast.walk(_tree(name)) if isinstance(node, Function))


def _imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Line and full name of everything imported anywhere in `tree`, inside functions too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.lineno, node.module


def _imports_on_load(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """What importing the module imports: not what stands inside functions or under `if TYPE_CHECKING`."""
    waiting: list[ast.AST] = list(tree.body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from _imports(node)
        elif not isinstance(node, Function) and not (
            isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        ):
            waiting += ast.iter_child_nodes(node)


def _is_for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def _public(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, Function | ast.ClassDef]]:
    """Public functions, classes and their public methods."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield prefix + node.name, node
            if isinstance(node, ast.ClassDef):
                yield from _public(node.body, f"{prefix}{node.name}.")


def _run(code: str) -> None:
    answer = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=150)
    assert answer.returncode == 0, answer.stderr


def test_every_room_is_looked_at() -> None:
    assert {name.split("/")[0] for name in SOURCES} == set(ROOMS)


def test_a_room_imports_only_rooms_to_its_left() -> None:
    wrong = [
        f"{name}:{line} imports {imported}"
        for name in SOURCES
        for line, imported in _imports(_tree(name))
        if imported.split(".")[0] in ROOMS[ROOMS.index(name.split("/")[0]) + 1 :]
    ]
    assert not wrong, "\n".join(wrong)


def _modules(tree: ast.AST) -> Iterator[str]:
    """Every module of ours that `tree` imports: of `from daemon.gate import decide` both `daemon.gate` and its file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if _file_of(alias.name))
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            inner = [name for alias in node.names if _file_of(name := f"{node.module}.{alias.name}")]
            yield from inner
            if len(inner) < len(node.names) and _file_of(node.module):
                yield node.module


def _file_of(module: str) -> str | None:
    path = module.replace(".", "/")
    return next((name for name in (f"{path}.py", f"{path}/__init__.py") if name in SOURCES), None)


def _assert_no_circle(needs: dict[str, set[str]]) -> None:
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as circle:
        pytest.fail(" -> ".join(circle.args[1]))


@pytest.mark.parametrize("room", ROOMS)
def test_parts_of_a_room_import_each_other_in_one_direction(room: str) -> None:
    """Its folders and the files beside them can be put in an order in which each imports earlier ones only."""

    def part(module: str) -> str:
        return module.removesuffix(".py").replace("/", ".").split(".")[1]

    needs: dict[str, set[str]] = {}
    for name in SOURCES:
        if name.startswith(f"{room}/") and name != f"{room}/__init__.py":
            imported = {part(module) for module in _modules(_tree(name)) if module.startswith(f"{room}.")}
            needs.setdefault(part(name), set()).update(imported - {part(name)})
    assert len(needs) > 3
    _assert_no_circle(needs)


def test_no_two_files_import_each_other() -> None:
    """Nor do longer circles exist; imports inside functions and under `if TYPE_CHECKING` count."""
    needs = {
        name: {file for module in _modules(_tree(name)) if (file := _file_of(module)) and file != name}
        for name in SOURCES
    }
    _assert_no_circle(needs)


def test_the_top_of_a_room_is_small() -> None:
    """Most files stand in folders that say what they do."""
    tops = {room: [name for name in SOURCES if name.startswith(f"{room}/") and name.count("/") == 1] for room in ROOMS}
    assert not {room: tops[room] for room, most in LARGEST_TOP.items() if len(tops[room]) > most}


def test_imports_name_their_room() -> None:
    """Relative imports would hide the direction."""
    wrong = [
        f"{name}:{node.lineno}"
        for name in SOURCES
        for node in ast.walk(_tree(name))
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert not wrong, "\n".join(wrong)


def test_control_plane_never_names_a_tensor_library() -> None:
    """The observer is a process of its own; its torch stands inside its one function."""
    wrong = [
        f"{name}:{line} imports {imported}"
        for name in CONTROL_PLANE
        for line, imported in (_imports_on_load if name == "daemon/observer.py" else _imports)(_tree(name))
        if imported.split(".")[0] in HEAVY
    ]
    assert not wrong, "\n".join(wrong)


def test_importing_the_whole_control_plane_imports_no_torch() -> None:
    modules = [
        name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for name in CONTROL_PLANE
        if not name.endswith("__main__.py")
    ]
    _run(
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    found = [heavy for heavy in {(*HEAVY, 'jinja2')!r} if heavy in sys.modules]\n"
        "    assert not found, f'{name} imports {found}'\n"
    )


def test_the_adapters_package_itself_imports_no_torch() -> None:
    """Its errors are caught by the command line, which must not pay for tensors to do so."""
    _run("import sys, adapters, adapters.errors\nassert 'torch' not in sys.modules")


def test_only_models_that_are_built_of_it_import_transformers_on_load() -> None:
    """It takes 2.8 s and 120 MB in each process (decision 0020)."""
    loading = {(name, imported) for name in SOURCES for _, imported in _imports_on_load(_tree(name))}
    models = {f"adapters.networks.{name}" for name in ("encoders.dinov2", "encoders.dinov3", "encoders.mit")}
    models.add("adapters.networks.foundation_model")
    of_them = {name for name, imported in loading if imported.startswith("transformers")}
    assert of_them == {f"{model.replace('.', '/')}.py" for model in models}
    assert {name for name, imported in loading if imported in models} == {"adapters/recipes/foundation.py"}
    assert "adapters.recipes.foundation" not in {imported for _, imported in loading}, "a term that few rounds have"


def test_command_files_import_late() -> None:
    wrong = [
        f"{name}:{line} imports {imported}"
        for name in SOURCES
        if name.startswith("daemon/cli/") and not name.startswith(CLI_HELPERS)
        for line, imported in _imports_on_load(_tree(name))
        if imported.split(".")[0] in LATE_IN_CLI and not imported.startswith(("daemon.cli", "daemon.exit_codes"))
    ]
    assert not wrong, "\n".join(wrong)


def test_loading_the_command_line_loads_little() -> None:
    heavy = {*HEAVY, "pydantic", "zarr", "numpy", "httpx", "fastapi", "uvicorn", "structlog", "yaml"}
    _run(f"import sys, daemon.cli.app\nheavy = {heavy!r} & set(sys.modules)\nassert not heavy, heavy")


def test_durable_calls_stand_in_one_file() -> None:
    wrong = [
        f"{name}:{node.lineno} {node.func.value.id}.{node.func.attr}"
        for name in SOURCES
        if not name.startswith(DURABLE)
        for node in ast.walk(_tree(name))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and isinstance(node.func.value, ast.Name)
        and (node.func.value.id, node.func.attr) in DURABLE_CALLS
    ]
    assert not wrong, "\n".join(wrong)


def test_no_pickle_is_loaded() -> None:
    pickles = {"pickle", "dill", "joblib", "cloudpickle", "shelve", "marshal", "torch.serialization"}
    found = [(name, line) for name in SOURCES for line, imported in _imports(_tree(name)) if imported in pickles]
    found += [
        (name, node.lineno)
        for name in SOURCES
        for node in ast.walk(_tree(name))
        if isinstance(node, ast.Attribute) and ast.unparse(node) in PICKLE_READERS
    ]
    assert {name for name, _ in found} == {PICKLES}, found


def test_only_the_import_command_can_reach_pickles() -> None:
    """A daemon or server that cannot name the reader cannot be talked into reading one."""

    def importers(module: str) -> set[str]:
        return {name for name in SOURCES for _, imported in _imports(_tree(name)) if imported == module}

    assert importers("adapters.checkpoints.pickles") == {"adapters/checkpoints/importing.py"}
    assert importers("adapters.checkpoints.importing") == {"daemon/cli/training.py"}


def test_files_are_small() -> None:
    sizes = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in SOURCES.items()}
    assert not {name: size for name, size in sizes.items() if size > LARGEST_FILE}


def test_functions_are_small() -> None:
    sizes = {
        f"{name}:{node.lineno} {node.name}": (node.end_lineno or node.lineno) - node.lineno + 1
        for name in SOURCES
        for node in _functions(name)
    }
    assert not {name: size for name, size in sizes.items() if size > LARGEST_FUNCTION}


def test_public_names_say_what_they_are() -> None:
    silent = [
        f"{name}:{node.lineno} {public}"
        for name in SOURCES
        for public, node in _public(_tree(name).body)
        if not ast.get_docstring(node)
    ]
    silent += [name for name in SOURCES if not ast.get_docstring(_tree(name))]
    assert not silent, "\n".join(silent)


def test_functions_say_what_they_return() -> None:
    silent = [
        f"{name}:{node.lineno} {node.name}" for name in SOURCES for node in _functions(name) if node.returns is None
    ]
    assert not silent, "\n".join(silent)


def test_nothing_is_left_unfinished() -> None:
    marks = ("TO" + "DO", "FIX" + "ME", "XX" + "X", "NotImplemented" + "Error")
    texts = {name: path.read_text(encoding="utf-8") for name, path in SOURCES.items()}
    assert not {name: mark for name, text in texts.items() for mark in marks if mark in text}
