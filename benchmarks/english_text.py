"""Real English prose for the codec, without a download from the hub: what Debian's packages of documentation and dictionaries carry.

python -m benchmarks.english_text --work_dir outputs/english_text --json

Needs a Debian or Ubuntu with its mirror. Packages are fetched by `apt-get download` and unpacked by `dpkg-deb -x` in --work_dir, and are
not installed; one that the mirror lacks is left out. Of a page the words are taken and code is left out; paragraphs that came before,
of whichever package, are left out too. A document is a page, cut at the end of a paragraph from 20,000 characters on, or a few entries of
a dictionary. Writes a JSON-lines file a package, with `name` and `text`, and sources.json with each package's version, the licences
that its copyright file names in fields, and where that file lies. `sidrec codec text --documents` takes the folder. The last line is
one JSON object.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import announce, plain_console, print_figures
from sidrec.pipeline.command import run_as_command
from sidrec.pipeline.config import parse_config
from sidrec.pipeline.errors import InputError
from sidrec.pipeline.files import atomic_path, write_json

UNPACKED = ".packages"  # hidden, so that the codec reads the documents only
COPYRIGHT = "usr/share/doc/{package}/copyright"
MOST_CHARACTERS = 20_000  # of a document
LEAST_WORDS = 4  # of a paragraph: shorter ones are menus, numbers and names
ENTRIES_CHARACTERS = 1_500  # of a dictionary's document
BREAKS = {  # tags that begin and end paragraphs
    *("p", "div", "li", "ul", "ol", "dl", "dt", "dd", "td", "th", "tr", "table", "br", "hr", "body"),
    *("h1", "h2", "h3", "h4", "h5", "h6", "section", "article", "blockquote"),
}
NO_PROSE = {"script", "style", "pre", "head", "nav", "footer", "header", "form", "button", "svg", "math"}


class Source(NamedTuple):
    """files: a pattern below the unpacked package. read: the paragraphs of a file, in lists, one a document."""

    files: str
    read: Callable[[Path], Iterable[list[str]]]


@dataclass
class EnglishTextConfig:
    """Collect English prose from Debian's packages."""

    work_dir: Path = field(metadata={"help": "Folder for the packages and the documents."})
    most_megabytes: float = field(
        default=12.0, metadata={"help": "Of a package with more text, every n-th document is taken."}
    )
    packages: list[str] = field(
        default_factory=list, metadata={"help": "Packages that are read. None: all that are known."}
    )
    json: bool = field(default=False, metadata={"help": "Print the last line only."})

    def __post_init__(self) -> None:
        if unknown := [name for name in self.packages if name not in SOURCES]:
            raise InputError(f"--packages {unknown[0]} is not known; there are {', '.join(SOURCES)}.")
        if self.most_megabytes <= 0:
            raise InputError(f"--most_megabytes is {self.most_megabytes}; it must be above 0.")


# ---- paragraphs


class _Prose(HTMLParser):
    """The paragraphs of a page, without what stands in NO_PROSE."""

    def __init__(self) -> None:
        super().__init__()
        self.paragraphs: list[str] = []
        self.words: list[str] = []
        self.hidden: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag in NO_PROSE:
            self.hidden.append(tag)
        if tag in BREAKS or tag in NO_PROSE:
            self.end_paragraph()

    def handle_endtag(self, tag: str) -> None:
        if tag in self.hidden:
            del self.hidden[self.hidden.index(tag) :]
        if tag in BREAKS:
            self.end_paragraph()

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)

    def end_paragraph(self) -> None:
        self.paragraphs.append("".join(self.words))
        self.words = []


def html_paragraphs(path: Path) -> Iterator[list[str]]:
    """The paragraphs of a page."""
    page = _Prose()
    page.feed(text_of(path))
    page.close()
    page.end_paragraph()
    yield page.paragraphs


def pod_paragraphs(path: Path) -> Iterator[list[str]]:
    """The paragraphs of a page of Perl's documentation, without code and commands; C<name> becomes name."""
    blocks = [block for block in re.split(r"\n\s*\n", text_of(path)) if block and block[0] not in " \t="]
    yield [unmarked(block) for block in blocks]


def unmarked(text: str) -> str:
    """POD without its letters and angles: B<not> L<perlfunc/open> → not perlfunc/open."""
    text = text.replace("E<lt>", "\0").replace("E<gt>", "\1")
    text = re.sub(r"\b[BCFILSXZ]<<+ (.*?) >>+", r"\1", text, flags=re.DOTALL)
    before = ""
    while before != text:
        before, text = text, re.sub(r"\b[BCFILSXZ]<([^<>]*)>", r"\1", text)
    return text.replace("\0", "<").replace("\1", ">")


def dictionary_entries(path: Path) -> Iterator[list[str]]:
    """A few entries of a dictionary at a time, as paragraphs. An entry begins at the margin; its lines are joined."""
    entries = re.split(r"\n+(?=\S)", text_of(path))
    group: list[str] = []
    for entry in entries:
        entry = re.sub(r"\[(?:1913 Webster|WordNet[^\]]*|PJC|Webster[^\]]*|\w+ PJC)[^\]]*\]|\\[^\\]*\\", " ", entry)
        entry = re.sub(r"[{}]", "", entry)
        entry = re.sub(r"^(\S.*)\n\s*\n", r"\1\n", entry)  # a headword alone goes with what is said of it
        group += re.split(r"\n\s*\n", entry)
        if sum(map(len, group)) >= ENTRIES_CHARACTERS:
            yield group
            group = []
    yield group


def text_of(path: Path) -> str:
    """A file's text, unpacked; what is no UTF-8 is read as Latin-1."""
    content = gzip.decompress(path.read_bytes()) if path.suffix in (".gz", ".dz") else path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


SOURCES = {
    "anarchism": Source("**/html/*.html", html_paragraphs),
    "apache2-doc": Source("**/en/**/*.html", html_paragraphs),
    "aspell-doc": Source("**/*.html", html_paragraphs),
    "debian-faq": Source("**/*.html", html_paragraphs),
    "debian-handbook": Source("**/en-US/*.html", html_paragraphs),
    "debian-policy": Source("**/policy.html/*.html", html_paragraphs),
    "debian-reference-en": Source("**/*.html", html_paragraphs),
    "developers-reference": Source("**/*.html", html_paragraphs),
    "dict-foldoc": Source("**/*.dz", dictionary_entries),
    "dict-gcide": Source("**/*.dz", dictionary_entries),
    "dict-jargon": Source("**/*.dz", dictionary_entries),
    "exim4-doc-html": Source("**/*.html", html_paragraphs),
    "git-doc": Source("**/*.html", html_paragraphs),
    "installation-guide-amd64": Source("**/en/*.html", html_paragraphs),
    "maint-guide": Source("**/*.html", html_paragraphs),
    "octave-doc": Source("**/octave.html/*.html", html_paragraphs),
    "perl-doc": Source("**/*.pod", pod_paragraphs),
    "postgresql-doc-15": Source("**/*.html", html_paragraphs),
    "python3.11-doc": Source("**/*.html", html_paragraphs),
    "sqlite3-doc": Source("**/*.html", html_paragraphs),
}


# ---- documents


def documents(folder: Path, source: Source, seen: set[bytes]) -> Iterator[dict[str, str]]:
    """The documents of an unpacked package. seen: hashes of the paragraphs that came before, which are left out; it grows."""
    for path in sorted(path for path in folder.glob(source.files) if path.is_file()):
        for number, paragraphs in enumerate(source.read(path), 1):
            new = [paragraph for paragraph in map(plain, paragraphs) if is_new(paragraph, seen)]
            for part, text in enumerate(cut(new), 1):
                yield {"name": f"{path.relative_to(folder)} {number}.{part}", "text": text}


def plain(paragraph: str) -> str:
    """One line, with single spaces."""
    return " ".join(paragraph.replace("\u00b6", " ").split())


def is_new(paragraph: str, seen: set[bytes]) -> bool:
    """Whether a paragraph has enough words and did not come before."""
    if paragraph.count(" ") + 1 < LEAST_WORDS or sum(map(str.isalpha, paragraph)) < len(paragraph) / 2:
        return False
    digest = hashlib.blake2b(paragraph.encode(), digest_size=12).digest()
    if digest in seen:
        return False
    seen.add(digest)
    return True


def cut(paragraphs: list[str]) -> Iterator[str]:
    """Paragraphs, a line each, as texts of about MOST_CHARACTERS at most."""
    part: list[str] = []
    length = 0
    for paragraph in paragraphs:
        if part and length + len(paragraph) > MOST_CHARACTERS:
            yield "\n".join(part) + "\n"
            part, length = [], 0
        part.append(paragraph)
        length += len(paragraph) + 1
    if part:
        yield "\n".join(part) + "\n"


# ---- packages


def unpack(package: str, folder: Path) -> str | None:
    """Fetch and unpack a package below `folder`, once; its version, None where the mirror lacks it."""
    folder.mkdir(parents=True, exist_ok=True)
    if not (files := sorted(folder.glob(f"{package}_*.deb"))):
        done = subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True, check=False)
        files = sorted(folder.glob(f"{package}_*.deb"))
        if done.returncode or not files:
            return None
    if not (folder / package).is_dir():
        subprocess.run(["dpkg-deb", "-x", str(files[-1]), str(folder / f"{package}.part")], check=True)
        (folder / f"{package}.part").rename(folder / package)
    return files[-1].name.split("_")[1].replace("%3a", ":")


def licences(folder: Path, package: str) -> list[str]:
    """The licences that a package's copyright file names: in fields, as names of Debian's common licences, or as public domain."""
    text = text_of(folder / COPYRIGHT.format(package=package))
    named = set(re.findall(r"^License: *([\w.+-]+(?: (?:or|and) [\w.+-]+)*)$", text, re.MULTILINE))
    named |= {name.rstrip(".") for name in re.findall(r"/usr/share/common-licenses/([\w.-]+)", text)}
    if re.search(r"public\s+domain", text, re.IGNORECASE):
        named.add("public-domain")
    return sorted(named) or ["see the package's copyright file"]


def main(arguments: list[str] | None = None) -> None:
    config = parse_config(EnglishTextConfig, arguments)
    console = plain_console()
    console.quiet = config.json
    command = announce(console, "english_text", arguments)
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        raise InputError("apt-get and dpkg-deb are not here; run this on Debian or Ubuntu.")
    sources: list[dict[str, Any]] = []
    seen: set[bytes] = set()
    for package in config.packages or SOURCES:
        version = unpack(package, config.work_dir / UNPACKED)
        if version is None:
            console.print(f"{package}: the mirror lacks it")
            continue
        folder = config.work_dir / UNPACKED / package
        rows = list(documents(folder, SOURCES[package], seen))
        n_bytes = sum(len(row["text"].encode()) for row in rows)
        rows = rows[:: max(1, -int(-n_bytes // (config.most_megabytes * 1e6)))]
        with atomic_path(config.work_dir / f"{package}.jsonl") as temporary:
            temporary.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
        source = {
            "package": package,
            "version": version,
            "licences": licences(folder, package),
            "copyright": f"{UNPACKED}/{package}/{COPYRIGHT.format(package=package)}",
            "documents": len(rows),
            "bytes": sum(len(row["text"].encode()) for row in rows),
        }
        console.print(f"{package} {version}: {len(rows):,} documents, {source['bytes']:,} bytes")
        sources.append(source)
    if not sources:
        raise InputError("the mirror has none of the packages; run `apt-get update` first.")
    write_json(config.work_dir / "sources.json", sources)
    n_documents, n_bytes = (sum(source[name] for source in sources) for name in ("documents", "bytes"))
    print_figures({"command": command, "documents": n_documents, "bytes": n_bytes, "packages": len(sources)})


if __name__ == "__main__":
    run_as_command(main)
