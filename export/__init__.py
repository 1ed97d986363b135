"""Checkpoints to bundles. Needs PyTorch and ONNX: ``pip install 'fgclip-rt[export]'``.

Both are imported when a name of this module is first used, so that the registry of models, and what can be checked
without them, is there at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fgclip_rt.progress import BeginStage

    from .checkpoints.locate import LocalFiles
    from .checkpoints.registry import MODELS, ModelSpec, find_model
    from .pipeline import Source, checkpoint_source, export, random_source, verify_against
    from .precision.calibration import CalibrationInputs
    from .precision.gate import Gate
    from .precision.precisions import PRECISIONS

__all__ = [
    "MODELS",
    "PRECISIONS",
    "BeginStage",
    "CalibrationInputs",
    "Gate",
    "LocalFiles",
    "ModelSpec",
    "Source",
    "checkpoint_source",
    "export",
    "find_model",
    "random_source",
    "verify_against",
]

_HOMES = {
    "BeginStage": "fgclip_rt.progress",
    "CalibrationInputs": ".precision.calibration",
    "Gate": ".precision.gate",
    "LocalFiles": ".checkpoints.locate",
    "MODELS": ".checkpoints.registry",
    "ModelSpec": ".checkpoints.registry",
    "PRECISIONS": ".precision.precisions",
    "find_model": ".checkpoints.registry",
}


# A checker reads the imports above instead, and so finds a misspelt name.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(import_module(_HOMES.get(name, ".pipeline"), __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
