"""The code's own rules: linted, formatted, typed, and no room leans on a higher one."""

from __future__ import annotations

import ast
import importlib
import operator
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

import fleece
from fleece import api

_ROOT = Path(__file__).parents[2]

_FLOORS = (
    {
        "acl",
        "amounts",
        "attempts",
        "environment",
        "errors",
        "cache",
        "cancel",
        "closing",
        "durations",
        "events",
        "fileblob",
        "flock",
        "folder",
        "guests",
        "handles",
        "jsontext",
        "likely",
        "naming",
        "pace",
        "plugins",
        "private",
        "programs",
        "reach",
        "temporary",
        "terminal",
        "there",
        "version",
        "writeback",
        "writing",
    },
    {"hashing", "keys", "extents", "ordered", "tree", "compare"},
    {"delta"},
    {"nbd"},
    {"disk"},
    {"store"},
    {"source", "files", "providers"},
    {"machine"},
    {"engine"},
    {"api", "__init__", "testing"},
    {"fleet"},
    {"cli", "__main__"},
)
"""Rooms from the lowest floor up. `fleece` itself shows what `fleece.api` names."""

_INNER = (
    {"work"},
    {"check", "clients"},
    {"http"},
    {"backup", "restore", "serve"},
    {"upkeep", "export"},
)
"""The rooms inside `fleece.engine`, likewise. Rooms of one floor do not know each other."""


def _kinds(room: str) -> tuple[str, ...]:
    """The rooms in a room: each is one kind of what the room has."""
    found = sorted((_ROOT / "fleece" / room).glob("*/__init__.py"))
    return tuple(f"fleece.{room}.{path.parent.name}" for path in found)


_KINDS_OF_SOURCES = _kinds("source")
_KINDS_OF_STORES = _kinds("store")
_KNOW_A_KIND = {
    "fleece/engine/serve/boot.py",
    "fleece/source/open.py",
    "fleece/api.py",
    "fleece/machine/hypervisor.py",
    "fleece/machine/libvirt.py",
    "fleece/testing/provider/__main__.py",
    "fleece/testing/provider/checks.py",
    "fleece/testing/provider/subject.py",
}
"""Boot starts a QEMU of its own; open chooses by scheme, and api names what users may name. What
puts a guest into libvirt talks to it as its source does, and names checkpoints for that. The tests
of providers talk to one as its source does."""

_DOORS = {
    "source/image": 14,
    "delta": 44,
    "nbd": 29,
    "disk": 30,
    "store": 70,
    "source": 77,
    "source/libvirt": 10,
    "source/nbd": 6,
    "source/provider": 8,
    "machine": 11,
    "engine/clients": 9,
    "engine/http": 5,
    "engine/work": 44,
    "files": 8,
    "cli": 37,
    "fleet": 33,
    "fleet/notices": 5,
}
"""How many names other rooms may take from a room, of whatever file; of a room not named, 4. Who
must raise a number asks first whether the new name can be one that is handed out already."""

_SHOWN = 207
"""How many names the public API may have."""

_STARTS = {f"subprocess.{name}" for name in ("run", "Popen", "call", "check_call", "check_output")}

_FILES = sorted((_ROOT / "fleece").rglob("*.py"))


def _name(path: Path) -> str:
    return str(path.relative_to(_ROOT))


_LINTERS = (
    ("ruff", "check", "fleece", "tests", "tools", "docs"),
    ("ruff", "format", "--check", "fleece", "tests", "tools", "docs"),
    ("mypy", "--strict", "-p", "fleece", "-p", "tests"),
)


@pytest.mark.parametrize("words", _LINTERS, ids=" ".join)
def test_the_code_passes_the_linters(words: Sequence[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=_ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{' '.join(words)}:\n{done.stdout}{done.stderr}"


def test_pre_commit_runs_the_same() -> None:
    told = (_ROOT / ".pre-commit-config.yaml").read_text()
    entries = re.findall(r"entry: \.venv/bin/python -m (.+)", told)
    assert entries == [" ".join(words) for words in _LINTERS]


def _room(path: Path) -> str:
    return path.relative_to(_ROOT / "fleece").parts[0].removesuffix(".py")


def _floor(room: str) -> int:
    return next(number for number, rooms in enumerate(_FLOORS) if room in rooms)


def _imports(path: Path) -> Iterator[str]:
    """The dotted names of all that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            # `from fleece import events` imports a module, `from fleece.events import x` a name.
            yield from (
                f"{module}.{alias.name}" if module == "fleece" else module for alias in node.names
            )


def test_every_room_has_a_floor() -> None:
    rooms = set().union(*_FLOORS)
    assert {_room(path) for path in _FILES} == rooms


@pytest.mark.parametrize("path", _FILES, ids=_name)
def test_no_import_goes_up(path: Path) -> None:
    mine = _floor(_room(path))
    for name in _imports(path):
        top, _, rest = name.partition(".")
        if top == "fleece":
            assert _floor(rest.partition(".")[0] or "__init__") <= mine, f"imports {name}"


def _inner(parts: Sequence[str]) -> str | None:
    """The room inside the engine that a dotted name or a path leads to."""
    inside = parts[:2] == ["fleece", "engine"] and len(parts) > 2
    return parts[2] if inside and parts[2] != "__init__" else None


@pytest.mark.parametrize("path", [path for path in _FILES if _room(path) == "engine"], ids=_name)
def test_the_engines_rooms_have_floors_too(path: Path) -> None:
    mine = _inner([*path.relative_to(_ROOT).with_suffix("").parts])
    floors = {room: number for number, rooms in enumerate(_INNER) for room in rooms}
    for name in _imports(path):
        other = _inner(name.split("."))
        if mine is not None and other not in (None, mine):
            assert floors[other] < floors[mine], f"imports {name}"


def _is_among(name: str, kinds: Sequence[str]) -> bool:
    return any(name == kind or name.startswith(f"{kind}.") for kind in kinds)


def _is_kind(name: str) -> bool:
    return _is_among(name, _KINDS_OF_SOURCES)


@pytest.mark.parametrize("path", _FILES, ids=_name)
def test_only_a_kind_of_source_knows_it(path: Path) -> None:
    """Nobody else imports it, nor takes a name of it from `fleece`."""
    kind = [path.is_relative_to(_ROOT / name.replace(".", "/")) for name in _KINDS_OF_SOURCES]
    if any(kind) or _name(path) in _KNOW_A_KIND:
        return
    assert not [name for name in _imports(path) if _is_kind(name)]
    named = {
        name for name in api.__all__ if _is_kind(getattr(getattr(api, name), "__module__", ""))
    }
    used = {
        ast.unparse(n)
        for n in ast.walk(ast.parse(path.read_text()))
        if isinstance(n, ast.Attribute)
    }
    assert not used & {f"fleece.{name}" for name in named}


@pytest.mark.parametrize("path", _FILES, ids=_name)
def test_nobody_knows_what_kinds_of_stores_there_are(path: Path) -> None:
    """All others ask a `Backend`; open chooses one, and api names what users may name."""
    own = ".".join(path.relative_to(_ROOT).parts[:3])
    if own in _KINDS_OF_STORES or _name(path) in {"fleece/store/open.py", "fleece/api.py"}:
        return
    assert not [name for name in _imports(path) if _is_among(name, _KINDS_OF_STORES)]


def test_every_kind_is_held_to_its_contract() -> None:
    """Its suite runs on it: a store's by its class, a source's by what users call it."""
    suites = _ROOT / "tests/contract"
    stores = {*_imports(suites / "test_backend.py")}
    assert not [kind for kind in _KINDS_OF_STORES if f"{kind}.backend" not in stores]
    text = (suites / "test_source.py").read_text()
    schemes = {"qemu": "qmp", "nbd": "nbd+unix", "far": "image"}
    kinds = [kind.rpartition(".")[2] for kind in _KINDS_OF_SOURCES]
    assert not [kind for kind in kinds if f'"{schemes.get(kind, kind)}:' not in text]


def test_the_delta_format_opens_no_file() -> None:
    """It is given what it reads and what it writes to; only its spool has a file, of no name."""
    doors = {"os", "io", "pathlib", "shutil", "tempfile"}
    doors |= {f"fleece.{name}" for name in ("fileblob", "folder", "handles", "temporary")}
    for path in _FILES:
        if _room(path) == "delta" and path.stem != "spool":
            assert not doors & {*_imports(path)}, _name(path)
            calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
            assert "open" not in [ast.unparse(call.func) for call in calls], _name(path)


def _is_docstring(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def test_a_rooms_front_door_hands_nothing_on() -> None:
    """So importing one file of a room loads no other, and a name has one place."""
    doors = {
        _name(path): ast.parse(path.read_text()).body for path in _FILES if path.stem == "__init__"
    }
    full = {name for name, body in doors.items() if not all(map(_is_docstring, body))}
    assert full == {"fleece/__init__.py", "fleece/cli/grammar/__init__.py"}


def _door(parts: Sequence[str]) -> str:
    """The room, or the room in a room, that a file's dotted name leads into."""
    return "/".join(parts[:2]) if len(parts) > 2 else parts[0]


def _taken_from_rooms() -> dict[str, set[str]]:
    """For each room, the names that other rooms take of it; who shows all does not count."""
    taken: dict[str, set[str]] = {}
    for path in _FILES:
        parts = path.relative_to(_ROOT / "fleece").with_suffix("").parts
        if parts[0] in {"api", "testing"}:
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fleece."):
                module = (node.module or "").split(".")[1:]
                if len(module) > 1 and _door(module) != _door(parts):
                    names = {f"{node.module}.{alias.name}" for alias in node.names}
                    taken.setdefault(_door(module), set()).update(names)
    return taken


def test_what_a_room_hands_out_is_bounded() -> None:
    taken = _taken_from_rooms()
    assert taken
    wide = {
        room: sorted(names) for room, names in taken.items() if len(names) > _DOORS.get(room, 4)
    }
    assert not wide
    assert set(_DOORS) <= set(taken)
    assert len(api.__all__) <= _SHOWN


_AS_THE_FORMAT = {"fleece/delta/header.py", "fleece/store/catalogue.py"}
"""What has the fields of a header under the names that they have in a file."""


@pytest.mark.parametrize("path", _FILES, ids=_name)
def test_a_chains_id_is_called_so(path: Path) -> None:
    """`chain` is a `Chain`; the string is `chain_id`."""
    if _name(path) in _AS_THE_FORMAT:
        return
    for node in ast.walk(ast.parse(path.read_text())):
        said = None
        if isinstance(node, ast.arg) and node.annotation is not None:
            said = node.arg, ast.unparse(node.annotation)
        elif isinstance(node, ast.AnnAssign):
            said = ast.unparse(node.target), ast.unparse(node.annotation)
        assert said is None or said[0] != "chain" or "str" not in said[1].split(" | "), said


_TAKES_APART = {"partition", "rpartition", "split", "rsplit", "splitlines", "removeprefix"}
_TAKES_APART |= {"removesuffix", "fullmatch", "match", "search", "findall", "finditer"}
_OPENS = {"Path", "open", "FileBlob"}
_NO_PATH = {
    "fleece/fleet/document.py": "the line of a TOML file, which its reader tells in no other way",
    "fleece/source/qemu/monitor.py": "the first line of what the QMP client says",
}
"""Who takes an error's text apart all the same, and for what."""


def _told_by_errors(tree: ast.Module) -> set[str]:
    """How a module writes the texts of the errors that it catches, and where they happened."""
    caught = {
        node.name for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.name
    }
    names = caught | {"error", "failure"}
    return {
        text
        for name in names
        for text in (f"str({name})", f"{name}.what", f"{name}.where", f"{name}.args")
    }


def _reads(call: ast.Call) -> list[ast.expr]:
    """What a call takes apart, or opens by its name; nothing of any other call."""
    function = ast.unparse(call.func)
    if isinstance(call.func, ast.Attribute) and call.func.attr in _TAKES_APART:
        return [call.func.value, *call.args]
    opens = function in _OPENS or (function.startswith(("os.", "Path.")) and function != "os.write")
    return call.args if opens else []


@pytest.mark.parametrize("path", _FILES, ids=_name)
def test_no_code_reads_a_path_out_of_an_errors_text(path: Path) -> None:
    """It is for people. Who needs the path has it, or is given it."""
    tree = ast.parse(path.read_text())
    told = _told_by_errors(tree)
    found = [
        f"line {node.lineno}: {ast.unparse(node)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for part in _reads(node)
        if any(ast.unparse(each) in told for each in ast.walk(part) if isinstance(each, ast.expr))
    ]
    assert bool(found) == (_name(path) in _NO_PATH), found


def _started(path: Path) -> Iterator[ast.Call]:
    """The calls that start a program."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in _STARTS:
            yield node


@pytest.mark.parametrize("path", [path for path in _FILES if _room(path) != "providers"], ids=_name)
def test_every_program_is_started_without_the_secrets(path: Path) -> None:
    """What a child inherits is made by `fleece.environment`, which leaves the secrets out.

    A provider never had them: it is such a child itself.
    """
    for call in _started(path):
        given = [ast.unparse(word.value) for word in call.keywords if word.arg == "env"]
        makers = [text.partition("(")[0].rpartition(".")[2] for text in given]
        assert makers, f"line {call.lineno}"
        assert makers[0].endswith("environment"), f"line {call.lineno}"


def test_what_is_pure_imports_no_more_than_it_says() -> None:
    """Extents, tree and the delta format know no NBD, no QEMU, no processes, no network."""
    forbidden = {"nbd", "qemu", "subprocess", "socket", "asyncio", "time", "datetime"}
    pure = [
        path for path in _FILES if _room(path) in {"extents", "hashing", "keys", "tree", "delta"}
    ]
    for path in pure:
        assert not {name.partition(".")[0] for name in _imports(path)} & forbidden, _name(path)


def _is_program(path: Path) -> bool:
    """It is run by itself, as a user's, or as a program that comes with fleece."""
    runs = _room(path) in {"cli", "__main__", "providers"}
    return runs or _name(path) == "fleece/testing/provider/__main__.py"


@pytest.mark.parametrize("path", [path for path in _FILES if not _is_program(path)], ids=_name)
def test_the_library_parses_no_arguments_prints_nothing_and_takes_no_signals(path: Path) -> None:
    forbidden = {"argparse", "signal", "tqdm"}
    # The reader of file systems is a program of its own, and hears what its library logs.
    forbidden |= set() if path.parent.name == "reader" else {"logging"}
    assert not forbidden & set(_imports(path))
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            assert node.id not in {"print", "input", "breakpoint"}, f"line {node.lineno}"
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            use = f"{node.value.id}.{node.attr}"
            assert use not in {"sys.stdout", "sys.stderr", "sys.argv", "sys.exit"}, use


@pytest.mark.parametrize("path", sorted((_ROOT / "fleece/providers").glob("*.py")), ids=_name)
def test_a_provider_can_be_taken_for_the_beginning_of_another(path: Path) -> None:
    """It takes nothing of fleece but what speaks for it, which takes nothing."""
    taken = {name for name in _imports(path) if name.startswith("fleece")}
    assert taken <= (set() if path.stem == "speak" else {"fleece.providers.speak"})


_WHAT_BACKUP_LOADS = "import sys, fleece; fleece.backup; print(*sys.modules)"


def test_a_backup_loads_only_the_modules_that_it_needs() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _WHAT_BACKUP_LOADS],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stdout.split())
    assert {"fleece.engine.backup.pull", "numpy"} <= loaded
    assert not {
        name for name in loaded if re.match(r"fleece\.engine\.(restore|serve|upkeep)", name)
    }
    assert "importlib.metadata" not in loaded  # slow to load


def test_only_the_command_lines_own_modules_are_above_the_public_api() -> None:
    """They take what they need from `fleece`, from the lowest floor, and from each other."""
    above = {"cli", "fleet"}
    for path in _FILES:
        if _room(path) in above:
            for name in _imports(path):
                top, _, rest = name.partition(".")
                room = rest.partition(".")[0] or "__init__"
                if top == "fleece":
                    assert room in _FLOORS[0] | {"__init__", "api"} | above, (
                        f"{_name(path)}: {name}"
                    )


def test_importing_fleece_loads_nothing_until_it_is_used() -> None:
    script = (
        "import fleece, sys; print([m for m in ('numpy', 'nbd', 'zstandard') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_the_command_line_fills_closed_streams_before_it_loads_what_keeps_a_file_open() -> None:
    """ctypes has libffi 3.8 do so: as standard input, if that is closed."""
    script = "import fleece.cli.main, sys; print('ctypes' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "False\n"


def test_every_public_name_is_found_where_the_api_says() -> None:
    for name in api.__all__:
        assert getattr(fleece, name) is getattr(api, name)
        assert name in dir(fleece)


def test_a_public_name_loads_no_more_than_it_needs() -> None:
    script = (
        "import fleece, sys; fleece.serve; print([m in sys.modules for m in ('numpy', 'qemu')])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=_ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout == "[True, False]\n"


def _constants(tree: ast.Module) -> dict[str, ast.expr]:
    """What a module's names stand for that are set once, wherever in it, those of a tuple too."""
    found: dict[str, list[ast.expr]] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            target, value = node.targets[0], node.value
            both = isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple)
            targets = target.elts if both else [target]  # type: ignore[attr-defined]
            values = value.elts if both else [value]  # type: ignore[attr-defined]
            for name, each in zip(targets, values, strict=True):
                found.setdefault(ast.unparse(name), []).append(each)
    return {name: values[0] for name, values in found.items() if len(values) == 1}


def _texts(parts: Sequence[ast.expr], named: Mapping[str, ast.expr]) -> list[str]:
    """The texts among some expressions, be they written there or named."""
    known = [named.get(ast.unparse(part), part) for part in parts]
    return [str(part.value) for part in known if isinstance(part, ast.Constant)]


def _edits(path: Path) -> Iterator[tuple[str, str]]:
    """File and old text of the edits of `tests.engine.scene.Mutation` that a test module has."""
    tree = ast.parse(path.read_text())
    named = _constants(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Tuple) and len(node.elts) == 3:
            texts = _texts(node.elts[:2], named)  # what comes in its place may be made
            if len(texts) == 2 and texts[0].endswith(".py"):
                yield texts[0], texts[1]


def test_every_fault_that_a_test_puts_in_fits_the_code() -> None:
    """Such a test is run rarely, and code that moved away from its fault would not be noticed."""
    counts = {
        (file, old): (_ROOT / "fleece" / file).read_text().count(old)
        for path in (_ROOT / "tests").rglob("*.py")
        for file, old in _edits(path)
    }
    assert counts
    assert {edit: count for edit, count in counts.items() if count != 1} == {}


def test_nbdkit_is_started_in_one_place() -> None:
    """Who looks for the program is who runs it."""
    named = [
        (_name(path), ast.unparse(node.args[0]))
        for path in _FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "program" and node.args
    ]
    assert {file for file, name in named if name == "'nbdkit'"} == {"fleece/nbd/nbdkit.py"}


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many a caller may give: not counted is what a method is called on."""
    given = node.args
    names = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    names += [each.arg for each in (given.vararg, given.kwarg) if each is not None]
    return len(names) - (names[:1] in (["self"], ["cls"]))


@pytest.mark.parametrize("path", _FILES, ids=_name)
def test_no_function_takes_more_than_seven_parameters(path: Path) -> None:
    many = [
        f"line {node.lineno}: {node.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _parameters(node) > 7
    ]
    assert not many


def _code_lines(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines a function has, its docstring left out."""
    said = ast.get_docstring(node, clean=False)
    return (node.end_lineno or 0) - node.lineno + 1 - (len(said.split("\n")) if said else 0)


@pytest.mark.parametrize("path", _FILES, ids=_name)
def test_no_function_needs_scrolling(path: Path) -> None:
    long = [
        f"line {node.lineno}: {node.name}"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and _code_lines(node) > 50
    ]
    assert not long


def _moments(path: Path) -> Iterator[tuple[str, str]]:
    """Module and function of the moments of `tests.engine.scene.Moment` that a test module has."""
    tree = ast.parse(path.read_text())
    named = _constants(tree)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "Moment":
            texts = _texts(node.args[:3], named)
            if len(texts) == 3:
                yield texts[1], texts[2]


def test_every_moment_that_a_test_waits_for_is_in_the_code() -> None:
    """Such a run would end before its moment comes, and tell so late."""
    moments = {each for path in (_ROOT / "tests").rglob("*.py") for each in _moments(path)}
    assert len(moments) > 10
    for module, name in sorted(moments):
        operator.attrgetter(name)(importlib.import_module(module))
