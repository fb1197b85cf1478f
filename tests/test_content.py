"""Damaged text: what is found in texts that were damaged on purpose, and nothing in ordinary ones."""

import re
from itertools import product
from typing import Any

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from datakit.checks.content import _MOJIBAKE, damaged

settings.register_profile("content", deadline=None, derandomize=True)
quick = settings(settings.get_profile("content"), max_examples=200)


def found(*values: Any) -> list[tuple[int, str]]:
    rows = [orjson.dumps(value) for value in values]
    return [(index, id) for index, id, _ in damaged(b"".join(rows), rows)]


def misread(text: str, encoding: str) -> str:
    """UTF-8 read in another encoding. Windows-1252 has five bytes without a sign; readers show them as controls."""
    if encoding == "latin-1":
        return text.encode().decode("latin-1")
    return "".join(
        bytes([byte]).decode("latin-1" if byte in (0x81, 0x8D, 0x8F, 0x90, 0x9D) else "cp1252")
        for byte in text.encode()
    )


# ---------------------------------------------------------------- ordinary texts

ORDINARY = [
    "Ângela comeu pão à tarde; a Ãnima não. «AMANHÃ», disse a IRMÃ… “MANHÃ” — e não ontem.",
    "SÃO PAULO, MAÇÃ, PÃO, ROMÃ, LÃ, AVELÃ. A 1.ª IRMÃ e o 2.º ANÃO; “FÃ” ou ‘FÃ’?",
    "Le PÂTÉ du CHÂTEAU, à l’ÂGE de vingt ans\u00a0: «\u00a0Être ou ne pas être\u00a0?\u00a0» Ça va… Ç’a été dur.",
    "«À bientôt\u00a0!» dit-elle à Noël\u00a0; l’œuvre coûte 3\u00a0€, «\u00a0voilà\u00a0» — déjà…",
    "Ärger über Öl in Übersee: „Größe“ und »Fußgänger« – die STRAẞE, die GRÖSSE, das ÄÖÜ…",
    "Tôi đã đến XÃ HỘI, MÃ SỐ 5, và ĐÃ ăn phở ở Hà Nội. “XÃ”, «MÃ», CÂU, ÂM NHẠC, hãy nhớ!",
    "Hâlâ bekliyoruz… “hâlâ” — HÂLÂ! “HÂLÂ”, «HÂLÂ», kâğıt, lâkin, rüzgâr, İstanbul’a, ılık, Şişli.",
    "România are ÎNTÂMPLĂRI; «câine», „mâine” – țara și știința, ÎN VÂRF…",
    "¿Dónde está el AÑO? «Está»… dijo —¿allá?— ESPAÑA… ¡Él! «¡Ñandú!»",
    "HYVÄÄ PÄIVÄÄ! ”HYVÄ” – ”HYVÄ…” På «Å» i Ål, smör och BLÅ–GUL, ÅÄÖ.",
    "Það er gott veður; GARÐUR, Ísland, „ÞÚ“ og «MEÐ», bað…",
    "Zażółć gęślą jaźń, „Łódź” – ŻÓŁĆ… Příliš žluťoučký kůň, «Čau».",
    "Привет, мир! «Ёлка» — это… „Да“.",
    "Γειά σου Κόσμε· «Όχι»…",
    "去年夏天，我去了北京。“真的吗？”——是的……《红楼梦》",
    "日本語のテスト、「はい」…。ﾊﾝｶｸ ＡＢＣ",
    "مرحبا بالعالم، «نعم»… ١٢٣ ؟",
    "שלום עולם – „כן”… ×2",
    "สวัสดีชาวโลก… “ใช่”",
    "한국어 문장입니다… ‘네’",
    "Emoji 😀👍🏽👩‍👩‍👧 ☑️ ™️ ©️ 🇩🇪 …",
    "5 °C, 3 × 4 m², ½ cup, 20 £, §5, ©2024, naïve café®, 10 µm, ±2, “curly” ‘quotes’…",
    "The operator Â² and ⟨Â⟩, â†â|n⟩, [â, â†] = 1, (â†)²; ÊÂ – B̂.",
    "Tab\there\r\nand there\u0085 \u2028 \u2029 a\\u0000 b\\b \\frac{1}{2} \\\\beta C:\\temp\\new \\u001f",
    "DEL is written ^?, ESC is \\x1b, and \\\\u0007 rings.",
]


@pytest.mark.parametrize("text", ORDINARY, ids=range(len(ORDINARY)))
def test_ordinary_text_is_not_damaged(text: str) -> None:
    for value in (text, text.upper(), text.lower(), text.title(), f"\n{text}\n", [{"role": "user", "content": text}]):
        assert found(value) == []


WORDS = (
    "Ângela Ãnima PÂTÉ AMANHÃ MANHÃ IRMÃ MAÇÃ âme hâlâ HÂLÂ Ça été là où français œuf Ärger Straße ÄÖÜ HYVÄ BLÅ på "
    "Việt XÃ ĐÃ đã phở niño ESPAÑA allá él ção São Łódź żółć ĄĘ Ísland bað MEÐ țara România 北京 مرحبا Привет 😀 naïve"
).split()
AROUND = ["{}", "«{}»", "“{}”", "‘{}’", "„{}“", "»{}«", "›{}‹", "({})", '"{}"', "\n{}\n", "\t{}", "\\{}\\", "¿{}?",
          "l’{}", "{}’s", "{}…", "{}… {}", "…{}", "{}—{}", "{} – {}", "{}/{}", "• {}", "{}•", "{}™", "{}†", "{}."]  # fmt: skip


@pytest.mark.parametrize("around", AROUND)
def test_words_among_signs_are_not_damaged(around: str) -> None:
    rows = [around.format(word, other) for word, other in product(WORDS, WORDS[::7])]
    assert [rows[index] for index, _ in found(*rows)] == []


def test_spaces_that_do_not_break_may_follow_words() -> None:
    words = [word for word in WORDS if word not in ("XÃ", "ĐÃ", "HÂLÂ")]
    rows = [word + sign for word in words for sign in ("\u00a0!", "\u00a0»", "®", "²")]
    assert [rows[index] for index, _ in found(*rows)] == []


# ---------------------------------------------------------------- damaged texts

SENTENCES = [
    "L’été, le café est fermé.",
    "Où est la clé ?",
    "Voilà.",
    "Ça va ?",
    "Só isso, não é?",
    "informação",
    "GRÖSSE",
    "Österreich",
    "El niño pequeño",
    "INFORMACIÓN",
    "Straße",
    "Łukasz śpi",
    "zdjęcia",
    "yapılır mı",
    "Čtyři kočky",
    "învață să",
    "Việt Nam",
    "Hà Nội",
    "don’t",
    "“quoted”",
    "a – b",
    "a — b",
    "wait…",
    "• item",
    "A → B",
    "a ⇒ b",
    "100 €",
    "5 °C",
    "10 m²",
    "© 2024",
    "a\u00a0b",
    "a × b ÷ c",
    "Trade™",
    "a ≤ b",
    "✓ done",
    "★★★",
    "│ ├── src",
    "■ square",
    "Привет",
    "Γειά σου",
    "你好",
    "日本語",
    "안녕",
    "مرحبا",
    "שלום",
    "สวัสดี",
    "😀",
    "\ufeffstart",
]


@pytest.mark.parametrize("encoding", ["cp1252", "latin-1"])
@pytest.mark.parametrize("text", SENTENCES)
def test_text_read_in_the_wrong_encoding_is_seen(text: str, encoding: str) -> None:
    assert found(text) == []
    bad = misread(text, encoding)
    assert (0, "DK901") in found(bad)
    assert (0, "DK901") in found([{"role": "user", "content": f'He said:\n"{bad}"'}])
    twice = misread(bad, encoding)
    assert (0, "DK901") in found(twice)


def test_replacement_characters_are_seen() -> None:
    assert found("caf\ufffd", "cafï¿½") == [(0, "DK901"), (1, "DK901")]


def test_the_note_counts_and_shows() -> None:
    rows = [orjson.dumps("plain"), orjson.dumps("cafÃ© et thÃ© \x0c\x7f")]
    (mojibake, control) = damaged(b"".join(rows), rows)
    assert mojibake == (1, "DK901", "2 places such as 'Ã©'")
    assert control == (1, "DK909", "2 control characters such as U+000C")


# ---------------------------------------------------------------- properties

PIECES = ["Ã©", "Ã¨", "Ã¼", "Ã±", "Ã‰", "Â£", "Â\xa0", "Â°", "â€™", "â€œ", "â€¦", "â†’", "â‚¬", "ï¿½", "\ufffd", "ðŸ˜€",
          "Ð¿Ñ€", "ä½\xa0å¥½"]  # fmt: skip
clean = st.text('abz \n\t"\\/{}:,.uüéñßôø中я0', max_size=8)
texts = st.lists(clean | clean | clean | st.sampled_from(PIECES), max_size=6).map("".join)


@quick
@given(st.lists(texts, max_size=8))
def test_pieces_are_found_where_they_were_put(rows: list[str]) -> None:
    expected = [(index, "DK901") for index, row in enumerate(rows) if any(piece in row for piece in PIECES)]
    assert found(*rows) == expected


signs = st.text('AZĐaz ÃÂâÄðÐé»«”“’–…™©®²º\u00a0\x80\x99€œŸ\n"\\', max_size=10)


@quick
@given(st.lists(signs, max_size=5))
@example(["\nâ–\xa0", "\tâ–\xa0", "\râ–\xa0", "\fâ–\xa0", "nâ–\xa0", "\\nâ–\xa0", "\\\nâ–\xa0"])
def test_the_search_in_bytes_misses_nothing(rows: list[str]) -> None:
    """The quick search before the pattern, and the escapes of JSON, make no difference."""
    assert [index for index, id in found(*rows) if id == "DK901"] == [
        index for index, row in enumerate(rows) if _MOJIBAKE.search(row)
    ]


controls = st.characters(max_codepoint=0xA0) | st.sampled_from('\\\\\\bfu01"nrt')
escapes = ["\\u0001", "\\b", "\\f", "\\\\", "\x7f", "\x0c", "\x00", "\\x", "u001f", "frac"]
escaped_texts = st.lists(st.sampled_from(escapes)).map("".join)


@quick
@given(st.lists(st.text(controls, max_size=12) | escaped_texts, max_size=6))
def test_controls_are_counted_as_a_plain_search_counts_them(rows: list[str]) -> None:
    expected = {
        index: len(hits)
        for index, row in enumerate(rows)
        if (hits := re.findall("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x84\\x86-\\x9f]", row))
    }
    encoded = [orjson.dumps({"content": row}) for row in rows]
    counted = {index: int(note.split()[0]) for index, id, note in damaged(b"".join(encoded), encoded) if id == "DK909"}
    assert counted == expected
