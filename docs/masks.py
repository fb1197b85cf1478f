"""Prove spans for many chat templates and write the page docs/masks.md.

    python docs/masks.py FOLDER

FOLDER holds template/ with files named `repository__name.jinja`, and sft/ with real data; see docs/corpora.py. The
templates of the installed TRL are added. Needs transformers, whose masks are compared.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

import datakit  # noqa: E402
from datakit.templates.environment import Refused  # noqa: E402
from datakit.templates.spans import Proof, Unproven  # noqa: E402
from datakit.templates.template import Template  # noqa: E402
from tests.conversations import (  # noqa: E402
    ORDINARY,
    SPECIAL,
    SUITE,
    Conversation,
    characters,
    marks,
    templates,
    twins,
)

ROWS = 24
"""Rows of each real file."""

PROSE = """<!-- written by docs/masks.py; do not edit -->

# Masks

Which characters of a rendered conversation did the assistant write? `datakit format` trains those and no others. It
proves them for every row, or rejects the row with the reason (DK710). It knows no template by name.

## How it is shown

**The row is rendered twice.** Once as `transformers` renders it; that text is what is trained. And once with strings
that remember, for every character, where it came from: which message and which field of it, the tools, the template's
arguments, or the template's own text. All that a template can do with a string (cut, strip, replace, join, print as
JSON) keeps that memory. An operation that is not known loses it, and then the row is refused. Both texts must be equal:
then it was the same execution, and what is known about one holds for the other.

**Each message gets its stretch.** Every pass of a loop leaves two marks in the output that take no room. They say which
stretch of the text was printed for which message, also through macros, set blocks and filters. Where there is no such
loop, the conversation is cut behind the message, rendered again, and the two are compared.

**Start.** The first character that the message itself says. Where a turn opens with a thought or has a tool call, its
first fixed text, such as `<think>`, is the model's to write; so the span starts where the template's own prompt for an
answer ends. That prompt is asked of the template, not guessed.

**End.** The last visible character of the message's stretch: the token that ends the turn is trained, the line feed
behind it is not. Some templates print that token with the next turn or behind the loop. Then the end is what this text
and the conversation cut behind the turn agree on, without what begins a turn. A turn that ends on a call ends as a
plain answer in its place would, if that token stands there. Where a template prints no such token, or only where
another turn follows (`unended`), DK706 says so. What closes a call is no such token.

**Law.** Inside a span there is nothing of another message, the tools or the arguments. Outside there is nothing that
the assistant said, but for copies of a part of a call, such as a tool's name over its result. What a span says must
stand in the message that it belongs to. Else the row is refused.

**Marks.** Where the template, or its training variant in TRL, marks what is generated (`{% generation %}`), prints the
same text, and the marks keep the law, their borders are taken: people who wrote marks chose them. They may include a
role header or a line feed; they may not leave out the end of a turn.

**Skeletons.** A proof teaches the fixed text around the messages of one shape. The next row of that shape is put
together from it and from its own texts. If that equals what was rendered, the spans are known by counting. Any
difference goes the long way, and so does a row that holds something that the template looks for in a text, such as
`</think>`: the template may cut it out and print it again.

The tests put a word that occurs nowhere else into every text of every conversation, also among texts that imitate the
template; each must be inside the span of who said it and outside of all others. They compare with the masks of
`transformers`, and they break one operation on strings after the other: rows are then refused, and no span moves
unnoticed.
"""


@dataclass
class Tally:
    """What became of the rows of one template or file."""

    rendered: int = 0
    proven: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    compared: int = 0
    equal: int = 0

    def share(self) -> str:
        return f"{100 * self.proven / self.rendered:.1f} %" if self.rendered else "-"

    def __iadd__(self, other: Tally) -> Tally:
        self.rendered += other.rendered
        self.proven += other.proven
        self.reasons += other.reasons
        self.compared += other.compared
        self.equal += other.equal
        return self


def short(reason: str) -> str:
    """A reason without what is particular to the row."""
    if "origin is not known" in reason:
        return "prints a list as Python writes it" if "[{" in reason else "prints text of unknown origin"
    reason = re.sub(r"^the template ", "", re.sub(r" ?(assistant )?message \d+", " a turn", reason))
    return reason.replace("nothing of a turn is printed", "prints nothing of a turn").strip()


def tried(template: Template, conversation: Conversation, tally: Tally) -> tuple[str, Proof] | None:
    try:
        found = template.prove(*conversation)
    except Refused:
        return None
    except Unproven as reason:
        tally.rendered += 1
        tally.reasons[short(str(reason))] += 1
        return None
    tally.rendered += 1
    tally.proven += 1
    return found


def suite(template: Template, marked: str, rows: dict[str, Conversation]) -> Tally:
    """The conversations of the tests, compared with marks where the same text has some."""
    tally = Tally()
    for conversation in rows.values():
        found, theirs = tried(template, conversation, tally), marks(marked, conversation)
        if found and theirs and theirs[0] == found[0]:
            tally.compared += 1
            tally.equal += characters(found[1].spans) == characters(theirs[1])
    return tally


def reads_parts_only(template: Template) -> bool:
    """Whether a template prints texts that are parts of a list, and nothing of others."""
    text, part = (tried(template, SUITE[name], Tally()) for name in ("one turn", "content in parts"))
    return text is None and part is not None


def example(template: Template) -> str:
    """The last turn of a plain conversation as it is printed, its span in double brackets."""
    for name in ("one turn", "content in parts"):
        found = tried(template, SUITE[name], Tally())
        if found:
            text, proof = found
            start, end = proof.spans[-1].start, proof.spans[-1].end
            return code(f"{text[max(start - 40, 0) : start]}[[{text[start:end]}]]{text[end : end + 20]}")
    return ""


def code(text: str) -> str:
    shown = text.replace("\n", "\\n").replace("|", "\\|").replace("`", "'")
    return f"`{shown}`"


def real_rows(base: Path) -> Iterator[tuple[str, list[Conversation]]]:
    """Rows of every file of conversations, by the name of its repository and path."""
    for path in sorted((base / "sft").iterdir()):
        owner, repository, *rest = path.name.split("__")
        with tempfile.TemporaryDirectory() as folder:
            out = Path(folder) / "shards"
            try:
                report = datakit.convert(path, out, on_bad_row="quarantine", max_bad="100 %", workers=1)
            except datakit.DatakitError:  # a question to the person, or a file of something else
                continue
            if report.exit_code or (report.kind, report.form) != ("sft", "messages"):
                continue
            rows = [row for row, _ in zip(datakit.load(out), range(ROWS), strict=False)]
        made = [Conversation(row["messages"], row.get("tools"), row.get("chat_template_kwargs")) for row in rows]
        yield f"{owner}/{repository}: {'/'.join(rest)}", made


def table(head: str, lines: Iterable[tuple[Any, ...]]) -> list[str]:
    cells = head.split(" | ")
    rule = "|".join("---:" if cell in NUMBERS else "---" for cell in cells)
    return [f"| {head} |", f"|{rule}|", *("| " + " | ".join(map(str, line)) + " |" for line in lines)]


NUMBERS = {"rows", "rendered", "proven", "share", "real rows", "templates"}


def main(base: Path) -> None:
    files = dict(real_rows(base))
    now, variants = datetime.now(), twins()
    everything, ordinary, real, whole = Tally(), Tally(), Tally(), 0
    of_texts, real_of_texts, in_parts = Tally(), Tally(), 0
    by_file = {name: Tally() for name in files}
    lines = []
    for name, source in templates(base):
        template = Template(source, SPECIAL, now, variants.get(name))
        plain = suite(template, variants.get(name, source), ORDINARY)
        all_of_them = suite(template, variants.get(name, source), SUITE)
        mine = Tally()
        for file, conversations in files.items():
            tally = Tally()
            for conversation in conversations:
                tried(template, conversation, tally)
            by_file[file] += tally
            mine += tally
        ordinary += plain
        everything += all_of_them
        real += mine
        whole += plain.proven == plain.rendered
        if reads_parts_only(template):
            in_parts += 1
        else:
            of_texts += plain
            real_of_texts += mine
        why = "; ".join(f"{reason} ({count})" for reason, count in all_of_them.reasons.most_common())
        same = f"{all_of_them.equal} of {all_of_them.compared}" if all_of_them.compared else ""
        done = f"{mine.proven} of {mine.rendered}"
        lines.append((name, all_of_them.rendered, all_of_them.proven, done, why, same, example(template)))
    page = [PROSE, "## Totals", ""]
    page += [
        f"{len(lines)} templates; a row counts for a template that renders it. Of the {len(SUITE)} conversations of",
        f"`tests/conversations.py`, {len(ORDINARY)} have ordinary shapes; {whole} templates have all of these proven.",
        f"Real rows are the first {ROWS} of each file below, as `datakit convert` makes them.",
        "",
    ]
    sums = {
        "ordinary conversations": ordinary,
        "all conversations": everything,
        "real rows": real,
        "ordinary conversations, templates that print texts": of_texts,
        "real rows, templates that print texts": real_of_texts,
    }
    page += table(
        "rows of | rendered | proven | share", [(n, t.rendered, t.proven, t.share()) for n, t in sums.items()]
    )
    page += [
        "",
        f"The other {in_parts} templates print a text only as a part of a list; of a plain one they print nothing.",
        "",
        "Why not, over all conversations:",
        "",
    ]
    page += table("reason | rows", everything.reasons.most_common())
    page += [
        "",
        f"Compared with the masks that `transformers` makes from marks in the same text, {everything.equal} of",
        f"{everything.compared} are equal, character for character.",
        "",
        "## Real files",
        "",
    ]
    page += table(
        "file | rows | rendered | proven | share",
        [(name, len(files[name]), t.rendered, t.proven, t.share()) for name, t in by_file.items()],
    )
    page += [
        "",
        "## Templates",
        "",
        "`rendered` and `proven` count conversations of the suite; `marks`: how many masks equal those of marks in the",
        "same text. The example is the end of a plain turn; double brackets hold what is trained.",
        "",
    ]
    page += table("template | rendered | proven | real rows | refused | marks | a plain turn", lines)
    (HERE / "masks.md").write_text("\n".join(page) + "\n", "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
