"""Write every file that is made from the types: `make generate`; `--check` (in `make check`) fails when one is stale.

crds/ and the chart's copy of the CRD, docs/reference/*.md. A tool of the repository: it alone in this
package needs PyYAML, and it is never imported by the rest.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from quire_api import metrics
from quire_api.crd import custom_resource_definition
from quire_api.deployment import LLMDeployment, Spec
from quire_api.engine import EngineConfig
from quire_api.flags import FlagParser, add_flags, flag
from quire_api.reasons import REASONS, SCALE_REASONS, ConditionType, Reason
from quire_api.schema import structural
from quire_api.status import DeploymentStatus

__all__ = ["main", "outputs"]

NOTE = "Made from the types in api/src/quire_api by `make generate`; do not edit."


def outputs() -> dict[str, str]:
    """Path from the root of the repository -> content."""
    crd = yaml.safe_dump(custom_resource_definition(), sort_keys=False, width=110)
    chart = crd.replace("metadata:\n", "metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n", 1)
    if "{{" in crd:
        raise ValueError("a description holds `{{`, which Helm would take for a template")
    return {
        "crds/quire.dev_llmdeployments.yaml": f"# {NOTE}\n{crd}",
        "charts/quire/templates/crd.yaml": f"{{{{- /* {NOTE} */ -}}}}\n{{{{- if .Values.crds.enabled }}}}\n{chart}{{{{- end }}}}\n",
        "docs/reference/llmdeployment.md": _resource_page(),
        "docs/reference/engine-options.md": _options_page(),
        "docs/reference/conditions.md": _conditions_page(),
        "docs/reference/metrics.md": _metrics_page(),
    }


METRICS = (
    ("Engine", "At `/metrics` of the engine, which on a cluster is port 8000 of the pod.", metrics.ENGINE),
    ("Router", "At `/metrics` of the endpoint of `quire up` and `quire router`.", metrics.ROUTER),
    ("Operator", "At `/metrics` on port 8080 of its pod.", metrics.OPERATOR),
)


def _page(title: str, *parts: str) -> str:
    return "\n\n".join([f"# {title}", f"*{NOTE}*", *parts]) + "\n"


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in line) + " |" for line in lines
    )


def _resource_page() -> str:
    return _page(
        "LLMDeployment",
        "`apiVersion: quire.dev/v1alpha1`, `kind: LLMDeployment`. Samples stand in `config/samples/`.",
        "## spec",
        _table(("field", "type", "bounds", "meaning"), _rows(structural(Spec), "")),
        "## status",
        _table(("field", "type", "bounds", "meaning"), _rows(structural(DeploymentStatus), "")),
        "## Rules",
        "Checked by the API server and by `quire plan` alike, with these words.",
        "\n".join(
            f"- {message}" for message in _messages(structural(Spec)) + [rule.message for rule in LLMDeployment.rules]
        ),
    )


def _rows(schema: dict[str, Any], prefix: str) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for name, child in schema["properties"].items():
        inner = child.get("items", child)
        path = prefix + name + ("[]" if "items" in child else "")
        required = ", required" if name in schema.get("required", ()) else ""
        rows.append((f"`{path}`", child["type"] + required, _bounds(inner), child.get("description", "")))
        if "properties" in inner:
            rows += _rows(inner, path + ".")
    return rows


def _bounds(schema: dict[str, Any]) -> str:
    if "enum" in schema:
        return ", ".join(f"`{choice}`" for choice in schema["enum"])
    words = {"minimum": "≥ {}", "maximum": "≤ {}", "maxLength": "≤ {} characters", "pattern": "`{}`"}
    return ", ".join(text.format(schema[key]) for key, text in words.items() if key in schema)


def _messages(schema: dict[str, Any]) -> list[str]:
    found = [rule["message"] for rule in schema.get("x-kubernetes-validations", ())]
    for child in schema.get("properties", {}).values():
        found += _messages(child)
    return found


def _options_page() -> str:
    parser = FlagParser(add_help=False)
    add_flags(parser)
    shown = {action.dest: action for action in parser._actions}
    in_resource = structural(Spec)["properties"]["engine"]["properties"]
    rows: list[tuple[str, ...]] = []
    for name, field in EngineConfig.model_fields.items():
        yaml_name = f"`spec.engine.{field.alias}`" if field.alias in in_resource else ""
        metavar = shown[name].metavar
        option = flag(name) if metavar is None else f"{flag(name)} {metavar}"  # a switch has no value
        rows.append((f"`{option}`", yaml_name, (shown[name].help or "").replace("%%", "%")))
    return _page(
        "Options of the engine",
        "Flags of `quire serve`. Those with a name in the second column are also fields of the resource.",
        _table(("flag", "in the resource", "meaning"), rows),
    )


def _conditions_page() -> str:
    rows = [(f"`{reason}`", _standing(reason), doc.meaning, doc.fix) for reason, doc in REASONS.items()]
    scale = [(f"`{reason}`", meaning) for reason, meaning in SCALE_REASONS.items()]
    return _page(
        "Conditions",
        "`Ready` says whether the wanted replicas serve the wanted revision. `Reconciling` is there while Quire is at work, "
        "`Stalled` while only you can help. `Available` says whether any engine serves, of whatever revision; `Progressing` how a roll-out "
        "goes ([roll-outs](../rollouts.md)); `Degraded` that fewer serve than did. The reasons are a closed set:",
        _table(("reason", "on", "means", "what to do"), rows),
        "## Why the autoscaler wants as many engines",
        "`status.autoscaling.history` names one of these for each change ([autoscaling](../autoscaling.md)).",
        _table(("reason", "means"), scale),
    )


def _standing(reason: Reason) -> str:
    """The conditions that carry a reason, as they then stand."""
    return ", ".join(f"`{kind}={_state(kind, reason)}`" for kind in REASONS[reason].conditions)


_GOOD = {Reason.SERVING, Reason.SCALED_TO_ZERO, Reason.SUSPENDED}
_NOT_SO = {  # of a condition which is there when it holds, and sometimes when it does not
    ConditionType.AUTOSCALING_ACTIVE: {Reason.METRICS_UNAVAILABLE, Reason.HPA_NOT_ACTIVE},
    ConditionType.AVAILABLE: {Reason.NO_ENGINE_SERVES, Reason.SCALED_TO_ZERO, Reason.SUSPENDED},
    ConditionType.PROGRESSING: {Reason.ROLLED_BACK, Reason.PROGRESS_DEADLINE_EXCEEDED},
}


def _state(kind: ConditionType, reason: Reason) -> str:
    if kind is ConditionType.READY and reason is Reason.NOT_OBSERVED:
        return "Unknown"
    holds = reason in _GOOD if kind is ConditionType.READY else reason not in _NOT_SO.get(kind, ())
    return "True" if holds else "False"


def _metrics_page() -> str:
    parts = []
    for title, where, table in METRICS:
        parts += [f"## {title}", where]
        parts.append(
            _table(
                ("metric", "kind", "labels", "meaning"),
                [(f"`{m.name}`", m.kind, ", ".join(m.labels), m.help) for m in table],
            )
        )
    ours = {m.name.removeprefix("vllm:").removesuffix("_total") for m in metrics.ENGINE}
    ours.add("http_requests (without vllm:)")
    for name, why in metrics.VLLM.items():
        if (name in ours) == (why != "" and not why.startswith("the same")):
            raise ValueError(f"metrics.VLLM has {name} wrong: we {'do' if name in ours else 'do not'} export it")
    parts += [
        "## Beside vLLM 0.32",
        _table(
            ("vLLM", "here"),
            [(f"`vllm:{name.replace(', ', '`, `vllm:')}`", why or "the same") for name, why in metrics.VLLM.items()],
        ),
    ]
    return _page(
        "Metrics", "Names which vLLM has keep its name and meaning; `quire_` marks what only Quire has.", *parts
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="change nothing; fail when a file is stale")
    parser.add_argument("--root", type=Path, default=Path.cwd(), help="root of the repository")
    arguments = parser.parse_args()
    stale = []
    for path, content in outputs().items():
        file = arguments.root / path
        if file.exists() and file.read_text() == content:
            continue
        stale.append(path)
        if not arguments.check:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content)
            print(f"wrote {path}")
    if arguments.check and stale:
        print(f"stale: {', '.join(stale)}; run `make generate`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
