"""benchmarks/english_text.py: pages, POD and dictionaries by hand; packages made here."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from benchmarks import english_text
from benchmarks.english_text import (
    cut,
    dictionary_entries,
    documents,
    html_paragraphs,
    is_new,
    licences,
    main,
    plain,
    pod_paragraphs,
    unmarked,
)
from sidrec.pipeline.errors import InputError

PAGE = """<html><head><title>Head</title></head><body><nav>Menu of the whole page</nav><h1>The house &amp; the sea</h1>
<p>A house stood <b>by the</b>
sea.<p>It was <code>white</code> and very old.<pre>x = 1 and no prose</pre><script>var no = "prose at all";</script></body></html>"""


def words_of(paragraphs: list[str]) -> list[str]:
    return [paragraph for paragraph in map(plain, paragraphs) if paragraph]


def test_a_page_is_its_paragraphs_without_code(tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(PAGE)
    (paragraphs,) = html_paragraphs(tmp_path / "page.html")
    assert words_of(paragraphs) == ["The house & the sea", "A house stood by the sea.", "It was white and very old."]


def test_pod_is_its_paragraphs_without_marks(tmp_path: Path) -> None:
    (tmp_path / "page.pod").write_text("=head1 NAME\n\nUse C<< B<open> >> now.\n\n    code();\n\nIt E<lt>works.\n")
    (paragraphs,) = pod_paragraphs(tmp_path / "page.pod")
    assert words_of(paragraphs) == ["Use open now.", "It <works."]
    assert unmarked("B<not I<very>> L<perlfunc/open>") == "not very perlfunc/open"


def test_a_dictionary_is_its_entries(tmp_path: Path) -> None:
    text = 'Abbey \\Ab"bey\\, n. [OE.]\n   A {monastery} or\n   a church.\n   [1913 Webster]\n\n'
    text += 'Abbot \\Ab"bot\\, n.\n   Its head.\n\nabbot\n\n   <word> Short.\n'
    (tmp_path / "d.dict.dz").write_bytes(gzip.compress(text.encode("latin-1")))
    (paragraphs,) = dictionary_entries(tmp_path / "d.dict.dz")
    assert words_of(paragraphs) == [
        "Abbey , n. [OE.] A monastery or a church.",
        "Abbot , n. Its head.",
        "abbot <word> Short.",
    ]


def test_paragraphs_are_cut_into_documents_and_nothing_is_lost() -> None:
    paragraphs = [str(number) * 6_000 for number in range(1, 8)]
    texts = list(cut(paragraphs))
    assert "".join(texts).split() == paragraphs
    assert [text.count("\n") for text in texts] == [3, 3, 1]


def test_a_paragraph_counts_once_and_needs_words() -> None:
    seen: set[bytes] = set()
    assert is_new("four words of prose", seen)
    assert not is_new("four words of prose", seen)
    assert not is_new("too few", seen)
    assert not is_new("1 2 3 4 5 6", seen)


def package(folder: Path, name: str, licence: str) -> None:
    place = folder / ".packages" / name / "usr" / "share" / "doc" / name
    (place / "html").mkdir(parents=True)
    (place / "html" / "a.html").write_text(PAGE)
    (place / "copyright").write_text(licence)
    (folder / ".packages" / f"{name}_1%3a2-3_all.deb").touch()


def test_the_packages_are_collected_with_their_licences(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    package(tmp_path, "anarchism", "License: GPL-2+\nLicense: Permission is granted to use this\n")
    package(tmp_path, "maint-guide", "see /usr/share/common-licenses/GPL-3.\n")
    main(["--work_dir", str(tmp_path), "--packages", "anarchism", "maint-guide", "--json"])
    figures = json.loads(capsys.readouterr().out)
    sources = json.loads((tmp_path / "sources.json").read_text())
    rows = [json.loads(line) for line in (tmp_path / "anarchism.jsonl").read_text().splitlines()]
    assert [row["text"].splitlines()[0] for row in rows] == ["The house & the sea"]
    assert not (tmp_path / "maint-guide.jsonl").read_text()  # the same page
    assert [source["licences"] for source in sources] == [["GPL-2+"], ["GPL-3"]]
    assert {source["version"] for source in sources} == {"1:2-3"}
    assert (figures["documents"], figures["packages"]) == (1, 2)
    assert figures["bytes"] == len(rows[0]["text"].encode())


def test_other_licences_are_named_as_they_are(tmp_path: Path) -> None:
    package(tmp_path, "p", "This is in the public\ndomain.")
    assert licences(tmp_path / ".packages" / "p", "p") == ["public-domain"]
    package(tmp_path, "q", "Ask me.")
    assert licences(tmp_path / ".packages" / "q", "q") == ["see the package's copyright file"]


def test_every_known_package_has_a_pattern_and_unknown_ones_are_refused(tmp_path: Path) -> None:
    assert list(documents(tmp_path, english_text.SOURCES["anarchism"], set())) == []
    with pytest.raises(InputError, match="--packages emacs is not known"):
        main(["--work_dir", str(tmp_path), "--packages", "emacs"])
    with pytest.raises(InputError, match="must be above 0"):
        main(["--work_dir", str(tmp_path), "--most_megabytes", "0"])
