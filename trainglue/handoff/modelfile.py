"""An Ollama Modelfile whose template prints what the model was trained on, or no template and a word about it.

Ollama does not run Jinja. Left alone, it takes from a fixed list the Go template of the chat template that looks most
like the model's, and says nothing when that is another format. There is no way from any Jinja to Go either. But most
chat templates only put fixed words before and behind the text of each turn. Those words are read off a few renders, and
the result is kept only if it prints some other conversations exactly as the chat template does.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Final

Messages = Sequence[Mapping[str, str]]
Render = Callable[[Messages, bool], str]
"""The text of a conversation; True opens the next turn of the assistant."""


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


SYSTEM, ASKED, ANSWERED, AGAIN = (
    turn("system", "Be 0brief0."),
    turn("user", "What is 1one1?"),
    turn("assistant", "It is 2two2."),
    turn("user", "And 3three3?"),
)
"""Turns whose texts are found again in a render, since nothing else prints them."""

PROOFS: Final[Sequence[Messages]] = (
    [turn("user", "Hello")],
    [turn("user", "a"), turn("assistant", "b"), turn("user", "c"), turn("assistant", "d\n\ne"), turn("user", "f")],
    [turn("user", 'Quotes " and \\ and {{ braces }}\n- a list')],
)
"""Conversations that were not used to read the words off; each again with a system message."""


@dataclass(frozen=True, slots=True)
class Frame:
    """A chat template as fixed words.

    Attributes:
        turns: role to the words before and behind its text; without `system` where the template refuses one.
        default: what stands before a conversation without a system message.
        opening: what opens the turn that the model writes.
    """

    turns: Mapping[str, tuple[str, str]]
    default: str
    opening: str

    def words(self) -> list[str]:
        """All fixed words."""
        return [self.default, self.opening, *chain(*self.turns.values())]

    def print(self, messages: Messages) -> str:
        """The text of a conversation with the next turn opened, as the Go template prints it."""
        start = "" if messages[0]["role"] == "system" else self.default
        words = ((*self.turns[m["role"]], m["content"]) for m in messages)
        return start + "".join(f"{before}{content}{behind}" for before, behind, content in words) + self.opening

    def go(self) -> str:
        """The same as a Go template of Ollama."""
        branches = [
            f'{{{{ {"else " * bool(at)}if eq .Role "{role}" }}}}{before}{{{{ .Content }}}}{behind}'
            for at, (role, (before, behind)) in enumerate(self.turns.items())
        ]
        loop = f"{{{{ range .Messages }}}}{''.join(branches)}{{{{ end }}}}{{{{ end }}}}"
        start = f'{{{{ $first := index .Messages 0 }}}}{{{{ if ne $first.Role "system" }}}}{self.default}{{{{ end }}}}'
        return (start if self.default else "") + loop + self.opening


def frame(render: Render, bos: str = "") -> Frame | None:
    """The fixed words of a chat template, shown to be all that it prints in conversations; None where they are not.

    Args:
        render: of the chat template.
        bos: the token that llama.cpp puts before every text itself, so that the template must not.
    """

    def rendered(messages: Messages, opened: bool = True) -> str:
        return render(messages, opened).removeprefix(bos)

    try:
        found = _read_off(rendered)
        systems = ([], [SYSTEM]) if "system" in found.turns else ([],)
        conversations = [[*system, *proof] for proof in PROOFS for system in systems]
        exact = all(found.print(messages) == rendered(messages) for messages in conversations)
    except Exception:  # templates raise what they like on what they refuse
        return None
    return found if exact and not any(mark in text for text in found.words() for mark in ("{{", '"""')) else None


def _read_off(rendered: Callable[..., str]) -> Frame:
    """Words from a few renders.

    Where one turn ends and the next begins is seen where a conversation ends there; where the template closes it
    otherwise, any border will do that all renders share.
    """
    start, end = _split(rendered([ASKED]), ASKED)
    _, to_answer, to_next, _ = _split(rendered([ASKED, ANSWERED, AGAIN]), ASKED, ANSWERED, AGAIN)
    system = _attempt(lambda: _split(rendered([SYSTEM, ASKED]), SYSTEM, ASKED))
    closed = _attempt(lambda: _split(rendered([ASKED], False), ASKED))
    behind_user = next((words for words in closed[1:] if to_answer.startswith(words) and end.startswith(words)), "")
    closed = _attempt(lambda: _split(rendered([ASKED, ANSWERED], False), ANSWERED))
    before_user = _shared_end([start, to_next, *system[1:2], *map(to_next.removeprefix, closed[1:])])
    turns = {
        "user": (before_user, behind_user),
        "assistant": (to_answer.removeprefix(behind_user), to_next.removesuffix(before_user)),
    }
    if system:
        turns = {"system": (system[0], system[1].removesuffix(before_user)), **turns}
    return Frame(turns, start.removesuffix(before_user), end.removeprefix(behind_user))


def _attempt(read: Callable[[], list[str]]) -> list[str]:
    """What it gives, or nothing: templates raise what they like on what they refuse, such as a system message."""
    try:
        return read()
    except Exception:
        return []


def _shared_end(texts: Sequence[str]) -> str:
    return os.path.commonprefix([text[::-1] for text in texts])[::-1]  # noqa: RUF071 - characters are meant


def _split(text: str, *turns: Mapping[str, str]) -> list[str]:
    """The words around the texts of turns."""
    parts = []
    for one in turns:
        before, content, text = text.partition(one["content"])
        if not content:
            raise ValueError("a turn is not printed as it is")
        parts.append(before)
    return [*parts, text]


def modelfile(source: str, frame: Frame | None, stops: Sequence[str]) -> str:
    """The text of a Modelfile.

    Args:
        source: the GGUF file, relative to the Modelfile.
        frame: of the chat template; None leaves the choice to Ollama.
        stops: tokens that end a turn.
    """
    lines = [f"FROM {source}"]
    if frame is not None:
        lines.append(f'TEMPLATE """{frame.go()}"""')
    lines += [f"PARAMETER stop {json.dumps(stop, ensure_ascii=False)}" for stop in stops]
    return "\n".join(lines) + "\n"
