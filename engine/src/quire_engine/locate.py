"""Where a model's folder is: `/path`, `file:///path`, or `builtin://name`, the models that ship with the engine."""

from pathlib import Path

from quire_engine.errors import WeightsFailure

__all__ = ["locate_model"]

IMAGE_MODELS = Path("/models")  # where Dockerfile.engine puts models/


def locate_model(model: str) -> Path:
    """The folder; WeightsFailure in one sentence when there is none."""
    scheme, separator, rest = model.partition("://")
    if not separator:
        return _existing(Path(model).expanduser())
    if scheme == "file":
        return _existing(Path(rest))
    if scheme == "builtin":
        return _builtin(rest)
    raise WeightsFailure(
        f"{model}: {scheme}:// is not supported yet; use a folder, file:///path or builtin://quire-tiny"
    )


def _existing(folder: Path) -> Path:
    if (folder / "config.json").is_file():
        return folder
    seen = "there is no config.json in it" if folder.is_dir() else "there is no such folder"
    raise WeightsFailure(f"no model at {folder}: {seen}")


def _builtin(name: str) -> Path:
    checkout = next((p / "models" for p in Path(__file__).resolve().parents if (p / "models" / name).is_dir()), None)
    for models in (IMAGE_MODELS, checkout):
        if models and (models / name / "config.json").is_file():
            return models / name
    raise WeightsFailure(f"builtin://{name}: no such model ships with this engine; builtin://quire-tiny does")
