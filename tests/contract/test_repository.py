"""The repository keeps its word: generated files are fresh, documents name what exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from quire_api.command import SUBCOMMANDS
from quire_api.fetching import FETCH_OUTCOMES
from quire_api.generate import outputs
from quire_engine import errors
from quire_operator.backends.cluster import OWNED
from quire_operator.handlers import OPTIONAL, WATCHED
from quire_operator.planner.failures import EXIT_CODES, PASSING
from quire_operator.planner.workloads import GROUPS

DOCUMENTS = [Path("README.md"), Path("CONTRIBUTING.md"), *sorted(Path("docs").rglob("*.md"))]


@pytest.mark.parametrize("path", outputs())
def test_generated_file_is_fresh(path: str) -> None:
    assert Path(path).read_text() == outputs()[path], "run `make generate`"


def test_the_crd_is_small() -> None:
    assert len(Path("crds/quire.dev_llmdeployments.yaml").read_bytes()) < 100_000


def test_every_exit_code_of_the_engine_and_of_the_fetch_has_a_reason() -> None:
    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.EngineFailure)]
    engine = {c.exit_code for c in classes if "exit_code" in vars(c)} - {errors.EngineFailure.exit_code}
    lasting = {outcome.exit_code for outcome in FETCH_OUTCOMES.values() if not outcome.passing}
    passing = {outcome.exit_code for outcome in FETCH_OUTCOMES.values() if outcome.passing}

    assert engine | lasting == set(EXIT_CODES)
    assert {errors.EXIT_HUNG} | passing == set(PASSING)


def test_every_subcommand_is_there() -> None:
    for name in SUBCOMMANDS:
        done = subprocess.run([sys.executable, "-m", "quire_api", name, "--help"], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert f"quire {name}" in done.stdout


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z][a-z0-9-]*):", Path("Makefile").read_text(), re.M))


@pytest.mark.parametrize("path", DOCUMENTS, ids=str)
def test_documents_name_only_what_exists(path: Path) -> None:
    text = path.read_text()

    for target in re.findall(r"(?:^|`)make ([a-z][a-z0-9-]*)", text, re.M):
        assert target in make_targets(), f"make {target}"
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", text):
        assert (path.parent / link).exists(), link
    for command in re.findall(r"(?:^|`|/)quire ([a-z]+)", text, re.M):
        assert command in SUBCOMMANDS, f"quire {command}"


def test_the_readmes_tree_is_the_tree() -> None:
    block = Path("README.md").read_text().partition("```text\n")[2].partition("```")[0]
    named = [line.split()[0] for line in block.splitlines() if line.strip()]

    assert len(named) > 10
    for entry in named:
        assert Path(entry).exists(), entry


def test_ci_runs_the_readmes_commands() -> None:
    readme, script = Path("README.md").read_text(), Path(".ci/run").read_text()

    for command in ("make test", "make check", "make e2e"):
        assert command in readme
        assert command in script


def test_everything_that_is_installed_is_pinned() -> None:
    pinned = {line.split("==")[0] for line in Path("constraints.txt").read_text().splitlines() if "==" in line}
    wanted = set()
    for project in Path().glob("*/pyproject.toml"):
        wanted |= {m.lower() for m in re.findall(r'^  "([A-Za-z0-9-]+)[>=]', project.read_text(), re.M)}

    assert wanted
    assert wanted <= pinned
    assert "://" not in Path("constraints.txt").read_text()


def test_the_shipped_model_is_small() -> None:
    assert sum(f.stat().st_size for f in Path("models/quire-tiny").iterdir()) <= 8_000_000


@pytest.mark.parametrize(("template", "command"), [("deployment.yaml", "operator"), ("router.yaml", "router")])
def test_the_chart_passes_only_flags_which_the_command_has(template: str, command: str) -> None:
    text = Path("charts/quire/templates", template).read_text()
    done = subprocess.run([sys.executable, "-m", "quire_api", command, "--help"], capture_output=True, text=True)

    flags = set(re.findall(r"- (--[a-z-]+)", text))

    assert flags
    assert {flag for flag in flags if flag not in done.stdout} == set()


def test_the_chart_allows_what_the_operator_does_with_its_objects_and_no_more() -> None:
    """A missing verb on a watched kind ends the process."""
    role = Path("charts/quire/templates/rbac.yaml").read_text().partition("{{- if .Values.namespaces }}")[0]
    rules = re.findall(r"resources: \[([^]]+)\].*\n    verbs: \[([^]]+)\]", role)
    allowed = {resource: set(verbs.split(", ")) for resources, verbs in rules for resource in resources.split(", ")}

    for _, _, plural, kind in (*WATCHED, *OPTIONAL):
        extra = {"get", "create", "patch", "delete"} if kind in OWNED else {"patch"} if kind == "Pod" else set()
        if kind == GROUPS:  # a resource keeps its groups until it goes, and they go with it
            extra -= {"delete"}
        assert allowed[plural] == {"list", "watch"} | extra, plural
    assert set(OWNED) <= {kind for _, _, _, kind in (*WATCHED, *OPTIONAL)}
