"""Programs of others that read what the server says: promtool its metrics, lm-eval its log probabilities."""

import json
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
from pathlib import Path

from fakes.serving import serving

ROOT = Path(__file__).resolve().parents[2]
HERE = Path(__file__).resolve().parent
LM_EVAL = Path.home() / ".cache" / "quire-e2e" / "lm-eval"
NOT_OURS = (  # vLLM's names, which dashboards expect, against promtool's taste
    "metric names should not contain ':'",
    'vllm:iteration_tokens_total non-counter metrics should not have "_total" suffix',
)


def promtool_reads_the_metrics() -> None:
    """promtool finds nothing in /metrics but the names that vLLM chose"""
    subprocess.run([ROOT / "scripts" / "system-packages.sh", "e2e"], check=True)
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), "serve", "builtin://quire-tiny") as server:
        server.post("/v1/completions", prompt="Hello", max_tokens=3, n=2)
        with urllib.request.urlopen(f"{server.url}/metrics") as answer:
            metrics = answer.read()
    done = subprocess.run(["promtool", "check", "metrics"], input=metrics, capture_output=True)
    complaints = (done.stdout + done.stderr).decode().splitlines()
    others = [line for line in complaints if not any(each in line for each in NOT_OURS)]
    assert not others, "\n".join(others)
    assert re.search(rb"^vllm:generation_tokens_total\{.*\} 6\.0$", metrics, re.M), metrics.decode()


def lm_eval_runs_to_the_end() -> None:
    """lm-eval's local-completions runs two tasks of a local file to the end, and quire-tiny knows the answers"""
    _install_lm_eval()
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), "serve", "builtin://quire-tiny") as server:
        arguments = {
            "base_url": f"{server.url}/v1/completions",
            "model": "quire-tiny",
            "tokenizer": str(ROOT / "models" / "quire-tiny"),
            "tokenizer_backend": "huggingface",
            "max_length": "2048",
            "num_concurrent": "4",
        }
        done = subprocess.run(
            [
                LM_EVAL / "bin" / "lm_eval", "run", "--model", "local-completions",
                "--model_args", ",".join(f"{name}={value}" for name, value in arguments.items()),
                "--tasks", "known,said", "--include_path", HERE / "tasks", "--output_path", folder,
            ],
            cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=300,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": folder, "PYTHONPATH": ""},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:]
        (file,) = Path(folder).rglob("results_*.json")
        results = json.loads(file.read_text())["results"]
    assert results["known"]["acc,none"] == 1.0, results
    assert results["said"]["exact_match,none"] == 1.0, results


def _install_lm_eval() -> None:
    """In an environment of its own: it brings more than all of Quire. Kept for the next run."""
    wanted = (HERE / "lm-eval.txt").read_text()
    done = LM_EVAL / "installed.txt"
    if done.exists() and done.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", LM_EVAL], check=True)
    uv = [ROOT / ".venv" / "bin" / "uv", "pip", "install", "--quiet", "--python", LM_EVAL / "bin" / "python"]
    subprocess.run([*uv, "-r", HERE / "lm-eval.txt"], check=True)
    done.write_text(wanted)


STAGES = (promtool_reads_the_metrics, lm_eval_runs_to_the_end)
