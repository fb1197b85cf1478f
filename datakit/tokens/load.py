"""A tokenizer by name, as plain data: which text defines it, and what the configuration beside it adds.

`tokenizer.json` is the whole encoder: vocabulary, merges, normalizer, added tokens, and the tokens put around a text.
The files beside it add three things, which are read as transformers 5 reads them:

- the *named tokens* (`bos_token`, `eos_token`, ...) that chat templates see as variables;
- *more added tokens*: whatever is named there and missing in `tokenizer.json` becomes an added token with the next id;
- the *chat templates*.

`add_bos_token` and `add_eos_token` do nothing where there is a `tokenizer.json`: transformers ignores them too. What
stands around a text is what the post-processor of the file says.

A tokenizer is input from strangers. Files are capped in size, no code of a repository is run, and no path that is
written inside a file is followed. Nothing heavy is imported to read one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import orjson

from datakit.errors import UnreadableInput, UsageError
from datakit.reading import limits
from datakit.terminal import first_line

LARGEST_BESIDE: Final = 16 * limits.MiB
"""The greatest configuration or template that is read, in bytes."""

NAMED: Final = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

_END: Final = "<|endoftext|>"
DEFAULTS: Final[Mapping[str, Mapping[str, str]]] = {
    "CohereTokenizer": {
        "unk_token": "<UNK>",
        "bos_token": "<BOS_TOKEN>",
        "eos_token": "<|END_OF_TURN_TOKEN|>",
        "pad_token": "<PAD>",
        "cls_token": "<CLS>",
        "sep_token": "<SEP>",
        "mask_token": "<MASK_TOKEN>",
    },
    "GPT2Tokenizer": {"unk_token": _END, "bos_token": _END, "eos_token": _END},
    "GPTNeoXTokenizer": {"unk_token": _END, "bos_token": _END, "eos_token": _END, "pad_token": "<|padding|>"},
    "GemmaTokenizer": {
        "unk_token": "<unk>",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "mask_token": "<mask>",
    },
    "LlamaTokenizer": {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"},
    "Qwen2Tokenizer": {"unk_token": _END, "eos_token": _END, "pad_token": _END},
}
"""The named tokens that a tokenizer class of transformers has where its configuration says nothing (null is a word)."""

PADS: Final = (
    "<|finetune_right_pad_id|>",
    "<pad>",
    "[PAD]",
    "<|pad|>",
    "<|padding|>",
    "<｜▁pad▁｜>",
    "<|reserved_special_token_0|>",
    _END,
)
"""Tokens that can pad where none is named, the best first; each was never trained to mean something in a chat."""

PATTERNS: Final = ("tokenizer*.json", "special_tokens_map.json", "chat_template*", "additional_chat_templates/*.jinja")
FOREIGN: Final = ("*.model", "tekken.json", "*.tiktoken", "vocab.json", "vocab.txt", "merges.txt")
"""Files of tokenizers without a tokenizer.json, which transformers can convert."""

_HUB_NAME: Final = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?:@(?P<revision>[\w./-]+))?")

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Pad:
    """The token that fills rows up to one length.

    Attributes:
        token, id: its text and id.
        why: why this one was taken.
        by_length: padding must be masked by the length of a row, since the token also stands inside of rows.
    """

    token: str
    id: int
    why: str
    by_length: bool


class Added(NamedTuple):
    """An added token: it is found in a text before anything else is, and `normalized` ones after the normalizer.

    The `special` ones are control tokens, which decoding leaves out.
    """

    id: int
    content: str
    special: bool
    normalized: bool


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A tokenizer as plain data; `to_json` and `from_json` carry it to other processes.

    Attributes:
        path: its name as typed.
        file: the tokenizer.json on this machine, or the folder of a converted one.
        text: the defining text, where it is not that of `file`: tokens were added, or it was converted.
        sha256: the hash of the text that encodes.
        revision: the commit of a repository on the Hub.
        chat_template: the default template.
        chat_templates: all templates by name, `default` and `tool_use` for example.
        special: the named tokens, which templates see as variables.
        prefix, suffix: the ids around a text that is encoded with special tokens.
        split_special: control tokens inside a text are encoded as ordinary text.
        byte_fallback: the vocabulary has tokens such as `<0x0A>` for the bytes of characters that it lacks.
        pad: the token for padding; None where there is no candidate.
        added: the added tokens, control tokens among them.
        vocabulary: one more than the greatest id: the rows that an embedding needs.
        notes: what a user should know, a sentence each.
    """

    path: str
    file: str
    text: str | None
    sha256: str
    revision: str | None
    chat_template: str | None
    chat_templates: Mapping[str, str]
    special: Mapping[str, str]
    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    split_special: bool
    byte_fallback: bool
    pad: Pad | None
    added: tuple[Added, ...]
    vocabulary: int
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Strings, numbers, lists and mappings only."""
        lists = {name: [*getattr(self, name)] for name in ("prefix", "suffix", "notes")}
        return asdict(self) | lists | {"added": [[*token] for token in self.added]}

    @classmethod
    def from_json(cls, value: Json) -> Self:
        """The tokenizer that `to_json` was called on."""
        pad = value["pad"] and Pad(**value["pad"])
        tuples = {name: tuple(value[name]) for name in ("prefix", "suffix", "notes")}
        return cls(**{**value, **tuples, "pad": pad, "added": tuple(Added(*token) for token in value["added"])})

    @property
    def add_bos(self) -> bool:
        """Whether encoding with special tokens puts something before a text."""
        return bool(self.prefix)

    @property
    def add_eos(self) -> bool:
        """Whether encoding with special tokens puts something after a text."""
        return bool(self.suffix)

    def definition(self) -> str:
        """The text that engines are built from.

        Raises:
            UnreadableInput: the file is no longer the one that was loaded.
        """
        if self.text is not None:
            return self.text
        raw = _read(Path(self.file), limits.TOKENIZER)
        if sha256(raw).hexdigest() != self.sha256:
            raise UnreadableInput(
                f"{self.file} changed while it was in use", "Run again with a file that stays as it is."
            )
        return raw.decode()


def load(name: str, *, through_transformers: bool = False) -> Tokenizer:
    """Find a tokenizer, read it, and settle what its configuration leaves open.

    Args:
        name: a folder with tokenizer.json or with files that transformers can convert, a tokenizer.json, or a name on
            the Hub, `org/name` or `org/name@revision`, which is looked for in the local cache before it is downloaded.
        through_transformers: take the tokenizer that `AutoTokenizer` builds, even where there is a tokenizer.json; some
            of its classes rebuild the tokenizer from the vocabulary alone.

    Raises:
        UsageError: the name leads nowhere, a file is no tokenizer, or a package is needed that is not installed.
        UnreadableInput: a file cannot be read.
    """
    path, revision = _find(name)
    if path.is_file():
        return _from_files(name, path, None, revision)
    file = path / "tokenizer.json"
    if file.is_file() and not through_transformers:
        return _from_files(name, file, path, revision)
    if file.is_file() or any(next(path.glob(pattern), None) for pattern in FOREIGN):
        return _converted(name, path, revision)
    raise UsageError(
        f"{name}: no tokenizer in this folder; found {_listing(path)}",
        "Name a folder with a tokenizer.json, such as one that `tokenizer.save_pretrained` wrote.",
    )


# ---------------------------------------------------------------- from a name to files


def _find(name: str) -> tuple[Path, str | None]:
    """The file or folder of a name, and the commit if it came from the Hub."""
    path = Path(name).expanduser()
    if path.exists():
        return path, None
    match = _HUB_NAME.fullmatch(name)
    if match is None:
        raise UsageError(
            f"{name}: no such file or folder, and not a name on the Hub",
            "Name a folder with a tokenizer.json, the file itself, or a Hub name such as Qwen/Qwen2.5-7B-Instruct.",
        )
    return _from_hub(name, match["repo"], match["revision"])


def _from_hub(name: str, repo: str, revision: str | None) -> tuple[Path, str | None]:
    """The folder of a snapshot: the cached one if it holds a tokenizer, otherwise downloaded."""
    try:
        import huggingface_hub
    except ImportError:
        raise UsageError(
            f"{name}: no such folder, and huggingface_hub is not installed to look on the Hub",
            "pip install 'datakit-trainglue[hf]', or name a local folder.",
        ) from None
    patterns = [*PATTERNS, *FOREIGN, "config.json"]
    try:
        cached = Path(huggingface_hub.snapshot_download(repo, revision=revision, local_files_only=True))
        if any(next(cached.glob(pattern), None) for pattern in ("tokenizer.json", *FOREIGN)):
            return cached, cached.name
    except Exception:  # noqa: S110  # every way of not being in the cache leads to the download
        pass
    try:
        folder = Path(huggingface_hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except Exception as problem:
        raise UsageError(
            f"{name}: no such folder, not in the local cache, and not downloaded: {_first_line(problem)}",
            "Check the name and the network; for a gated repository run `hf auth login` first.",
        ) from problem
    return folder, folder.name


def _read(path: Path, cap: int) -> bytes:
    try:
        size = path.stat().st_size
        if size > cap:
            much = f"{size / limits.MiB:,.0f} MiB"
            raise UsageError(
                f"{path}: {much} is no plausible size of a tokenizer file (at most {cap // limits.MiB} MiB)",
                "Name the tokenizer's own file or folder.",
            )
        return path.read_bytes()
    except OSError as problem:
        raise UnreadableInput(f"{path}: {problem.strerror}", "Check the path and its permissions.") from problem


def _document(path: Path, cap: int = LARGEST_BESIDE) -> dict[str, Any]:
    return _parsed(_read(path, cap), str(path))


def _parsed(raw: bytes | str, where: str) -> dict[str, Any]:
    try:
        value = orjson.loads(raw)
    except orjson.JSONDecodeError as problem:
        raise UsageError(
            f"{where}: not JSON: {problem}", "Fetch the file again; it may be a pointer or cut off."
        ) from None
    if not isinstance(value, dict):
        raise UsageError(f"{where}: a JSON {type(value).__name__}, not an object", "Name a tokenizer's own file.")
    return value


def _beside(folder: Path | None, name: str) -> dict[str, Any]:
    path = folder and folder / name
    return _document(path) if path and path.is_file() else {}


def _listing(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "") if names else "nothing"


def _first_line(problem: BaseException) -> str:
    return first_line(problem) or type(problem).__name__


# ---------------------------------------------------------------- the parts of a tokenizer.json


def definition_of(tokenizer: Tokenizer) -> dict[str, Any]:
    """The parsed tokenizer.json."""
    return _parsed(tokenizer.definition(), tokenizer.file)


def vocabulary_of(document: Json) -> dict[str, int]:
    """Token to id of the model, without the added tokens."""
    vocabulary = document["model"]["vocab"]
    return vocabulary if isinstance(vocabulary, dict) else {piece: id for id, (piece, *_) in enumerate(vocabulary)}


def added_of(document: Json) -> list[dict[str, Any]]:
    """The added tokens: dictionaries with id, content and flags."""
    return document.get("added_tokens") or []


def steps_of(part: Any, inner: str) -> Iterator[dict[str, Any]]:
    """The steps of a normalizer, pre-tokenizer or post-processor, sequences opened."""
    if isinstance(part, dict):
        if part.get("type") == "Sequence":
            for step in part.get(inner) or []:
                yield from steps_of(step, inner)
        else:
            yield part


def _checked(document: dict[str, Any], where: str) -> dict[str, Any]:
    """A document of which every part that is read later has its shape."""
    try:
        ids = vocabulary_of(document).values()
        added = added_of(document)
        fine = {int}.issuperset(map(type, ids)) and min(ids, default=0) >= 0
        fine = fine and all(type(token["id"]) is int and type(token["content"]) is str for token in added)
    except (KeyError, TypeError, ValueError):
        fine = False
    if not fine:
        raise UsageError(
            f"{where}: not a tokenizer.json; its keys are {', '.join(list(document)[:8]) or 'none'}",
            "A tokenizer.json has `model` with a `vocab`, and `added_tokens`.",
        )
    return document


def _around(document: Json, where: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids that the post-processor puts before and after a text."""
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    head: list[int]
    tail: list[int]
    for step in steps_of(document.get("post_processor"), "processors"):
        try:
            match step["type"]:
                case "ByteLevel":  # only moves offsets
                    head, tail = [], []
                case "TemplateProcessing":
                    head, tail = _template_ids(step)
                case "BertProcessing" | "RobertaProcessing":
                    head, tail = [step["cls"][1]], [step["sep"][1]]
                case other:
                    raise UsageError(
                        f"{where}: unknown post-processor {other!r}", "Report it; it is not supported yet."
                    )
        except (KeyError, TypeError, ValueError, IndexError):
            raise UsageError(f"{where}: a post-processor that cannot be read", "Fetch the file again.") from None
        before, after = (*head, *before), (*after, *tail)
    return before, after


def _template_ids(step: Json) -> tuple[list[int], list[int]]:
    sides: list[list[int]] = [[]]
    for piece in step["single"]:
        if "Sequence" in piece:
            sides.append([])
        else:
            sides[-1] += step["special_tokens"][piece["SpecialToken"]["id"]]["ids"]
    head, tail = sides
    return head, tail


# ---------------------------------------------------------------- what the files beside it add


def _from_files(name: str, file: Path, folder: Path | None, revision: str | None) -> Tokenizer:
    raw = _read(file, limits.TOKENIZER)
    document = _checked(_parsed(raw, str(file)), str(file))
    config = _config(folder)
    special = _special(config, _defaults(config, document, folder))
    more = list(_missing(document, config, special))
    text = orjson.dumps(document | {"added_tokens": [*added_of(document), *more]}).decode() if more else None
    notes = list(_notes(file, folder, config, document))
    if more:
        notes.append(
            f"{len(more)} tokens of the configuration are not in tokenizer.json and were added, as transformers does"
        )
    return _settled(
        path=name,
        file=str(file),
        text=text,
        sha256=sha256(text.encode() if text else raw).hexdigest(),
        revision=revision,
        templates=_templates(folder, config),
        special=special,
        document=document | {"added_tokens": [*added_of(document), *more]},
        split_special=bool(config.get("split_special_tokens")),
        notes=notes,
    )


def _settled(
    *, document: Json, templates: Mapping[str, str], special: Mapping[str, str], notes: Sequence[str], **fields: Any
) -> Tokenizer:
    """The tokenizer, with what follows from its definition."""
    ids = vocabulary_of(document) | {token["content"]: token["id"] for token in added_of(document)}
    prefix, suffix = _around(document, fields["file"])
    return Tokenizer(
        **fields,
        chat_template=templates.get("default"),
        chat_templates=templates,
        special=special,
        prefix=prefix,
        suffix=suffix,
        byte_fallback=bool(document["model"].get("byte_fallback")),
        pad=_pad(special, ids, {token["content"] for token in added_of(document)}),
        added=tuple(
            Added(token["id"], token["content"], bool(token.get("special")), bool(token.get("normalized")))
            for token in added_of(document)
        ),
        vocabulary=max(ids.values(), default=-1) + 1,
        notes=tuple(notes),
    )


def _config(folder: Path | None) -> dict[str, Any]:
    """tokenizer_config.json, and special_tokens_map.json over it where the older of two conventions is in use."""
    config = _beside(folder, "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config |= _beside(folder, "special_tokens_map.json")
    if not config.get("extra_special_tokens"):
        config["extra_special_tokens"] = config.pop("additional_special_tokens", None)
    return config


def _class_of(config: Json, document: Json, folder: Path | None) -> str:
    """The class of transformers that reads this tokenizer, by the name in the configuration."""
    named = config.get("tokenizer_class") or _beside(folder, "config.json").get("tokenizer_class") or ""
    name = str(named).removesuffix("Fast")
    return "" if name == "LlamaTokenizer" and _is_byte_level(document) else name


def _is_byte_level(document: Json) -> bool:
    return any(step.get("type") == "ByteLevel" for step in steps_of(document.get("pre_tokenizer"), "pretokenizers"))


def _defaults(config: Json, document: Json, folder: Path | None) -> Mapping[str, str]:
    return DEFAULTS.get(_class_of(config, document, folder), {})


def _content(value: Any) -> str | None:
    """The text of a token, which may stand there alone or with its flags."""
    if isinstance(value, dict):
        value = value.get("content")
    return value if isinstance(value, str) else None


def _special(config: Json, defaults: Mapping[str, str]) -> dict[str, str]:
    """Every named token: the seven of old, and a model's own, such as `image_token`."""
    named = {**defaults, **{key: config[key] for key in config if key.endswith("_token")}}
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        named |= extra
    found = {key: _content(value) for key, value in named.items()}
    order = [*NAMED, *(key for key in found if key not in NAMED)]
    return {key: text for key in order if (text := found.get(key)) is not None}


def _missing(document: Json, config: Json, special: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Tokens of the configuration that tokenizer.json does not have as added tokens, with the ids they get."""
    vocabulary, added = vocabulary_of(document), added_of(document)
    known = {token["content"] for token in added}
    free = count(max([len(vocabulary) - 1, *(token["id"] for token in added)]) + 1)
    for token in _declared(config, special):
        content = _content(token)
        if content and content not in known:
            known.add(content)
            flags = token if isinstance(token, dict) else {"special": True}
            special_flag = bool(flags.get("special")) or content in special.values()
            yield {
                "id": vocabulary[content] if content in vocabulary else next(free),
                "content": content,
                "single_word": bool(flags.get("single_word")),
                "lstrip": bool(flags.get("lstrip")),
                "rstrip": bool(flags.get("rstrip")),
                "normalized": bool(flags.get("normalized", not flags.get("special"))),
                "special": special_flag,
            }


def _declared(config: Json, special: Mapping[str, str]) -> Iterator[Any]:
    """Every token that the configuration speaks of, with flags where it gives them, in the order of their ids."""
    decoder = config.get("added_tokens_decoder") or {}
    yield from (decoder[id] for id in sorted(decoder, key=int))
    yield from (config[key] if _content(config.get(key)) else text for key, text in special.items())
    extra = config.get("extra_special_tokens")
    if isinstance(extra, list):
        yield from extra


def _templates(folder: Path | None, config: Json) -> dict[str, str]:
    """Chat templates by name. A file wins over the configuration; chat_template.json is the oldest way."""
    if folder is None:
        return {}
    files = {"default": folder / "chat_template.jinja"} if (folder / "chat_template.jinja").is_file() else {}
    files |= {path.stem: path for path in sorted(folder.glob("additional_chat_templates/*.jinja"))}
    if files:
        return {name: _template_text(path) for name, path in files.items()}
    found = config.get("chat_template") or _beside(folder, "chat_template.json").get("chat_template")
    if isinstance(found, list):
        found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
    if isinstance(found, str):
        found = {"default": found}
    pairs = found.items() if isinstance(found, dict) else ()
    return {name: text for name, text in pairs if isinstance(name, str) and isinstance(text, str)}


def _template_text(path: Path) -> str:
    try:
        return _read(path, LARGEST_BESIDE).decode()
    except UnicodeDecodeError as problem:
        raise UsageError(f"{path}: not UTF-8: {problem.reason}", "Save the template as UTF-8.") from None


def _pad(special: Mapping[str, str], ids: Mapping[str, int], added: set[str]) -> Pad | None:
    """The token for padding: the named one, one that means nothing else, the unknown token, and the end at last."""
    eos, unk = special.get("eos_token"), special.get("unk_token")
    token, why = special.get("pad_token"), "named in the configuration"
    if token not in ids:
        meaningful = {eos, special.get("bos_token")}
        token = next((pad for pad in PADS if pad in added and pad not in meaningful), None)
        why = "no pad token is named; this one has no other use"
    if token is None and unk is not None and unk in ids and unk not in (eos, special.get("bos_token")):
        token, why = unk, "no pad token is named, and none lies unused; the unknown token does not stand in texts"
    if token is None and eos in ids:
        token, why = eos, "no other token can pad"
    if token is None:
        return None
    if token == eos:
        why += "; it also ends rows, so padding must be masked by length, never by id"
    return Pad(token, ids[token], why, token == eos)


def _notes(file: Path, folder: Path | None, config: Json, document: Json) -> Iterator[str]:
    if folder is None and (file.parent / "tokenizer_config.json").is_file():
        yield f"the files beside {file.name} were not read; name the folder to use them"
    prepends = any(step.get("type") == "Prepend" for step in steps_of(document.get("normalizer"), "normalizers"))
    if _class_of(config, document, folder) == "LlamaTokenizer" and prepends:
        yield (
            "transformers 5 rebuilds a LlamaTokenizer and gives other ids after control tokens than tokenizer.json, "
            "which is used here"
        )


# ---------------------------------------------------------------- conversion


def _converted(name: str, folder: Path, revision: str | None) -> Tokenizer:
    """What transformers makes of a folder."""
    try:
        from transformers import AutoTokenizer
    except ImportError:
        raise UsageError(
            f"{name}: only transformers can read this tokenizer, and it is not installed; found {_listing(folder)}",
            "pip install 'datakit-trainglue[hf]', or name a folder with a tokenizer.json.",
        ) from None
    try:
        built = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        text = str(built.backend_tokenizer.to_str())
    except Exception as problem:
        raise UsageError(
            f"{name}: transformers cannot convert this tokenizer: {_first_line(problem)}",
            "Give it a tokenizer.json: load it where it works and call `save_pretrained`.",
        ) from problem
    templates = built.chat_template if isinstance(built.chat_template, dict) else {"default": built.chat_template}
    return _settled(
        path=name,
        file=str(folder),
        text=text,
        sha256=sha256(text.encode()).hexdigest(),
        revision=revision,
        templates={key: value for key, value in templates.items() if value is not None},
        special=dict(built.special_tokens_map),
        document=_checked(_parsed(text, name), name),
        split_special=bool(built.split_special_tokens),
        notes=["converted by transformers"],
    )
