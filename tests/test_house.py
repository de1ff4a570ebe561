"""The house (CONTRIBUTING.md): nothing imports upwards, nothing imports in a circle, and a file is one sitting."""

import ast
import re
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "vqct_plugin"

#: room -> the rooms that it may import, beside itself, the core and the low modules; written from the bottom up
BELOW = {
    "core": [],
    "compat": [],
    "building": ["compat"],
    "hosts": ["compat"],
    "stage_2": ["hosts", "compat"],
    "runs": ["stage_2", "hosts", "compat"],
    "training": ["runs", "stage_2", "hosts", "compat"],
    "evaluation": ["runs", "stage_2", "hosts", "compat"],
    "report": ["training", "evaluation", "runs", "stage_2", "hosts", "compat"],
    "commands": ["report", "training", "evaluation", "runs", "stage_2", "hosts", "compat", "building"],
}
#: modules at the top level that are no part of the core: anybody may import them, and they import nothing of ours
LOW = ("_drawing", "_files", "_version")
LONGEST = 400  # lines; a longer file says in its docstring why it "is long"
#: how British English writes what is American here, and what is written so for a reason: keys and records of old files
BRITISH = re.compile(
    r"(colour|neighbour|behaviour|favour|honour|analyse|catalogue|(?<![a-z])(grey|centre|licence)|labelled|modelled"
    r"|(normal|lemmat|token|initial|optim|organ|recogn|summar|visual|special|general|minim|maxim|vector)is(e|ing|ation))",
    re.IGNORECASE,
)
AS_THEY_WERE = ('"transfer.neighbours"', '"neighbours": "neighbors"', "noun lemmatiser of WordNet")


def module_of(path, root):
    parts = path.relative_to(root.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    """The folder of a module; ``core`` for those at the top level, ``low`` for ``LOW``."""
    parts = module.split(".")
    if len(parts) > 2 or (len(parts) == 2 and parts[1] in BELOW):
        return parts[1]
    return "low" if parts[-1] in LOW else "core"


def imports_of(path, modules, only_at_import=False):
    """Our own modules that a file imports; ``only_at_import`` leaves out what is inside functions or for type checkers.

    Relative imports are refused: each import says where it goes.
    """
    found = set()
    nodes = [ast.parse(path.read_text(encoding="utf-8"))]
    while nodes:
        node = nodes.pop()
        if only_at_import and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if only_at_import and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in modules else node.module)
        nodes.extend(ast.iter_child_nodes(node))
    return {name for name in found if name in modules}


def house(root=PACKAGE):
    """module -> its file, of the whole package."""
    return {module_of(path, root): path for path in sorted(root.rglob("*.py"))}


def upward_imports(root):
    modules = house(root)
    found = []
    for module, path in modules.items():
        if module == root.name:
            continue  # the door: it shows the rooms' names, and imports each when it is asked for
        room = room_of(module)
        allowed = {room, "low"} if room == "low" else {room, "core", "low", *BELOW[room]}
        for name in sorted(imports_of(path, modules) - {root.name}):
            if room_of(name) not in allowed:
                found.append(f"{module} imports {name}: {room} stands below {room_of(name)}, or beside it")
    return found


def circles(root):
    """Files that import each other, however many are in between; what is inside functions counts too."""
    modules = house(root)
    graph = {module: imports_of(path, modules) - {module} for module, path in modules.items()}
    graph[root.name] = imports_of(modules[root.name], modules, only_at_import=True)
    found, done = [], set()

    def visit(module, way):
        if module in way:
            found.append(" -> ".join([*way[way.index(module) :], module]))
        elif module not in done:
            for name in sorted(graph[module]):
                visit(name, [*way, module])
            done.add(module)

    for module in graph:
        visit(module, [])
    return found


def private_imports(root):
    """Underscore files, and underscore names, that are used outside of the folder that they lie in."""
    modules = house(root)
    found = []
    for module, path in modules.items():
        for name in sorted(imports_of(path, modules)):
            folder, _, last = name.rpartition(".")
            if last.startswith("_") and not f"{module}.".startswith(f"{folder}."):
                found.append(f"{module} imports {name}")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                private = [alias.name for alias in node.names if alias.name.startswith("_")]
                private = [name for name in private if f"{node.module}.{name}" not in modules and name != "__version__"]
                found += [f"{module} imports {name} of {node.module}" for name in private]
    return found


def long_files(root):
    found = []
    for module, path in house(root).items():
        text = path.read_text(encoding="utf-8")
        lines = text.count("\n")
        if lines > LONGEST and "is long" not in (ast.get_docstring(ast.parse(text)) or ""):
            found.append(f"{module} has {lines} lines")
    return found


def doors(root):
    """Places in the core that import the package itself, except the quantizer's one (CONTRIBUTING.md says why)."""
    modules = house(root)
    found = []
    for module, path in modules.items():
        if module == root.name or room_of(module) not in ("core", "low"):
            continue
        lines = [
            node.lineno
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if (isinstance(node, ast.Import) and any(alias.name == root.name for alias in node.names))
            or (
                isinstance(node, ast.ImportFrom)
                and node.module == root.name
                and any(f"{root.name}.{alias.name}" not in modules for alias in node.names)
            )
        ]
        lines = lines[1:] if module == f"{root.name}.quantizer" else lines
        found += [f"{module}:{line} imports {root.name}" for line in lines]
    return found


RULES = [upward_imports, circles, private_imports, doors, long_files]


@pytest.mark.parametrize("rule", RULES)
def test_the_house_stands(rule):
    assert rule(PACKAGE) == []


def test_one_spelling():
    ours = ("vqct_plugin", "tests", "benchmarks", "docs", "configs_taming", "tools")
    files = [path for path in ROOT.glob("*.*") if path.is_file()]
    files += [path for folder in ours for path in (ROOT / folder).rglob("*.*")]
    found = []
    for path in files:
        if path.suffix not in (".py", ".md", ".yaml", ".toml", ".html") or path == Path(__file__):
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if BRITISH.search(line) and not any(word in line for word in AS_THEY_WERE):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_every_room_is_known():
    rooms = {path.parent.name for path in PACKAGE.glob("*/*.py")}
    assert rooms == set(BELOW) - {"core"}


PLANTED = {
    "upward": (upward_imports, {"runs/a.py": "def f():\n    from vqct_plugin.report import b\n", "report/b.py": ""}),
    "beside": (upward_imports, {"training/a.py": "import vqct_plugin.evaluation.b", "evaluation/b.py": ""}),
    "the core a wing": (upward_imports, {"usage.py": "from vqct_plugin.compat.a import f", "compat/a.py": ""}),
    "a low module": (upward_imports, {"_files.py": "from vqct_plugin.usage import f", "usage.py": ""}),
    "a circle": (
        circles,
        {
            "runs/a.py": "from vqct_plugin.runs.b import f",
            "runs/b.py": "def f():\n    from vqct_plugin.runs import c",
            "runs/c.py": "import vqct_plugin.runs.a",
        },
    ),
    "another room's file": (private_imports, {"runs/a.py": "from vqct_plugin.hosts import _b", "hosts/_b.py": ""}),
    "another file's name": (private_imports, {"runs/a.py": "from vqct_plugin.hosts.b import _f", "hosts/b.py": ""}),
    "the package": (doors, {"usage.py": "def f():\n    import vqct_plugin"}),
    "a name of the package": (doors, {"usage.py": "from vqct_plugin import VQModel"}),
    "a second door": (doors, {"quantizer.py": "import vqct_plugin\ndef f():\n    import vqct_plugin"}),
    "a long file": (long_files, {"runs/a.py": '"""Short."""\n' + "x = 1\n" * LONGEST}),
}


@pytest.mark.parametrize("name", PLANTED)
def test_what_is_planted_is_found(name, tmp_path):
    rule, files = PLANTED[name]
    root = tmp_path / "vqct_plugin"
    for file, text in {"__init__.py": "", **files}.items():
        path = root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        if path.parent != root:
            (path.parent / "__init__.py").touch()
    assert len(rule(root)) == 1
    if rule is long_files:
        a = Path(root / "runs" / "a.py")
        a.write_text(a.read_text().replace("Short.", "This file is long because it is one."))
        assert rule(root) == []
