"""The direction of imports: a module may import its own room and those named beside it, and never in a circle."""

import ast
from collections.abc import Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]


class Room(NamedTuple):
    """Modules, with what lies in them unless a longer name takes it elsewhere, and the other rooms they may import."""

    modules: str
    imports: str


# From the top down. A new file at the top of a package belongs to the room that has the package's name.
ROOMS = {
    "cli": Room("fgrpo.cli", "experiment server study show contract engines wire ground"),
    "server app": Room("fgrpo.engines.flower.server_app", "experiment server show engines contract wire ground"),
    "study": Room("fgrpo.study", "federation show engines contract client wire ground"),
    "experiment": Room("fgrpo.experiment", "federation show engines contract client wire ground"),
    "federation": Room("fgrpo.federation", "contract server wire ground"),
    "show": Room("fgrpo.show", "contract wire ground codec"),
    "engines": Room("fgrpo.engines", "contract client wire ground"),
    "contract": Room("fgrpo.engines.base", "wire ground"),
    "server": Room("fgrpo.server", "wire ground codec"),
    "client": Room("fgrpo.client", "wire ground codec models ops"),
    "wire": Room("fgrpo.wire", "ground codec"),
    "ground": Room("fgrpo", "codec"),
    "bench": Room("fgrpo_kernels.bench", "codec ops objectives reference base"),
    "integrations": Room("fgrpo_kernels.integrations", "models ops objectives"),
    "models": Room("fgrpo_kernels.models", "ops"),
    "codec": Room("fgrpo_kernels.codec fgrpo_kernels.robust fgrpo_kernels.downlink", "base"),
    "ops": Room("fgrpo_kernels", "reference head gpu terms objectives base"),
    "reference": Room("fgrpo_kernels.reference", "terms objectives base"),
    "head": Room("fgrpo_kernels.head", "gpu terms objectives base"),
    "gpu": Room("fgrpo_kernels.gpu", "terms objectives base"),
    "terms": Room("fgrpo_kernels.layout fgrpo_kernels.policy_terms", "objectives base"),
    "objectives": Room("fgrpo_kernels.objectives fgrpo_kernels.kl", "base"),
    "base": Room(
        "fgrpo_kernels._C fgrpo_kernels.checks fgrpo_kernels.chunked_rows fgrpo_kernels.derivatives "
        "fgrpo_kernels.direct fgrpo_kernels.dispatch fgrpo_kernels.jit fgrpo_kernels.native_rows "
        "fgrpo_kernels.numerics fgrpo_kernels.results fgrpo_kernels.rowwise",
        "",
    ),
}
ROOM_OF = {module: room for room, (modules, _) in ROOMS.items() for module in modules.split()}


def sources() -> dict[str, str]:
    """The text of every module of both packages, by its full name; the extension's is its stub's."""
    found = {}
    for package in ("fgrpo", "fgrpo_kernels"):
        for path in (p for p in (ROOT / package).rglob("*") if p.suffix in (".py", ".pyi")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    return found


def imports(name: str, modules: Mapping[str, str]) -> Iterator[str]:
    """Those among `modules` that one of them imports: anywhere in it, for type checkers too, or by a literal name."""
    for node in ast.walk(ast.parse(modules[name])):
        if isinstance(node, ast.Import):
            written = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}, line {node.lineno}: imports are written in full"
            written = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            written = [first.value for first in node.args[:1] if isinstance(first, ast.Constant)]
        else:
            continue
        for target in written:
            # `from x.y import z`: z is a module in the package x.y, or a name in the module x.y.
            yield from [known for known in (target, target.rpartition(".")[0]) if known in modules][:1]


def room_of(module: str) -> str:
    while module not in ROOM_OF:
        module = module.rpartition(".")[0]
    return ROOM_OF[module]


def against_the_rules(modules: Mapping[str, str]) -> list[str]:
    """A line for each import that its room may not make."""
    found = []
    for name in modules:
        room = room_of(name)
        for target in imports(name, modules):
            if room_of(target) not in (room, *ROOMS[room].imports.split()):
                found.append(f"{name} imports {target}: beside its own room, {room} may import {ROOMS[room].imports}")
    return found


def circle(modules: Mapping[str, str]) -> list[str]:
    """Modules each of which imports the next, the first one again at the end; empty if there is no such circle."""
    try:
        TopologicalSorter({name: set(imports(name, modules)) for name in modules}).prepare()
    except CycleError as error:
        return error.args[1][::-1]
    return []


def test_imports_keep_to_the_layout():
    assert against_the_rules(sources()) == []


def test_no_modules_import_each_other_in_a_circle():
    assert circle(sources()) == []


def test_every_rule_is_about_something():
    """A module that moves without its row here would otherwise leave the rule behind."""
    assert [module for module in ROOM_OF if module not in sources()] == []
    assert {room for _, imports in ROOMS.values() for room in imports.split()} <= set(ROOMS)


MADE_UP = dict.fromkeys(
    [
        *ROOM_OF,
        *("fgrpo.client.round", "fgrpo.server.step", "fgrpo.show.plots", "fgrpo.wire.payload", "fgrpo.records"),
        *("fgrpo_kernels.gpu.softcap", "fgrpo_kernels.grpo_loss"),
    ],
    "import torch",
)


@pytest.mark.parametrize(
    ("name", "source"),
    [
        pytest.param("fgrpo.client.round", "import fgrpo.server.step", id="client knows the server"),
        pytest.param("fgrpo.server.step", "from fgrpo.client import round", id="server knows a client"),
        pytest.param("fgrpo.wire.payload", "from fgrpo.client.round import play", id="wire knows a client"),
        pytest.param("fgrpo.wire.payload", "import fgrpo.engines.base", id="wire knows engines"),
        pytest.param("fgrpo.federation", "import fgrpo.show.plots", id="a round draws"),
        pytest.param("fgrpo.federation", "import fgrpo.client.round", id="the loop reaches past the engine"),
        pytest.param("fgrpo.show.plots", "import fgrpo.server.step", id="a plot steps"),
        pytest.param("fgrpo.engines.new", "import fgrpo.server.step", id="an engine steps"),
        pytest.param("fgrpo.seeds", "import fgrpo.wire.payload", id="the ground floor looks up"),
        pytest.param("fgrpo.something_new", "import fgrpo.wire.payload", id="so does a new file there"),
        pytest.param("fgrpo.client.round", "import fgrpo_kernels.gpu.softcap", id="not a public op"),
        pytest.param("fgrpo_kernels.codec", "from fgrpo.records import Report", id="kernels know the loop"),
        pytest.param("fgrpo_kernels.jit", "import fgrpo_kernels.objectives", id="the kernels' ground looks up"),
        pytest.param("fgrpo_kernels.kl", "import fgrpo_kernels.gpu.softcap", id="a formula knows a kernel"),
        pytest.param("fgrpo_kernels.gpu.softcap", "import fgrpo_kernels.grpo_loss", id="a kernel knows its op"),
        pytest.param("fgrpo_kernels.head.rows", "import fgrpo_kernels.grpo_loss", id="the head knows an op"),
        pytest.param("fgrpo_kernels.grpo_loss", "import fgrpo_kernels.integrations", id="an op knows a trainer"),
        pytest.param("fgrpo.server.step", "def f():\n    import fgrpo.client.round", id="in a function"),
        pytest.param("fgrpo.server.step", "if TYPE_CHECKING:\n    import fgrpo.client.round", id="for types"),
        pytest.param("fgrpo.server.step", "importlib.import_module('fgrpo.client.round')", id="by a string"),
        pytest.param("fgrpo.server.step", "try:\n    import fgrpo.client.round as r\nexcept E: ...", id="guarded"),
    ],
)
def test_an_import_against_the_rules_is_found(name, source):
    found = against_the_rules(MADE_UP | {name: source})
    assert len(found) == 1
    assert found[0].startswith(f"{name} imports ")


def test_imports_along_the_rules_pass():
    source = "import torch\nfrom fgrpo import records\nfrom fgrpo.wire.payload import pack\nimport fgrpo.client.tasks"
    assert against_the_rules(MADE_UP | {"fgrpo.client.round": source}) == []


def test_a_circle_is_found():
    modules = {"a": "import b", "b": "def f():\n    from c import x", "c": "from a import y", "d": "import a"}
    found = circle(modules)
    assert {*pairwise(found)} == {("a", "b"), ("b", "c"), ("c", "a")}
    assert circle(modules | {"c": ""}) == []
