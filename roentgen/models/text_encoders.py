"""Text encoders: load one by name, read text into tokens, encode tokens.

A text becomes tokens in one place, ``TextReader``, for training and generation alike. A text that is longer than the
encoder's window is read in chunks, each with its own start and end token, encoded one by one and joined along the
token axis, where the U-Net's cross-attention reads any length.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from roentgen.errors import UserError
from roentgen.files import explained, user_path
from roentgen.models import hub, loading

# Names of --text-encoder; None stands for the text encoder that the pipeline has.
ENCODERS: dict[str, str | None] = {
    "clip": None,
    "radbert": "StanfordAIMI/RadBERT",
    "sapbert": "cambridgeltl/SapBERT-from-PubMedBERT-fulltext",
    "cxr-bert": "microsoft/BiomedVLP-CXR-BERT-specialized",
}
LAYERS = ("last", "penultimate")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
)


# ------------------------------------------------------------------------------------ loading by name


@dataclass(frozen=True)
class Family:
    """Classes of transformers that load one kind of text encoder, and the files that its tokenizer is made of."""

    config: str
    model: str
    tokenizer: str
    files: tuple[str, ...]


_BERT = Family("BertConfig", "BertModel", "BertTokenizerFast", ("vocab.txt",))
_ROBERTA = Family("RobertaConfig", "RobertaModel", "RobertaTokenizerFast", ("vocab.json", "merges.txt"))
_CLIP = Family("CLIPTextConfig", "CLIPTextModel", "CLIPTokenizerFast", ("vocab.json", "merges.txt"))
# By ``model_type`` of config.json. "cxr-bert" is a BERT with a projection head on top; its own code adds only that
# head, so it is loaded as the BERT that it is and no remote code is run. "clip" is text and vision model in one.
FAMILIES = {"bert": _BERT, "cxr-bert": _BERT, "roberta": _ROBERTA, "clip_text_model": _CLIP, "clip": _CLIP}


def load_text_encoder(name: str, *, layer: str = "last") -> tuple[Any, Any]:
    """Tokenizer and text encoder of ``name``: a name of ``ENCODERS``, a folder or a hub id; float32, on the CPU.

    A folder may hold a BERT, RoBERTa or CLIP checkpoint, with heads or without, or a diffusers pipeline, of which
    ``text_encoder/`` and ``tokenizer/`` are taken. A hub id comes from the cache if it is there, else from the hub.
    BERT encoders come without their pooler, which nothing would train, and with ``use_attention_mask`` set in their
    configuration, which stock diffusers reads as well. ``layer``: see ``keep_layer``.

    Raises:
        UserError: unknown name, files missing or damaged, another kind of model, no network.
    """
    if layer not in LAYERS:
        raise UserError(f"--text-layer {layer}: unknown; choose one of {', '.join(LAYERS)}")
    if name in ENCODERS and ENCODERS[name] is None:
        raise UserError(f"--text-encoder {name} is the text encoder of the pipeline itself: load the pipeline")
    folder = _find_folder(name)
    home = _home(folder)
    words = folder if home == folder else folder / "tokenizer"
    if not (home / "config.json").is_file():
        raise UserError(
            f"--text-encoder {name}: no text encoder in {folder} (no config.json); pass a folder that "
            "`save_pretrained` or `hf download` wrote"
        )
    values = loading.read_config(home / "config.json")
    family = FAMILIES.get(str(values.get("model_type")))
    if family is None:
        raise UserError(
            f"--text-encoder {name}: {home / 'config.json'} is of type {values.get('model_type')!r}; "
            "text encoders of the types BERT, RoBERTa and CLIP can be used"
        )
    _check_files(name, home, words, family)
    tokenizer = _load_tokenizer(words, family)
    encoder = _load_encoder(home, family, values)
    return tokenizer, keep_layer(encoder, layer)


def _find_folder(name: str) -> Path:
    """Local folder of a name, folder or hub id, fetched if need be."""
    path = user_path(name)
    if name not in ENCODERS and path.is_dir():
        return path
    hub_id = ENCODERS.get(name) or name
    if not hub.is_hub_id(hub_id):
        close = difflib.get_close_matches(name, ENCODERS, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise UserError(
            f"--text-encoder {name}: unknown; {hint}choose one of {', '.join(ENCODERS)}, a folder with a BERT or CLIP "
            "text model, or a hub id such as owner/name"
        )
    files = "config.json, tokenizer_config.json, vocab.txt and model.safetensors or pytorch_model.bin"
    return hub.find(
        "--text-encoder", name, (hub_id,), check=lambda folder: hub.weights(_home(folder)), choose=files_to_fetch,
        files=files,
    )  # fmt: skip


def _home(folder: Path) -> Path:
    """Where the text encoder lies: in the folder itself, or in that of a pipeline."""
    return folder / "text_encoder" if (folder / "text_encoder").is_dir() else folder


def files_to_fetch(names: Sequence[str]) -> list[str]:
    """Those of a hub repository's files that make tokenizer and text encoder; the weights in one format only."""
    inside = "text_encoder/config.json" in names
    home, words = ("text_encoder/", "tokenizer/") if inside else ("", "")
    wanted = [home + "config.json", *(words + file for file in TOKENIZER_FILES)]
    inside_home = [name.removeprefix(home) for name in names if name.startswith(home)]
    picked, _ = hub.pick_weights(inside_home)
    indices = {re.sub(r"-\d+-of-\d+", "", name) + ".index.json" for name in picked}
    weights = [home + name for name in inside_home if name in picked or name in indices]
    return [name for name in wanted if name in names] + weights


def _check_files(name: str, home: Path, words: Path, family: Family) -> None:
    for file in hub.weights(home, flag="--text-encoder").files:
        if file.suffix == ".safetensors":
            loading.check_safetensors(file)
    missing = [file for file in family.files if not (words / file).is_file()]
    if missing and not (words / "tokenizer.json").is_file():
        raise UserError(
            f"--text-encoder {name}: the tokenizer is missing from {words} ({' and '.join(missing)}, or "
            "tokenizer.json); fetch these files as well"
        )


def _load_tokenizer(folder: Path, family: Family) -> Any:
    import transformers

    # The class is given, not looked up: a tokenizer_config.json may name one that only remote code has.
    kind = getattr(transformers, family.tokenizer)
    return loading.from_folder(kind, folder, f"{folder}: the tokenizer cannot be loaded", "fetch it again")


def _load_encoder(folder: Path, family: Family, values: dict[str, Any]) -> Any:
    import transformers

    inner = values["text_config"] if values["model_type"] == "clip" else values
    settings = {k: v for k, v in inner.items() if k not in ("auto_map", "architectures", "model_type")}
    options: dict[str, Any] = {} if family is _CLIP else {"add_pooling_layer": False}
    what = f"{folder}: cannot be loaded as {family.model}"
    with explained(what, loading.ADVICE):
        options["config"] = getattr(transformers, family.config).from_dict(settings)
    encoder = loading.from_folder(getattr(transformers, family.model), folder, what, **options)
    if family is not _CLIP:
        encoder.config.use_attention_mask = True
    return encoder.float()


def keep_layer(text_encoder: Any, layer: str) -> Any:
    """The same ``text_encoder``, which from now on gives the states of its ``last`` or ``penultimate`` layer.

    The penultimate layer is had by removing the last one, so that the saved encoder gives it in any library; a CLIP
    encoder's final norm stays, as in SD 2.x (whose encoder is published without its last layer, so that ``last`` is
    right there). The configuration notes it: taking it again, as a continued training does, removes nothing more.

    Raises:
        UserError: unknown layer, or an encoder of one layer.
    """
    if layer not in LAYERS:
        raise UserError(f"--text-layer {layer}: unknown; choose one of {', '.join(LAYERS)}")
    if layer == "last" or text_encoder.config.to_dict().get("text_layer") == layer:
        return text_encoder
    for module in text_encoder.modules():
        for name, stack in module.named_children():
            if name in ("layer", "layers") and isinstance(stack, nn.ModuleList):
                if len(stack) < 2:
                    raise UserError(f"--text-layer {layer}: the text encoder has one layer only; use --text-layer last")
                setattr(module, name, stack[:-1])
                text_encoder.config.num_hidden_layers = len(stack) - 1
                text_encoder.config.text_layer = layer
                return text_encoder
    raise UserError(f"--text-layer {layer}: {type(text_encoder).__name__} is of an unknown kind; use --text-layer last")


# ------------------------------------------------------------------------------------- text to tokens


@dataclass(frozen=True)
class Tokens:
    """N texts as tokens, each C chunks of L tokens in a row.

    ids: int64 (N, C * L). attention: int64 (N, C * L), 1 where the text encoder may look, 0 on padding.
    used: bool (N, C * L), False only in chunks that this text does not need; they hold the empty text. Padding within
    a chunk that is needed counts as used, as stock diffusers has it (the U-Net reads it too), unless the reader says
    otherwise. chunks: C.
    """

    ids: Tensor
    attention: Tensor
    used: Tensor
    chunks: int = 1

    def to(self, device: torch.device | str) -> Tokens:
        """The same tokens on ``device``."""
        return replace(self, ids=self.ids.to(device), attention=self.attention.to(device), used=self.used.to(device))

    def __getitem__(self, rows: slice | Tensor) -> Tokens:
        """The texts chosen by a slice, or by an index or boolean tensor."""
        return replace(self, ids=self.ids[rows], attention=self.attention[rows], used=self.used[rows])


@dataclass(frozen=True)
class LongTexts:
    """How long texts are: their number, those that need more than one chunk but fit, those that do not fit and are
    cut, and the tokens of the longest with one start and one end."""

    total: int
    chunked: int
    cut: int
    longest: int


@dataclass(frozen=True)
class TextReader:
    """How text becomes tokens; make one with ``make_reader``.

    window: tokens of a chunk with its start and end. chunks: chunks of a text. masked: the encoder wants the attention
    mask (BERT); CLIP, which reads from left to right, has never had one. padding: whether padding within a chunk counts
    as used.
    """

    tokenizer: Any
    window: int
    chunks: int = 1
    masked: bool = False
    padding: bool = True

    def tokens(self, texts: Sequence[str]) -> Tokens:
        """Tokens of ``texts``; what is longer than ``chunks`` chunks hold is cut (``count`` says how often)."""
        start, end = self._frame()
        room = self.window - len(start) - len(end)
        ids, attention, used = [], [], []
        for words in self._plain(texts):
            for chunk in range(self.chunks):
                piece = [*start, *words[chunk * room : (chunk + 1) * room], *end]
                padding = self.window - len(piece)
                ids.append([*piece, *([self.tokenizer.pad_token_id] * padding)])
                attention.append([1] * len(piece) + [0] * padding)
                shown = chunk == 0 or len(words) > chunk * room
                used.append([shown] * len(piece) + [shown and self.padding] * padding)
        shape = (len(texts), self.chunks * self.window)
        return Tokens(
            torch.tensor(ids, dtype=torch.int64).reshape(shape),
            torch.tensor(attention, dtype=torch.int64).reshape(shape),
            torch.tensor(used, dtype=torch.bool).reshape(shape),
            self.chunks,
        )

    def count(self, texts: Sequence[str]) -> LongTexts:
        """How many of ``texts`` need several chunks, and how many would be cut."""
        frame = sum(map(len, self._frame()))
        room = self.window - frame
        lengths: list[int] = []
        for first in range(0, len(texts), 4096):  # what the tokenizer returns takes much more memory than lengths
            lengths += [len(words) for words in self._plain(texts[first : first + 4096])]
        return LongTexts(
            total=len(lengths),
            chunked=sum(room < n <= room * self.chunks for n in lengths),
            cut=sum(n > room * self.chunks for n in lengths),
            longest=max(lengths, default=0) + frame,
        )

    def fitted(self, text: str) -> TextReader:
        """This reader with no more chunks than ``text`` needs."""
        if self.chunks == 1:
            return self
        room = self.window - sum(map(len, self._frame()))
        needed = -(-len(self._plain([text])[0]) // room)
        return replace(self, chunks=min(max(needed, 1), self.chunks))

    @property
    def limit(self) -> int:
        """Tokens of the longest text that is not cut, with one start and one end, as ``LongTexts.longest`` counts."""
        frame = sum(map(len, self._frame()))
        return self.chunks * (self.window - frame) + frame

    def words(self, text: str) -> dict[str, tuple[int, ...]]:
        """Each word of ``text``, lower-case, in order, and where its tokens stand in what ``fitted(text)`` makes of it.

        The tokens of a word that comes twice are all of its tokens.
        """
        start, end = self._frame()
        room = self.window - len(start) - len(end)
        found: dict[str, tuple[int, ...]] = {}
        for match in re.finditer(r"[^\W_]+(?:['-][^\W_]+)*", text):
            # No tokenizer here joins what a space or punctuation parts: the tokens before a word are those of the text
            # before it.
            first, last = (len(one) for one in self._plain([text[: match.start()].rstrip(), text[: match.end()]]))
            places = [n // room * self.window + len(start) + n % room for n in range(first, last)]
            word = match.group().lower()
            found[word] = (*found.get(word, ()), *places)
        return found

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids without start and end. ``verbose``: the tokenizer would warn of long texts, which are ours to report."""
        if not len(texts):
            return []
        found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]
        return found

    def _frame(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after every text: CLIP <start> <end>, BERT [CLS] [SEP]."""
        empty = self.tokenizer("")["input_ids"]
        return empty[:-1], empty[-1:]


def make_reader(tokenizer: Any, text_encoder: Any, *, window: int | None = None, chunks: int = 1) -> TextReader:
    """Reader for a tokenizer and encoder that belong together.

    Args:
        tokenizer: its ``model_max_length`` is set to the window, which is how a saved pipeline, and stock diffusers,
            know it.
        text_encoder: CLIP, BERT or RoBERTa text model.
        window: tokens of a chunk with start and end; None: as many as tokenizer and encoder allow.
        chunks: chunks of a text at most.

    Raises:
        UserError: a vocabulary larger than the encoder's, a window longer than its positions, no padding token.
    """
    config = text_encoder.config.to_dict()
    vocabulary = config.get("vocab_size")
    if vocabulary is not None and len(tokenizer) > vocabulary:
        raise UserError(
            f"the tokenizer has {len(tokenizer)} tokens but its text encoder knows {vocabulary}: they do not belong "
            "together; take both from one model"
        )
    if tokenizer.pad_token_id is None:
        raise UserError("the tokenizer has no padding token; set pad_token in its tokenizer_config.json")
    if chunks < 1:
        raise UserError(f"--text-chunks {chunks}: must be at least 1")
    positions = config.get("max_position_embeddings")
    if positions is not None and "roberta" in config["model_type"]:
        positions -= config["pad_token_id"] + 1  # RoBERTa counts positions from there
    with explained("the tokenizer cannot be used", loading.ADVICE):
        frame = len(tokenizer("")["input_ids"])
        widest = min((int(limit) for limit in (tokenizer.model_max_length, positions) if limit), default=0)
        tokenizer(["left pleural effusion"], add_special_tokens=False)
    if window is None:
        window = widest
    elif positions is not None and window > positions:
        raise UserError(
            f"--text-window {window}: the text encoder has {positions} positions; use at most {positions}, and "
            "--text-chunks for longer texts"
        )
    if window <= frame:
        raise UserError(f"--text-window {window}: must be more than {frame}, the start and end of a text")
    tokenizer.model_max_length = window
    return TextReader(tokenizer, window, chunks, bool(config.get("use_attention_mask", False)))


def encode_text_states(text_encoder: Any, tokens: Tokens, *, masked: bool) -> Tensor:
    """Last hidden states (N, C * L, D) of ``tokens``, in the encoder's dtype, chunk by chunk.

    Every chunk is a row of its own to the encoder, so that a text's states do not depend on the other texts.
    ``masked``: pass the attention mask, as ``TextReader.masked`` says.
    """
    rows, length = tokens.ids.shape
    window = length // tokens.chunks
    mask = tokens.attention.reshape(-1, window) if masked else None
    states: Tensor = text_encoder(tokens.ids.reshape(-1, window), attention_mask=mask)[0]
    return states.reshape(rows, length, -1)
