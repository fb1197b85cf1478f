"""Chat templates and conversations on which rendering and masks are held to account, here and in docs/masks.md.

The conversations are small, and each has one property that templates trip over. `ORDINARY` are those that training data
is made of; the others are legal and rare: an assistant that opens, or speaks twice, a turn without text, content in parts.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, NamedTuple

CORPORA: Final = Path(__file__).resolve().parents[2] / "shared" / "corpora"
"""Real files, which are not part of this repository."""

SPECIAL: Final = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
"""Special tokens of a tokenizer that none of the templates was written for."""


class Conversation(NamedTuple):
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]] | None = None
    kwargs: dict[str, Any] | None = None


def _system(content: Any) -> dict[str, Any]:
    return {"role": "system", "content": content}


def _user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def _assistant(content: Any, *calls: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **({"tool_calls": list(calls)} if calls else {}), **more}


def _call(id: str = "call00001", name: str = "get_weather", **arguments: Any) -> dict[str, Any]:
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}


def _tool(content: Any, id: str = "call00001", name: str = "get_weather") -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": id, "name": name, "content": content}


def _part(text: str) -> list[dict[str, Any]]:
    return [{"type": "text", "text": text}]


def _function(name: str, does: str, **parameters: str) -> dict[str, Any]:
    properties = {key: {"type": "string", "description": text} for key, text in parameters.items()}
    schema = {"type": "object", "properties": properties, "required": list(parameters)}
    return {"type": "function", "function": {"name": name, "description": does, "parameters": schema}}


TOOLS: Final = [
    _function("get_weather", "The weather in a city.", city="Name of the city"),
    _function("search", "Search the web, \"<b>\" & 'all'.", query="What to look for"),
]
OSLO, ROME = _call(city="Oslo"), _call("call00002", city="Rome")

ORDINARY: Final[dict[str, Conversation]] = {
    "one turn": Conversation([_user("What is up?"), _assistant("Nothing much.")]),
    "system": Conversation([_system("Be brief."), _user("What is up?"), _assistant("Nothing much.")]),
    "three turns": Conversation([m for n in "123" for m in (_user(f"ask {n}"), _assistant(f"say {n}"))]),
    "twelve turns": Conversation([m for n in range(12) for m in (_user(f"ask {n}"), _assistant(f"say {n}"))]),
    "system, two turns": Conversation(
        [_system("Be brief."), _user("one?"), _assistant("1"), _user("two?"), _assistant("2")]
    ),
    "ends on the user": Conversation([_user("one?"), _assistant("1"), _user("two?")]),
    "several lines": Conversation([_user("A poem\n\nplease"), _assistant("Roses\n\n- are\n- red\n\nEnd.")]),
    "unicode": Conversation([_user("wie geht’s 😀?"), _assistant("Gut, danke – 你好 e\u0301 \u200b.")]),
    "outer space": Conversation([_user("  one "), _assistant("  1\n"), _user("\ntwo"), _assistant(" 2  ")]),
    "the same texts": Conversation([_user("yes"), _assistant("yes"), _user("yes"), _assistant("yes")]),
    "words of roles": Conversation([_user("user\nassistant"), _assistant("assistant\nuser"), _user("system"), _assistant("model")]),
    "control tokens": Conversation(
        [_user("<|im_start|>assistant\n1<|im_end|>"), _assistant("<|eot_id|></s><end_of_turn>[/INST] 2"), _user("[INST]"), _assistant("<s>")]
    ),
    "code": Conversation([_user("{{ x }} {% if y %}"), _assistant("```python\nprint('{{ x }}', \"<a & b>\")\n```")]),
    "reasoning": Conversation([_user("one?"), _assistant("1", reasoning_content="count")]),
    "reasoning, two turns": Conversation(
        [_user("one?"), _assistant("1", reasoning_content="count"), _user("two?"), _assistant("2", reasoning_content="again")]
    ),
    "thinking inside the text": Conversation(
        [_user("one?"), _assistant("<think>\ncount\n</think>\n\n1"), _user("two?"), _assistant("<think>\nagain\n</think>\n\n2")]
    ),
    "tool call": Conversation([_user("weather?"), _assistant("", OSLO), _tool("sunny"), _assistant("It is sunny.")], TOOLS),
    "text and tool call": Conversation(
        [_user("weather?"), _assistant("Let me look.", OSLO), _tool("sunny"), _assistant("It is sunny.")], TOOLS
    ),
    "two calls at once": Conversation(
        [_user("weather?"), _assistant("", OSLO, ROME), _tool("sunny"), _tool("rainy", "call00002"), _assistant("Mixed.")], TOOLS
    ),
    "two steps of calls": Conversation(
        [_user("weather?"), _assistant("", OSLO), _tool("sunny"), _assistant("", ROME), _tool("rainy", "call00002"), _assistant("Mixed.")],
        TOOLS,
    ),
    "ends on a call": Conversation([_user("weather?"), _assistant("", OSLO)], TOOLS),
    "call, then another turn": Conversation(
        [_system("Help."), _user("weather?"), _assistant("", OSLO), _tool("sunny"), _assistant("Sunny."), _user("thanks"), _assistant("Bye.")],
        TOOLS,
    ),
    "no text, null": Conversation([_user("weather?"), _assistant(None, OSLO), _tool("sunny"), _assistant("It is sunny.")], TOOLS),
    "arguments of all types": Conversation(
        [
            _user("weather?"),
            _assistant("", _call(city="Oslo \"'\n<é>", days=3, near=0.5, now=True, none=None, at=["a", {"b": "c"}])),
            _tool('{"sky": "sunny"}'),
            _assistant("It is sunny."),
        ],
        TOOLS,
    ),
    "reasoning and tool call": Conversation(
        [_user("weather?"), _assistant("", OSLO, reasoning_content="ask"), _tool("sunny"), _assistant("Sunny.", reasoning_content="tell")],
        TOOLS,
    ),
    "tools, none called": Conversation([_user("What is up?"), _assistant("Nothing much.")], TOOLS),
    "thinking on": Conversation([_user("one?"), _assistant("1", reasoning_content="count")], None, {"enable_thinking": True}),
    "thinking off": Conversation([_user("one?"), _assistant("1"), _user("two?"), _assistant("2")], None, {"enable_thinking": False}),
}  # fmt: skip

RARE: Final[dict[str, Conversation]] = {
    "the assistant opens": Conversation([_assistant("Hello"), _user("one?"), _assistant("1")]),
    "the assistant twice": Conversation([_user("one?"), _assistant("1"), _assistant("one")]),
    "an empty turn": Conversation([_user("one?"), _assistant(""), _user("two?"), _assistant("2")]),
    "a blank turn": Conversation([_user("one?"), _assistant(" \n "), _user("two?"), _assistant("2")]),
    "nothing asked": Conversation([_user(""), _assistant("1")]),
    "content in parts": Conversation([_user(_part("one?")), _assistant(_part("1"))]),
    "two parts": Conversation([_user(_part("on") + _part("e?")), _assistant(_part("1") + _part(" and 2"))]),
    "an image": Conversation([_user([{"type": "image"}, *_part("what?")]), _assistant(_part("A cat."))]),
    "only the user": Conversation([_user("one?")]),
}

SUITE: Final[dict[str, Conversation]] = {**ORDINARY, **RARE}


def installed() -> dict[str, Path]:
    """The templates of the installed TRL, by name; none without TRL."""
    spec = find_spec("trl")
    folder = Path(spec.origin).parent / "chat_templates" if spec and spec.origin else None
    return {f"trl/{path.stem}": path for path in sorted(folder.glob("*.jinja"))} if folder else {}


def real(corpora: Path = CORPORA) -> dict[str, Path]:
    """Templates from public repositories, where they are at hand; `owner__name.jinja` becomes `owner/name`."""
    return {path.stem.replace("__", "/"): path for path in sorted((corpora / "template").glob("*.jinja"))}


def templates(corpora: Path = CORPORA) -> Iterator[tuple[str, str]]:
    """Names and texts of all templates, each text once."""
    seen = set()
    for name, path in {**real(corpora), **installed()}.items():
        if (source := path.read_text("utf-8")) not in seen:
            seen.add(source)
            yield name, source


def twins() -> dict[str, str]:
    """Templates of TRL with a training variant -> its text, which has generation marks."""
    found = installed()
    return {name: found[f"{name}_training"].read_text("utf-8") for name in found if f"{name}_training" in found}


def marks(source: str, conversation: Conversation) -> tuple[str, list[tuple[int, int]]] | None:
    """The text and the generation blocks of a template, as transformers finds them; None where either is missing."""
    from transformers.utils.chat_template_utils import render_jinja_template

    messages = [{key: value for key, value in m.items() if value is not None} for m in conversation.messages]
    if "endgeneration" not in source:
        return None
    try:
        texts, blocks = render_jinja_template(
            [messages],
            tools=conversation.tools,
            chat_template=source,
            return_assistant_tokens_mask=True,
            **SPECIAL,
            **(conversation.kwargs or {}),
        )
    except Exception:
        return None
    return (texts[0], blocks[0]) if blocks[0] else None


def characters(spans: Iterable[tuple[int, ...]]) -> set[int]:
    """The places of all characters in spans, which end on their start and end."""
    return {at for *_, start, end in spans for at in range(start, end)}
