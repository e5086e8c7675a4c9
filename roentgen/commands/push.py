"""``roentgen push``: a model, an adapter or a data set to the Hugging Face hub, with its card."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from roentgen.config import Positional
from roentgen.errors import UserError
from roentgen.files import explained, read_json, user_path

Kind = Literal["model", "adapter", "data set"]
# What tells a folder's kind: the first file that is there.
SIGNS: dict[str, Kind] = {
    "pytorch_lora_weights.safetensors": "adapter",
    "model_index.json": "model",
    "roentgen.json": "model",
    "model.safetensors": "model",
    "summary.json": "data set",
}
FEW = 5


def push(
    words: Annotated[tuple[str, ...], Positional()] = (),
    results: Path | None = None,
    public: bool = False,
    dry_run: bool = False,
) -> int:
    """Put a model, an adapter or an exported data set on the Hugging Face hub; prints its address.

        roentgen push runs/quickstart/pipeline OWNER/NAME --dry-run
        roentgen push runs/quickstart/pipeline OWNER/NAME --results runs/eval

    Refuses folders whose texts seem to say who a patient is, that hold paths of your machine, or images that are not
    marked as wholly synthetic.

    What goes:
        words: The folder, then OWNER/NAME of the repository, which is made if it is not there.
        results: Folder that `roentgen eval` wrote; its figures go into the card of a model.
        public: Everybody may see a repository that is made; without it, only you.
        dry_run: Show what would go, with its card, and stop.
    """
    folder, target = _folder_and_target(words)
    kind = kind_of(folder)
    card = _card(folder, kind, target.rpartition("/")[2], results)
    files = files_of(folder)
    check_folder(folder, files)
    size = sum(path.stat().st_size for path in files)
    if dry_run:
        for path in files:
            print(f"{path.stat().st_size:>12,}  {path.relative_to(folder).as_posix()}")
        if card is not None:
            print(f"{len(card.encode()):>12,}  README.md (written)\n\n{card}")
        print(f"{len(files)} files, {size / 1e6:.1f} MB, as a {kind} to {target}; nothing was sent", file=sys.stderr)
        return 0
    print(upload(folder, files, target, kind=kind, card=card, public=public))
    return 0


def kind_of(folder: Path) -> Kind:
    """What a folder holds; UserError where it is none of what roentgen writes."""
    for name, kind in SIGNS.items():
        if (folder / name).is_file():
            return kind
    hint = next(
        (f"; did you mean {folder / inner}?" for inner in ("pipeline", "model") if (folder / inner).is_dir()), ""
    )
    raise UserError(f"{folder}: no model, adapter or exported data set in it ({', '.join(SIGNS)}){hint}")


def files_of(folder: Path) -> list[Path]:
    """The files that would go, in order: none that is hidden, or in a hidden folder. UserError on a link."""
    found = []
    for path in sorted(folder.rglob("*")):
        if any(part.startswith(".") for part in path.relative_to(folder).parts):
            continue
        if path.is_symlink() and not path.exists():
            raise UserError(f"{path}: a link that leads nowhere; remove it")
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"{path}: a link to something outside of the folder; replace it by what it points to")
        if path.is_file():
            found.append(path)
    return found


def check_folder(folder: Path, files: Sequence[Path]) -> None:
    """UserError where a file should not be published; it names the file and the kind, never the words."""
    from roentgen.data.leaks import find_leaks, unmarked_images

    found = [*find_leaks(folder, files), *unmarked_images(folder, files)]
    if found:
        more = f" (and {len(found) - FEW} more)" if len(found) > FEW else ""
        said = "; ".join(f"{name} holds {kind}" for name, kind in found[:FEW])
        raise UserError(f"{folder}: not sent, since {said}{more}; remove it, or leave the file out")


def upload(folder: Path, files: Sequence[Path], target: str, *, kind: Kind, card: str | None, public: bool) -> str:
    """Make the repository, send the files in one commit, and return its address. UserError where the hub refuses."""
    from huggingface_hub import CommitOperationAdd, HfApi

    where = "dataset" if kind == "data set" else "model"
    operations = [
        CommitOperationAdd(path.relative_to(folder).as_posix(), path)
        for path in files
        if card is None or path != folder / "README.md"
    ]
    if card is not None:
        operations.append(CommitOperationAdd("README.md", card.encode()))
    with explained(
        f"{target}: the hub did not take it", "log in with `hf auth login`, or check the name"
    ):  # no account, no network, a name that is taken: the hub's own words say which
        api = HfApi()
        url = api.create_repo(target, repo_type=where, private=not public, exist_ok=True)
        api.create_commit(target, operations, commit_message="Written by roentgen push", repo_type=where)
    return str(url)


def _folder_and_target(words: tuple[str, ...]) -> tuple[Path, str]:
    from roentgen.models.hub import is_hub_id

    if len(words) != 2:
        raise UserError("name the folder and the repository, as in roentgen push runs/quickstart/pipeline OWNER/NAME")
    folder, target = user_path(words[0]), words[1]
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name what a recipe or roentgen export wrote")
    if not is_hub_id(target):
        raise UserError(f"{target}: no name of a repository; write OWNER/NAME")
    return folder, target


def _card(folder: Path, kind: Kind, name: str, results: Path | None) -> str | None:
    """A card to send in place of the folder's own, where it has none or figures are added; None: as it is."""
    has_card = (folder / "README.md").is_file()
    if results is None and has_card:
        return None
    if kind == "data set":
        raise UserError(
            f"{folder}: --results go into cards of models only"
            if has_card
            else f"{folder}: has no README.md; export it again"
        )
    training = next(
        (path for path in (folder / "training.json", folder.parent / "training.json") if path.is_file()), None
    )
    if training is None:
        raise UserError(f"{folder}: no training.json in it or beside it to write a card from; add a README.md yourself")
    from roentgen.models import card

    measures = ""
    if results is not None:
        if not results.is_dir():
            raise UserError(f"--results {results}: no such folder; name what roentgen eval wrote")
        from roentgen.metrics.report.page import markdown

        measures = markdown(results)
    said = read_json(training, advice="train again, or write README.md yourself")
    return card.card(said, name=name, adapter=kind == "adapter", measures=measures)
