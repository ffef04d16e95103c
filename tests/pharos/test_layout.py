"""The shape of the repository: what may import what, and what must import nothing heavy."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PLATFORM = ROOT / "platform"
PHAROS = PLATFORM / "pharos"
TRAINABLES = ROOT / "trainables"
FOR_FAMILIES = {"pharos.cache", "pharos.errors", "pharos.recipe", "pharos.run", "pharos.learner"}
MODULES = sorted(
    ".".join(path.relative_to(PLATFORM).with_suffix("").parts).removesuffix(".__init__")
    for path in PHAROS.rglob("*.py")
)
ON_RAY = {
    "pharos.doctor.nodes",
    *(
        f"pharos.backends.{name}"
        for name in ("actor", "cluster", "eviction", "gang", "losses", "neighbours", "single", "tune")
    ),
}


def python(code, *arguments):
    """Runs code in a fresh process that has only what a checkout gives it."""
    environment = {**os.environ, "PYTHONPATH": f"{PLATFORM}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], env=environment, cwd=ROOT, capture_output=True, text=True, check=False
    )


class Imports(ast.NodeVisitor):
    """The modules that a file imports when it runs, those for type checkers aside."""

    def __init__(self, module, is_package):
        self.found = set()
        self._package = module if is_package else module.rpartition(".")[0]

    def visit_If(self, node):
        if "TYPE_CHECKING" not in ast.unparse(node.test):
            self.generic_visit(node)

    def visit_Import(self, node):
        self.found |= {alias.name for alias in node.names}

    def visit_ImportFrom(self, node):
        base = ".".join(self._package.split(".")[: len(self._package.split(".")) + 1 - node.level])
        module = f"{base}.{node.module or ''}".rstrip(".") if node.level else node.module
        self.found |= {module} | {f"{module}.{alias.name}" for alias in node.names}


def imports_of(path, root):
    module = ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")
    visitor = Imports(module, path.name == "__init__.py")
    visitor.visit(ast.parse(path.read_text()))
    return module, visitor.found


def modules_below(folder, root):
    return dict(imports_of(path, root) for path in sorted(folder.rglob("*.py")))


def test_the_platform_folder_is_no_package():
    assert not (PLATFORM / "__init__.py").exists()
    assert python("import platform, uuid; assert platform.system()").returncode == 0


def test_no_script_hides_a_module_of_the_standard_library():
    scripts = {path.stem for path in PLATFORM.glob("*.py")}
    assert {"sweep", "train"} <= scripts
    assert not scripts & sys.stdlib_module_names
    assert not {path.name for path in PLATFORM.iterdir() if path.is_dir()} & sys.stdlib_module_names


def test_the_walk_over_imports_sees_them():
    found = modules_below(PHAROS, PLATFORM)
    assert "pharos.run" in found["pharos.recipe"]
    assert "pharos.sweep" in found["pharos.backends.local"]
    assert "pharos.recipe" in found["pharos.families"]  # inside a function
    assert "pharos.sweep" not in found["pharos.console"]  # for type checkers alone
    visitor = Imports("a.b.c", is_package=False)
    visitor.visit(ast.parse("from . import x\nfrom ..y import z\nimport q.r"))
    assert visitor.found == {"a.b", "a.b.x", "a.y", "a.y.z", "q.r"}


def test_the_platform_never_imports_a_family():
    for root in (PLATFORM, PHAROS):
        for module, imported in modules_below(root, PLATFORM).items():
            assert not {name for name in imported if name.split(".")[0] in ("trainables", "search_spaces")}, module


@pytest.mark.parametrize("script", sorted(PLATFORM.glob("*.py")), ids=lambda path: path.name)
def test_scripts_import_pharos_and_the_standard_library_alone(script):
    _, imported = imports_of(script, PLATFORM)
    assert {name.split(".")[0] for name in imported} <= {"pharos"} | sys.stdlib_module_names


def test_families_import_their_side_of_the_platform_alone():
    found = modules_below(TRAINABLES, ROOT)
    assert "trainables.tipsy.recipe" in found
    for module, imported in found.items():
        modules = {name for name in imported if name in MODULES}
        assert modules <= FOR_FAMILIES | {"pharos"}, module
        assert "pharos" not in imported, module


def test_families_do_not_import_each_other():
    for module, imported in modules_below(TRAINABLES, ROOT).items():
        family = module.split(".")[1] if "." in module else None
        allowed = {family, "common"} if family != "common" else {"common"}
        others = {name.split(".")[1] for name in imported if name.startswith("trainables.")} - allowed
        assert not others, module


def test_no_modules_of_the_platform_import_each_other_in_a_circle():
    found = modules_below(PHAROS, PLATFORM)
    # Modules themselves, not the names in them; a package's own __init__ imports from below it on purpose.
    graph = {module: {name for name in imported if name in found} - {module} for module, imported in found.items()}
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module in done:
            return
        path.append(module)
        for other in sorted(graph[module]):
            if not other.startswith(f"{module}."):
                visit(other)
        path.pop()
        done.add(module)

    for module in graph:
        visit(module)
    assert len(done) == len(found) > 15


def importers_of(package):
    """The modules of the platform that import a package, wherever in them."""
    found = modules_below(PHAROS, PLATFORM)
    return {module for module, imported in found.items() if any(name.split(".")[0] == package for name in imported)}


def test_each_heavy_package_is_imported_by_the_modules_that_are_about_it_alone():
    assert importers_of("ray") == ON_RAY
    assert importers_of("wandb") == {"pharos.tracking.calls", "pharos.tracking.wandb_run"}
    assert importers_of("deepspeed") == {"pharos.engines.deepspeed_engine"}
    assert importers_of("moocore") == {"pharos.search.fronts"}
    numbers = {f"pharos.search.{name}" for name in ("acquisition", "gaussian_process", "multifidelity")}
    assert importers_of("scipy") == {*numbers, "pharos.standings"}


def test_the_core_knows_no_backend_and_engines_know_no_more_than_they_run():
    found = modules_below(PHAROS, PLATFORM)
    backends = {module for module in found if module.startswith("pharos.backends")}
    core = {"background", "cache", "checkpoint", "engines", "execute", "learner", "mirror", "recipe", "retention"}
    core |= {
        "rdb",
        "records",
        "retry",
        "run",
        "saver",
        "spool",
        "storage",
        "study",
        "survey",
        "tracking",
        "trial",
        "world",
    }
    core |= {
        "config",
        "evidence",
        "folders",
        "memory",
        "overrides",
        "plan",
        "settings",
        "schedulers",
        "search",
        "space",
        "sweep",
    }
    assert {f"pharos.{name}" for name in core} <= set(found)
    for module, imported in found.items():
        if module.split(".")[1:2] and module.split(".")[1] in core:
            assert not imported & backends, module
    below = {"pharos.checkpoint", "pharos.cache", "pharos.errors", "pharos.storage", "pharos.world", "pharos.engines"}
    # What to try is decided from numbers alone, without knowing what a trial trains or where its files are.
    for module in (name for name in found if name.split(".")[1:2] in (["schedulers"], ["search"])):
        files = {"checkpoint", "config", "execute", "folders", "run", "spool", "summary", "survey", "sweep"}
        assert not found[module] & {f"pharos.{name}" for name in files}, module
    for module in ("pharos.world", *(name for name in found if name.startswith("pharos.engines"))):
        known = {name for name in found[module] if name in found}
        assert known - {"pharos"} <= below | {name for name in found if name.startswith("pharos.engines")}, module


_BLOCKER = """
import importlib, sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""


def test_the_core_needs_neither_ray_nor_wandb_nor_deepspeed():
    optional = ("ray", "wandb", "deepspeed", "transformers", "h5py", "s3fs", "botocore", "psycopg2")
    blocker = _BLOCKER.format(blocked=optional)
    code = blocker + "for name in sys.argv[1:]: importlib.import_module(name)"
    result = python(code, *(module for module in MODULES if module not in ON_RAY))
    assert result.returncode == 0, result.stderr


def test_without_ray_the_default_backend_says_what_to_install():
    code = (
        "import sys, types; sys.modules['ray'] = None\n"
        "from pharos.backends import run_sweep\n"
        "run_sweep(types.SimpleNamespace(finished=False, settings=types.SimpleNamespace(backend='tune')))\n"
    )
    last = python(code).stderr.strip().splitlines()[-1]
    assert "InputError: backend=tune (there is backend=local, too) needs Ray: pip install" in last


@pytest.mark.parametrize("script", ["sweep", "train", "report", "doctor"])
def test_help_is_quick_it_imports_nothing_heavy(script):
    code = (
        f"import sys, runpy; sys.path.insert(0, {str(PLATFORM)!r})\n"
        f"sys.argv = ['{script}.py', '--help']\n"
        "try: runpy.run_path(sys.argv[0] and sys.path[0] + '/' + sys.argv[0], run_name='__main__')\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'ray', 'optuna', 'hydra', 'omegaconf', 'wandb', 'numpy', 'fsspec'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert f"usage: {script}.py" in result.stdout


def test_search_spaces_are_read_without_torch_and_ray():
    code = "import pharos.space, sys; assert not {'torch', 'ray', 'wandb'} & set(sys.modules)"
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_a_search_is_run_without_torch_and_ray():
    modules = "pharos.search.search, pharos.search.samplers, pharos.schedulers.choice"
    code = f"import {modules}, sys; found = {{'torch', 'ray', 'wandb'}} & set(sys.modules)"
    result = python(f"{code}; assert not found, found")
    assert result.returncode == 0, result.stderr


def test_trial_values_cross_process_borders_without_torch():
    code = "import pharos.trial, pharos.errors, sys; assert not {'torch', 'ray', 'optuna'} & set(sys.modules)"
    assert python(code).returncode == 0


@pytest.mark.parametrize(
    "module", ["pharos.learner", "pharos.run", "pharos.saver", "pharos.spool", "pharos.execute", "pharos.engines"]
)
def test_training_starts_without_the_packages_that_it_may_not_need(module):
    heavy = {"ray", "wandb", "deepspeed", "optuna", "hydra", "s3fs", "boto3"}
    code = f"import {module}, sys; found = {heavy} & set(sys.modules)"
    result = python(f"{code}; assert not found, found")
    assert result.returncode == 0, result.stderr


def test_a_worker_starts_without_torch_and_without_the_search():
    heavy = {"ray", "torch", "optuna", "hydra", "deepspeed"}
    result = python(f"import pharos.backends.worker, sys; found = {heavy} & set(sys.modules); assert not found, found")
    assert result.returncode == 0, result.stderr
    _, imported = imports_of(PHAROS / "backends" / "worker.py", PLATFORM)
    searching = {"config", "console", "evidence", "finalists", "folders", "mirror", "schedulers", "search", "space"}
    searching |= {"overrides", "plan", "settings", "standings", "study", "survey", "sweep"}
    assert {f"pharos.{name}" for name in searching} <= set(MODULES)
    assert not {name for name in imported if ".".join(name.split(".")[:2]) in {f"pharos.{each}" for each in searching}}
