"""Puts the CPU kernels into a wheel, compiled for every instruction set of this kind of machine.

Without a compiler the wheel is pure Python, and the engine does without them or compiles them itself when it starts
(ops/cpu/library.py), as it does from an editable installation, which gets none from here: its sources change.
"""

import importlib.util
import shutil
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

PACKAGE = "quire_engine/ops/cpu"


class KernelHook(BuildHookInterface):
    folder = ""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        compiling = _load(Path(self.root, "src", PACKAGE, "compile.py"))
        self.folder = tempfile.mkdtemp(prefix="quire-")

        def build(number_format: str, target: Any) -> None:
            path = Path(self.folder, compiling.library_name(number_format, target))
            try:
                compiling.compile_library(number_format, target, path)
                build_data["force_include"][str(path)] = f"{PACKAGE}/libraries/{path.name}"
            except compiling.CompileFailure as failure:
                self.app.display_warning(f"no CPU kernels of {number_format} for {target.name}: {failure}")

        with ThreadPoolExecutor() as pool:
            wanted = [(each, target) for each in compiling.FORMATS for target in compiling.targets(each)]
            list(pool.map(lambda pair: build(*pair), wanted))
        if build_data["force_include"]:
            build_data["pure_python"] = False
            build_data["tag"] = "py3-none-" + sysconfig.get_platform().replace("-", "_").replace(".", "_")

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.folder:
            shutil.rmtree(self.folder, ignore_errors=True)


def _load(path: Path) -> Any:
    """A module of the package, which is not installed yet."""
    spec = importlib.util.spec_from_file_location("quire_compile", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module
