"""Who may import whom. The tables are the documentation; docs/architecture.md says why."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCES = {name: Path(name) / "src" / f"quire_{name}" for name in ("api", "engine", "router", "operator")}

# Distribution -> ours that it may import besides itself.
DIRECTION: dict[str, set[str]] = {
    "quire_api": set(),
    "quire_engine": {"quire_api"},
    "quire_router": {"quire_api"},
    "quire_operator": {"quire_api", "quire_router"},
}

# Third-party package -> where alone it may be imported; a folder ends with /.
CONFINED: dict[str, set[str]] = {
    "kopf": {"quire_operator/handlers.py"},
    "kubernetes": {
        "quire_operator/handlers.py", "quire_operator/backends/client.py", "quire_operator/backends/cluster.py",
        "quire_operator/lease.py", "quire_operator/operate.py",
        "quire_router/cluster/informer.py", "quire_router/cluster/world.py",
    },
    "yaml": {"quire_operator/documents.py", "quire_operator/cli.py", "quire_api/generate.py", "quire_router/config.py"},
    "torch": {
        "quire_engine/build.py", "quire_engine/loading.py", "quire_engine/ops/", "quire_engine/layers/", "quire_engine/models/", "quire_engine/runtime/",
        "quire_engine/sampling/", "quire_engine/quant/",
    },
    "aiohttp": {"quire_operator/local/control.py"},
    "fastapi": {"quire_engine/server/"},
    "starlette": {"quire_engine/server/"},
    "uvicorn": {"quire_engine/server/serve.py", "quire_engine/server/wire.py"},
    "tokenizers": {"quire_engine/text/tokenizer.py"},
    "xgrammar": {"quire_engine/grammars/binding.py"},
    "tvm_ffi": {"quire_engine/grammars/binding.py"},
    "safetensors": {"quire_engine/files.py"},
    "httptools": {"quire_router/client.py", "quire_engine/bench/client.py", "quire_engine/server/wire.py"},
    "botocore": {"quire_engine/fetch/s3.py"},
    "transformers": set(),  # the oracle of tests, and the training script
}  # fmt: skip

# Pure: only these may be imported, besides ours that are pure themselves.
PURE: dict[str, set[str]] = {
    "quire_engine/core/": {"bisect", "collections", "dataclasses", "enum", "typing"},
    "quire_engine/runtime/buckets.py": {"collections", "dataclasses"},
    "quire_engine/runtime/roofline.py": {"collections", "dataclasses"},
    "quire_engine/runtime/sizing.py": {"collections", "dataclasses"},
    "quire_engine/messages/": {"ast", "collections", "dataclasses", "enum", "json", "re", "typing", "warnings"},
    "quire_engine/text/stream.py": {"codecs", "collections"},
    "quire_engine/grammars/schema.py": {"collections", "re", "typing"},
    "quire_engine/bench/arrivals.py": {"math", "random"},
    "quire_engine/bench/plot.py": {"collections", "html", "math"},
    "quire_engine/bench/reading.py": {"orjson", "typing"},
    "quire_engine/bench/report.py": {"collections", "dataclasses", "typing"},
    "quire_engine/bench/statistics.py": {"collections", "dataclasses", "math"},
    "quire_engine/bench/workload.py": {"collections", "dataclasses", "math", "random", "typing"},
    "quire_engine/fetch/choose.py": {"collections", "dataclasses", "fnmatch", "hashlib", "re"},
    "quire_engine/fetch/layout.py": {"dataclasses", "hashlib", "pathlib", "re", "urllib"},
    "quire_engine/fetch/ranges.py": {"bisect", "collections"},
    "quire_engine/fetch/retry.py": {"dataclasses", "email"},
    "quire_engine/fetch/source.py": {"dataclasses", "pathlib", "re", "urllib"},
    "quire_engine/fetch/summary.py": {"collections", "json", "typing"},
    "quire_operator/local/rolling.py": {"collections", "dataclasses"},
    "quire_operator/backends/pods.py": {"collections", "dataclasses", "typing"},
    "quire_operator/planner/": {"collections", "dataclasses", "datetime", "hashlib", "json", "math", "typing"},
    "quire_operator/render/": {"collections", "dataclasses", "typing"},
    "quire_operator/simulate/": {"collections", "dataclasses", "heapq", "html", "itertools", "math", "random"},
    "quire_router/balance.py": {"collections", "hashlib", "math"},
    "quire_router/breaker.py": {"dataclasses", "enum"},
    "quire_router/cluster/picture.py": {"collections", "dataclasses", "typing"},
    "quire_router/declared.py": {"dataclasses", "datetime"},
    "quire_router/framing.py": {"dataclasses", "typing"},
    "quire_router/health.py": {"dataclasses", "enum", "json", "typing"},
    "quire_router/hold.py": {"dataclasses", "enum"},
    "quire_router/limits.py": {"dataclasses"},
    "quire_router/peek.py": {"dataclasses", "hashlib", "json", "orjson", "typing"},
    "quire_router/rates.py": {"collections", "dataclasses"},
    "quire_router/registry.py": {"collections", "dataclasses", "enum"},
    "quire_router/replies.py": {"dataclasses", "json", "typing"},
    "quire_api/schema.py": {"json", "pydantic", "typing"},
    "quire_api/crd.py": {"typing"},
    "quire_api/footprint.py": {"collections", "dataclasses", "typing"},
}
PURE_OURS = (
    "quire_api",
    "quire_engine.bench.report",
    "quire_engine.bench.statistics",
    "quire_engine.core",
    "quire_engine.errors",
    "quire_engine.fetch.errors",
    "quire_engine.fetch.listing",
    "quire_engine.fetch.source",
    "quire_engine.messages",
    "quire_engine.runtime.buckets",
    "quire_operator.planner",
    "quire_operator.render",
    "quire_operator.settings",
    "quire_operator.simulate",
    "quire_router.registry",
)

LONGEST = 400  # lines of a module; over 300, look for the second noun


def modules() -> Iterator[tuple[str, Path]]:
    """'quire_engine/core/step.py', and the file."""
    for source in SOURCES.values():
        for path in sorted(source.rglob("*.py")):
            yield str(path.relative_to(source.parent)), path


def imports(path: Path) -> set[str]:
    """Full names of the modules that a file imports, at whatever depth it does."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import; write the full name"
            found.add(node.module or "")
    return found


def within(name: str, places: set[str]) -> bool:
    return any(name == place or (place.endswith("/") and name.startswith(place)) for place in places)


MODULES = dict(modules())


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_one_way(name: str) -> None:
    distribution = name.split("/")[0]
    ours = {i.split(".")[0] for i in imports(MODULES[name]) if i.startswith("quire_")}

    assert ours <= DIRECTION[distribution] | {distribution}


@pytest.mark.parametrize("package", CONFINED)
def test_a_library_is_imported_where_it_belongs_and_nowhere_else(package: str) -> None:
    users = {name for name, path in MODULES.items() if any(i.split(".")[0] == package for i in imports(path))}

    assert {name for name in users if not within(name, CONFINED[package])} == set()


@pytest.mark.parametrize("place", PURE)
def test_what_is_pure_imports_only_what_is_pure(place: str) -> None:
    members = [name for name in MODULES if within(name, {place})]
    assert members, "the table names what is not there"
    for name in members:
        outside = {i for i in imports(MODULES[name]) if not any(i == p or i.startswith(p + ".") for p in PURE_OURS)}
        assert {i.split(".")[0] for i in outside} <= PURE[place], name


def test_only_the_composition_root_reads_the_config() -> None:
    readers = {
        name for name, path in MODULES.items() if name.startswith("quire_engine") and "config." in path.read_text()
    }

    assert readers <= {
            "quire_engine/build.py", "quire_engine/loading.py",  # the engine
        "quire_engine/bench/offline.py",  # hands it to LLM; the seed
        "quire_engine/cli.py",  # hands it to LLM
        "quire_engine/llm.py",  # the seed
        "quire_engine/process/worker.py", "quire_engine/process/rank.py",  # what to log
        "quire_engine/process/nodes.py",  # which machine this is, for the engine and for `quire serve`
        "quire_engine/server/assemble.py",  # the server
        "quire_engine/server/serve.py",  # the address, and how long to drain
        "quire_engine/server/generation.py",  # the seed
        "quire_engine/text/tokenizer.py", "quire_engine/text/chat.py",  # the tokenizer's own, tokenizer_config.json
        "quire_engine/spec.py", "quire_engine/ropes.py", "quire_engine/locate.py", "quire_engine/models/weights.py",  # the checkpoint's config.json
        "quire_engine/fetch/choose.py", "quire_engine/fetch/resolving.py", "quire_engine/fetch/store.py",  # the same
        "quire_engine/fetch/summary.py",
        "quire_engine/gguf/config.py", "quire_engine/quant/__init__.py", "quire_engine/quant/gguf.py",
    }  # fmt: skip


@pytest.mark.parametrize(
    "module",
    [
        "quire_operator.cli",
        "quire_operator.operate",
        "quire_operator.up",
        "quire_router",
        "quire_api",
        "quire_engine",
        "quire_engine.core.scheduler",
        "quire_engine.server.serve",
        "quire_engine.bench.serve",
        "quire_engine.bench.offline",
        "quire_engine.arrive",
        "quire_engine.spec",
    ],
)
def test_torch_stays_out(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"

    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_fetch_starts_without_what_is_slow_to_import() -> None:
    """It is the first command of every pod. The seconds are in benchmarks/fetch.py."""
    slow = "{'torch', 'transformers', 'numpy', 'pydantic', 'fastapi', 'botocore', 'asyncio', 'huggingface_hub'}"
    code = (
        "import sys; from quire_api.command import main\n"
        "try: main(['fetch', '--help'])\n"
        f"except SystemExit: pass\nsys.exit(str({slow} & set(sys.modules)) if {slow} & set(sys.modules) else 0)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
    assert "SOURCE STORE" in done.stdout


def test_operator_is_a_folder_and_no_package() -> None:
    """`operator/__init__.py`, or a test below it, would replace the standard library's `operator`."""
    assert not Path("operator/__init__.py").exists()
    assert not Path("tests/operator").exists()
    assert list(Path("operator").rglob("test_*.py")) == []
    assert list(Path("tests").rglob("__init__.py")) == []


@pytest.mark.parametrize("name", MODULES)
def test_a_module_is_small_and_says_what_it_is(name: str) -> None:
    text = MODULES[name].read_text()

    assert len(text.splitlines()) <= LONGEST
    assert ast.get_docstring(ast.parse(text)), "no docstring"


@pytest.mark.parametrize("name", [n for n in MODULES if not n.endswith("__main__.py")])
def test_all_names_what_the_module_defines_for_others(name: str) -> None:
    tree = ast.parse(MODULES[name].read_text())
    exported: set[str] = set()
    defined: set[str] = set()
    for node in tree.body:
        targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
        names = {t.id for t in targets if isinstance(t, ast.Name)}
        if "__all__" in names:
            exported = set(ast.literal_eval(node.value))  # type: ignore[attr-defined]
        elif isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            defined.add(node.name)
        elif isinstance(node, ast.ImportFrom | ast.Import):
            defined |= {a.asname or a.name for a in node.names}
        elif isinstance(node, ast.If):  # TYPE_CHECKING: what a module's __getattr__ imports when it is asked for
            defined |= {a.name for n in node.body if isinstance(n, ast.ImportFrom) for a in n.names}
        else:
            defined |= names
    used = {
        alias.name
        for path in MODULES.values()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom)
        and node.module == name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for alias in node.names
        if f"{name.removesuffix('.py')}/{alias.name}.py" not in MODULES
        and not name.endswith(f"{alias.name}/__init__.py")
    }
    submodules = {
        Path(n).stem for n in MODULES if str(Path(n).parent) == str(Path(name).parent) and name.endswith("__init__.py")
    }

    assert exported <= defined, "exported, but not there"
    assert used - submodules <= exported, "imported elsewhere, but not exported"
