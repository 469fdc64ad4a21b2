"""The README's first page, done to the letter: `make run`, then its curl in another terminal."""

import re
import signal
import subprocess
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ENDPOINT = "http://127.0.0.1:8000"


def first_answer(seconds: float = 120) -> None:
    """Fails unless the README's own curl streams the answer, and Ctrl-C ends everything."""
    (curl,) = re.findall(r"^(curl -N .*?)\n```", (ROOT / "README.md").read_text(), re.M | re.S)
    running = subprocess.Popen(
        ["make", "run"], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True, text=True
    )
    try:
        started = time.monotonic()
        while True:
            assert running.poll() is None, running.stdout.read() if running.stdout else ""
            done = subprocess.run(
                ["bash", "-c", f"{curl} --silent --fail --max-time 20"], capture_output=True, text=True
            )
            if done.returncode == 0:
                break
            assert time.monotonic() - started < seconds, f"no answer: {done.stderr}"
            time.sleep(0.2)
        print(f"   answered {time.monotonic() - started:.1f} s after `make run`", flush=True)
        assert "data: [DONE]" in done.stdout, done.stdout
    finally:
        for pid in _processes_of(running.pid):  # Ctrl-C reaches every process of the terminal
            subprocess.run(["kill", f"-{signal.SIGINT.name[3:]}", str(pid)], capture_output=True)
        running.wait(60)


def _processes_of(session: int) -> list[int]:
    found = subprocess.run(["ps", "-o", "pid=", "-s", str(session)], capture_output=True, text=True).stdout.split()
    return [int(pid) for pid in found]
