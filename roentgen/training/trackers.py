"""Where the figures of a run go: TensorBoard, Weights & Biases or MLflow, through accelerate's trackers."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from roentgen.config import Filled, flat
from roentgen.errors import UserError
from roentgen.files import reason
from roentgen.provenance import portable

PROJECT = "roentgen"
"""Project of Weights & Biases, experiment of MLflow."""
Trackers = Annotated[
    tuple[Literal["tensorboard", "wandb", "mlflow"], ...],
    Filled(),
    "where figures go: tensorboard (OUT/log), wandb, mlflow, or several with commas",
]

QUIET: dict[str, Any] = {
    "x_disable_meta": True, "x_disable_machine_info": True, "x_disable_stats": True, "x_save_requirements": False,
    "disable_git": True, "disable_code": True, "console": "off", "host": "",
}  # fmt: skip
QUIET_TAGS = {"mlflow.source.name": PROJECT, "mlflow.user": ""} | {
    f"mlflow.source.git.{what}": "" for what in ("commit", "branch", "repoURL")
}
"""MLflow would tell the path of the program, the user's name, and the branch and address of their repository."""
OFFLINE = {
    "wandb": "; set it up, or set WANDB_MODE=offline",
    "mlflow": "; set MLFLOW_TRACKING_URI to a server, or to sqlite:///mlflow.db for a file here",
}
"""What to do where a tracker does not start."""


def check_trackers(names: Sequence[str]) -> None:
    """UserError where a tracker's package is not installed; nothing is imported yet."""
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise UserError(f"--trackers {name}: the package {name} is not installed; pip install {name}")


class Log:
    """The figures of one run, at counts of images seen, to every tracker of ``names``; for the main process.

    Args:
        names: of ``Trackers``, each once.
        folder: run folder; TensorBoard's files go to ``log`` in it, those of Weights & Biases to ``wandb``.
        settings: of the run, nested; told to the trackers that keep settings, paths by their last part.

    Raises:
        UserError: a tracker does not start, such as one that wants an account.
    """

    def __init__(self, names: Sequence[str], folder: Path, settings: Mapping[str, Any]) -> None:
        from accelerate import tracking

        told = {key: _plain(portable(value)) for key, value in flat(settings).items()}
        self.trackers: list[Any] = []
        folder.mkdir(parents=True, exist_ok=True)  # Weights & Biases writes elsewhere where there is none
        for name in dict.fromkeys(names):
            try:
                if name == "tensorboard":
                    tracker: Any = tracking.TensorBoardTracker("", logging_dir=folder / "log")
                elif name == "wandb":
                    tracker = tracking.WandBTracker(
                        PROJECT, dir=str(folder), name=folder.name, settings=_quiet_settings()
                    )
                else:
                    tracker = tracking.MLflowTracker(PROJECT, run_name=folder.name, tags=QUIET_TAGS)
                if hasattr(tracker, "start"):  # accelerate before 1.9 starts in the constructor
                    tracker.start()
                if name != "tensorboard":  # which would write a second run for them
                    tracker.store_init_configuration(told)
            except Exception as error:  # each has errors of its own, for an account, a server or a folder
                raise UserError(f"--trackers {name}: cannot start ({reason(error)}){OFFLINE.get(name, '')}") from error
            self.trackers.append(tracker)

    def add_scalar(self, name: str, value: float, images: int) -> None:
        """One figure after so many images."""
        for tracker in self.trackers:
            tracker.log({name: float(value)}, step=images)


def _quiet_settings() -> Any:
    """Settings of Weights & Biases by which it tells nothing of this machine: paths, command line, host, packages."""
    import wandb

    known = getattr(wandb.Settings, "model_fields", {})  # their names differ between versions
    return wandb.Settings(**{key: value for key, value in QUIET.items() if key in known})


def _plain(value: object) -> object:
    """What every tracker keeps of a setting."""
    return value if isinstance(value, bool | int | float | str) else str(value)
