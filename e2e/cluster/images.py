"""Builds images with buildah and hands them to a cluster's containerd. Storage is our own, in the cache.

The base is what `debian:bookworm-slim` is: a minimal Debian, made by debootstrap, so that no registry is needed.
Layers are cached between runs: an edit of our own code rebuilds the last, thin ones.
"""

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

from layout import CACHE, Layout

ROOT = Path(__file__).resolve().parents[2]
ARCHIVES = 2  # of a name: of two runs at once each finds its own
BASE = "localhost/quire-e2e/debian:bookworm"
PAUSE_SOURCE = """\
#include <signal.h>
#include <unistd.h>
static void end(int number) { _exit(0); }
int main(void) { signal(SIGTERM, end); signal(SIGINT, end); for (;;) pause(); }
"""


def build_images() -> dict[str, Path]:
    """Build engine and operator; image name -> archive. One build at a time: all share one storage."""
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "images.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        _ensure_base()
        return {
            f"localhost/quire-{name}:e2e": _build(name, f"localhost/quire-{name}:e2e")
            for name in ("engine", "operator")
        }


def import_image(layout: Layout, archive: Path) -> None:
    _run(
        [
            "ctr",
            f"--address={layout.containerd_socket}",
            "--namespace=k8s.io",
            "images",
            "import",
            "--no-unpack",
            str(archive),
        ]
    )


def import_pause_image(layout: Layout) -> None:
    """The process that holds a pod's namespaces: ten lines of C, statically linked, alone in an image."""
    archive = CACHE / "pause.tar"
    if not archive.exists():
        context = CACHE / f"pause-{os.getpid()}"
        context.mkdir(parents=True)
        (context / "pause.c").write_text(PAUSE_SOURCE)
        _run(["gcc", "-static", "-Os", "-o", str(context / "pause"), str(context / "pause.c")])
        (context / "Dockerfile").write_text(
            'FROM scratch\nCOPY pause /pause\nUSER 65535:65535\nENTRYPOINT ["/pause"]\n'
        )
        _buildah("bud", "--tag=docker.io/quire-e2e/pause:1", str(context))
        _push("docker.io/quire-e2e/pause:1", "docker.io/quire-e2e/pause:1", archive)
        shutil.rmtree(context)
    import_image(layout, archive)


def _ensure_base() -> None:
    if _buildah("images", "--quiet", BASE, check=False).stdout.strip():
        return
    print("  making the base image with debootstrap ...", flush=True)
    tree = CACHE / f"debootstrap-{os.getpid()}"
    try:
        _run(["debootstrap", "--variant=minbase", "--include=ca-certificates", "bookworm", str(tree)])
        context = tree.parent
        (context / f"{tree.name}.Dockerfile").write_text(f'FROM scratch\nCOPY {tree.name}/ /\nCMD ["bash"]\n')
        _buildah(
            "bud",
            f"--file={context / f'{tree.name}.Dockerfile'}",
            f"--tag={BASE}",
            f"--ignorefile={os.devnull}",
            str(context),
        )
    finally:
        shutil.rmtree(tree, ignore_errors=True)
        (tree.parent / f"{tree.name}.Dockerfile").unlink(missing_ok=True)


def _build(name: str, tag: str) -> Path:
    """An archive named by its content; it is only written again when the image has changed."""
    started = time.monotonic()
    certificates = "/etc/ssl/certs:/etc/ssl/certs:ro"  # of this machine: a mirror may have an authority of its own
    with tempfile.NamedTemporaryFile() as number:
        _buildah(
            "bud", "--layers", f"--iidfile={number.name}", f"--build-arg=BASE_IMAGE={BASE}", f"--volume={certificates}",
            f"--file={ROOT / f'Dockerfile.{name}'}", f"--tag={tag}", str(ROOT),
        )  # fmt: skip
        image = Path(number.name).read_text().strip().rpartition(":")[2]
    archive = CACHE / "images" / f"{name}-{image[:16]}.tar"
    archive.parent.mkdir(parents=True, exist_ok=True)
    _remove_old(name, archive)
    if not archive.exists():
        _push(image, tag, archive)
    archive.touch()
    print(
        f"  {name} image ready in {time.monotonic() - started:.0f} s ({archive.stat().st_size / 1e9:.1f} GB)",
        flush=True,
    )
    return archive


def _remove_old(name: str, keep: Path) -> None:
    """All but the newest ones, and halves that a run left which was ended: whoever writes one now holds the lock, as we do."""
    others = [archive for archive in keep.parent.glob(f"{name}-*.tar") if archive != keep]
    newest_first = sorted(others, key=lambda archive: archive.stat().st_mtime, reverse=True)
    for archive in (*newest_first[ARCHIVES - 1 :], *keep.parent.glob(f"{name}-*.partial-*")):
        archive.unlink()


def _push(image: str, tag: str, archive: Path) -> None:
    partial = archive.with_suffix(f".partial-{os.getpid()}")
    _buildah("push", image, f"docker-archive:{partial}:{tag}")
    partial.rename(archive)


def _buildah(*arguments: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    storage = CACHE / "buildah"
    environment = {**os.environ, "STORAGE_DRIVER": "overlay", "BUILDAH_ISOLATION": "chroot", "TMPDIR": str(_tmp())}
    command = ["buildah", f"--root={storage / 'root'}", f"--runroot={storage / 'run'}", *arguments]
    return _run(command, environment, check=check)


def _tmp() -> Path:
    folder = CACHE / "tmp"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _run(
    command: list[str], environment: dict[str, str] | None = None, *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if check and done.returncode != 0:
        raise SystemExit(f"{' '.join(command)}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done
