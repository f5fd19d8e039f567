"""The arrows between the files run one way, and what `exactot` needs of `ipot` is listed there."""

import ast
import sys
from pathlib import Path

import ipot

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ("ipot", "exactot", "generative", "demos", "benchmarks")  # each may import those before it
DEMOS = ("learning_demo", "ipot_demo", "barycenter_demo")


def imports(path):
    """The modules that a file imports, and the names that it takes from each."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found += [(node.module, alias.name) for alias in node.names]
    return found


def layer(module):
    top = module.split(".")[0]
    return "demos" if top in DEMOS else top


def files():
    for path in (*ROOT.glob("*.py"), *(p for top in LAYERS for p in (ROOT / top).rglob("*.py"))):
        yield ".".join(path.relative_to(ROOT).with_suffix("").parts), path


def test_no_arrow_runs_up():
    for module, path in files():
        for imported, _ in imports(path):
            if layer(imported) in LAYERS:
                assert LAYERS.index(layer(imported)) <= LAYERS.index(layer(module)), (
                    path,
                    imported,
                )


def test_there_is_no_circle():
    modules = {name.removesuffix(".__init__"): path for name, path in files()}
    arrows = {
        name: {x for x, _ in imports(path) if x in modules and x != name}
        for name, path in modules.items()
    }
    while arrows:
        leaves = {name for name, others in arrows.items() if not others & set(arrows)}
        assert leaves, f"a circle among {sorted(arrows)}"
        arrows = {name: others for name, others in arrows.items() if name not in leaves}


def test_ipot_imports_numpy_and_torch_only():
    outside = {module.split(".")[0] for module, _ in imports(ROOT / "ipot.py")}
    assert outside - sys.stdlib_module_names == {"numpy", "torch"}


def test_what_the_package_takes_from_ipot_is_its_toolkit():
    taken = {
        name
        for path in (ROOT / "exactot").glob("*.py")
        for module, name in imports(path)
        if module == "ipot"
    }
    assert None not in taken, "exactot takes names from ipot, not the module"
    assert taken - {"Transport"} == set(ipot.TOOLKIT)
    assert not any(name.startswith("_") for name in ipot.TOOLKIT)
