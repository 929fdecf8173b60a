from __future__ import annotations

import csv
import gzip
import io
import json
import pickle
import random
import tracemalloc
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from slayer.data.document import BadRecord, Document
from slayer.data.reading.fields import template_problem
from slayer.data.reading.files import Slice, plan_slices, text_file
from slayer.data.reading.records import PIECE_CHARACTERS, Reading, line_count, read_slice
from slayer.errors import DataError


def reading(**changes: Any) -> Reading:
    return Reading(**{"text_field": "text", "template": None, "max_record_bytes": 1 << 20, "paragraphs": False} | changes)


def read(path: Path, how: Reading | None = None, part_bytes: int = 1 << 40) -> list[Document | BadRecord]:
    parts = plan_slices([text_file(path, path.name)], part_bytes)
    return [record for part in parts for piece in part for record in read_slice(piece, how or reading())]


def good(records: Iterable[Document | BadRecord]) -> list[tuple[str, str]]:
    return [(record.id, record.text) for record in records if isinstance(record, Document)]


def bad(records: Iterable[Document | BadRecord]) -> list[BadRecord]:
    return [record for record in records if isinstance(record, BadRecord)]


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.Codec("zstd").compress(content, asbytes=True)
    return packed


def csv_bytes(rows: list[dict[str, str]], delimiter: str) -> bytes:
    out = io.StringIO(newline="")
    writer = csv.DictWriter(out, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue().encode()


def arrow_bytes(table: pa.Table, new: Callable[..., Any]) -> bytes:
    sink = pa.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)
    content: bytes = sink.getvalue().to_pybytes()
    return content


def parquet_bytes(table: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=7)
    content: bytes = sink.getvalue().to_pybytes()
    return content


ROWS = [{"title": f"Title {number}", "body": f'Line "one" of {number}, é 漢字 🎉\nline two' + "x" * number} for number in range(40)]
LINES = "".join(json.dumps(row, ensure_ascii=bool(number % 2)) + "\n" for number, row in enumerate(ROWS)).encode()
TABLE = pa.Table.from_pylist(ROWS)
RENAMED = TABLE.rename_columns(["title", "text"])
FORMATS = {
    "a.jsonl": LINES,
    "a.ndjson": b"\xef\xbb\xbf" + LINES.replace(b"\n", b"\r\n\r\n"),
    "a.jsonl.gz": gzip.compress(LINES[:100]) + gzip.compress(LINES[100:]),
    "a.jsonl.zst": zstd(LINES[:100]) + zstd(LINES[100:]),
    "a.csv": b"\xef\xbb\xbf" + csv_bytes(ROWS, ","),
    "a.csv.gz": gzip.compress(csv_bytes(ROWS, ",") + b"\r\n\r\n"),
    "a.tsv": csv_bytes(ROWS, "\t"),
    "a.tsv.zst": zstd(csv_bytes(ROWS, "\t")),
    "a.parquet": parquet_bytes(TABLE),
    "b.parquet": parquet_bytes(TABLE.set_column(1, "body", TABLE["body"].cast(pa.large_string()).dictionary_encode())),
    "a.arrow": arrow_bytes(TABLE, pa.ipc.new_file),
    "b.arrow": arrow_bytes(TABLE, pa.ipc.new_stream),
}


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("how", [reading(text_field="body"), reading(template="{title}\\n\\n{body}")])
def test_every_format_gives_the_same_documents(tmp_path: Path, name: str, how: Reading) -> None:
    (tmp_path / name).write_bytes(FORMATS[name])
    records = read(tmp_path / name, how)
    expected = [row["body"] if how.template is None else f"{row['title']}\n\n{row['body']}" for row in ROWS]
    assert [text for _, text in good(records)] == expected and not bad(records)
    ids = [id for id, _ in good(records)]
    if "." + name.split(".")[1] not in (".jsonl", ".ndjson"):
        assert ids == [f"{name}:{number}" for number in range(1, 41)]
    for skip in (0, 1, 7, 8, 39, 40, 50):
        (part,) = plan_slices([text_file(tmp_path / name, name)], 1 << 40)
        assert list(read_slice(part[0], how, skip)) == records[skip:]
    for part_bytes in (300, 1_000):
        assert read(tmp_path / name, how, part_bytes) == records


LINE = st.one_of(
    st.sampled_from([b"", b"   ", b"\xff\xfe", b"{", b"[1]", b'{"text": null}', b'{"other": 1}', b'{"text": "' + b"long " * 60 + b'"}']),
    st.text(max_size=40).map(lambda text: json.dumps({"text": text}, ensure_ascii=False).encode("utf-8", "replace")),
    st.text(max_size=40).map(lambda text: json.dumps({"text": text}).encode()),
)


@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(LINE, st.sampled_from([b"\n", b"\r\n"])), max_size=30), st.booleans(), st.lists(st.integers(1, 200), min_size=1, max_size=3)
)
def test_byte_ranges_change_nothing(tmp_path: Path, lines: list[tuple[bytes, bytes]], ends: bool, sizes: list[int]) -> None:
    content = b"".join(line + end for line, end in lines)
    content = content if ends else content.rstrip(b"\r\n")
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    how = reading(max_record_bytes=200)
    whole = read(path, how)
    expected = []  # the truth, by Python's own splitting and parsing
    offset = 0
    for line in content.split(b"\n"):
        try:
            fields = json.loads(line.decode())
        except ValueError:
            fields = None
        if len(line.rstrip(b"\r")) <= 200 and isinstance(fields, dict) and isinstance(text := fields.get("text"), str) and text.strip():
            try:
                text.encode()
                expected.append((f"a.jsonl@{offset}", text))
            except UnicodeEncodeError:
                pass
        offset += len(line) + 1
    assert good(whole) == expected
    assert len(whole) == sum(1 for line in content.split(b"\n") if line.strip())
    for part_bytes in sizes:
        records: list[Document | BadRecord] = []
        before = 0
        for piece in [piece for part in plan_slices([text_file(path, "a.jsonl")], part_bytes) for piece in part]:
            found = list(read_slice(piece, how))
            records += [
                BadRecord(file=one.file, record=one.record + before, offset_bytes=one.offset_bytes, reason=one.reason, head=one.head)
                if isinstance(one, BadRecord)
                else one
                for one in found
            ]
            before += line_count(piece)
            for skip in {0, 1, len(found) // 2, len(found)}:
                assert list(read_slice(piece, how, skip)) == found[skip:]
        assert records == whole
        assert before == content.count(b"\n") + (not content.endswith(b"\n") and content != b"")


LONG = 1_000
WELL = b'{"text": "fine"}\n'
QUARANTINE: dict[str, tuple[str, bytes, int, tuple[int, int | None, str]]] = {
    # name: (file, content, documents that stay, (record, offset, reason))
    "broken JSON": ("a.jsonl", WELL + b'{"text": \n' + WELL, 2, (2, 17, "is not JSON: Expecting value at column")),
    "not an object": ("a.jsonl", b"[1]\n" + WELL, 1, (1, 0, "is a list, not a JSON object")),
    "a bare number": ("a.jsonl", b"\n\n3\n" + WELL, 1, (3, 2, "is a number, not a JSON object")),
    "too deep": ("a.jsonl", b"[" * 900 + b"\n" + WELL, 1, (1, 0, "is not JSON")),
    "no such field": ("a.jsonl", b'{"n": "1", "body": "long"}\n' + WELL, 1, (1, 0, "has no field text; it has n, body (data.sources.NAME.text_fi")),
    "another type": ("a.jsonl", b'{"text": 3}\n' + WELL, 1, (1, 0, "holds a number in the field text, not text")),
    "null": ("a.jsonl", b'{"text": null}\n' + WELL, 1, (1, 0, "holds null in the field text")),
    "not UTF-8": ("a.jsonl", WELL + b'{"text": "\xff"}\n' + WELL, 2, (2, 17, "is not UTF-8: byte 27 is 0xff")),
    "half a surrogate": ("a.jsonl", b'{"text": "a\\ud800"}\n' + WELL, 1, (1, 0, "has half a surrogate pair at character 1")),
    "half a name": ("a.jsonl", b'{"\\ud800": "x"}\n' + WELL, 1, (1, 0, "has no field text; it has \\ud800")),
    "empty": ("a.jsonl", b'{"text": " \\n"}\n' + WELL, 1, (1, 0, "is empty")),
    "too long": ("a.jsonl", WELL + b'{"text": "' + b"x" * LONG + b'"}\n' + WELL, 2, (2, 17, "longer than data.cleaning.max_record_bytes=1000")),
    "no more than too long": ("a.jsonl", WELL + b"x" * 5_000, 1, (2, 17, "longer than data.cleaning.max_record_bytes=1000")),
    "truncated line": ("a.jsonl", WELL + WELL[:-4], 1, (2, 17, "is not JSON: Unterminated string")),
    "truncated gz": ("a.jsonl.gz", gzip.compress(WELL * 9)[:-9], 9, (10, 153, "cannot be read from here on: Compressed file ended")),
    "no gz": ("a.jsonl.gz", WELL, 0, (1, 0, "cannot be read from here on: Not a gzipped file")),
    "wrong gz checksum": ("a.jsonl.gz", gzip.compress(WELL)[:-8] + b"12345678", 1, (2, 17, "cannot be read from here on: CRC check failed")),
    "truncated zst": ("a.jsonl.zst", zstd(WELL)[:-3], 0, (1, 0, "cannot be read from here on: Truncated compressed stream")),
    "no zst": ("a.jsonl.zst", WELL, 0, (1, 0, "cannot be read from here on")),
    "csv: too few": ("a.csv", b'n,text\n1,one\n2\n3,"th\n\nree"\n', 2, (2, 13, "has 1 field where the header line has 2")),
    "csv: too many": ("a.csv", b"n,text\n1,one\n2,two,too\n3,three\n", 2, (2, 13, "has 3 fields where the header line has 2")),
    "csv: not UTF-8": ("a.csv", b"n,text\n1,caf\xe9\n3,three\n", 1, (1, 7, "is not UTF-8: byte 12 is 0xe9")),
    "csv: empty": ("a.csv", b"n,text\n\n1, \n3,three\n", 1, (1, 8, "is empty")),
    "csv: long line": ("a.csv", b"n,text\n1," + b"x" * 5_000 + b"\n3,three\n", 1, (1, 7, "longer than data.cleaning.max_record_bytes=1000")),
    "csv: long field": ("a.csv", b'n,text\n1,"' + b"x,y\n" * 999 + b'"\n3,three\n', 1, (1, 7, "longer than data.cleaning.max_record_bytes=1000")),
    "csv: header": ("a.csv", b"n,t\xe9xt\n1,one\n", 0, (1, 0, "is not UTF-8")),
    "csv: truncated": ("a.csv.gz", gzip.compress(b"n,text\n1,one\n2,two\n")[:-8], 2, (3, 19, "cannot be read from here on")),
    "text: not UTF-8": ("a.txt", b"caf\xe9 noir", 0, (1, 0, "is not UTF-8: byte 3 is 0xe9 (invalid continuation byte)")),
    "text: UTF-16": ("a.txt", "text".encode("utf-16"), 0, (1, 0, "is not UTF-8: byte 0 is 0xff")),
    "text: behind a mark": ("a.txt", b"\xef\xbb\xbfab\xff", 0, (1, 0, "is not UTF-8: byte 5 is 0xff")),
    "text: empty": ("a.txt", b"", 0, (1, 0, "is empty")),
    "text: blank": ("a.md", b" \n\n", 0, (1, 0, "is empty")),
    "text: truncated": ("a.txt.gz", gzip.compress(b"hello " * 99)[:-8], 0, (1, 594, "cannot be read from here on")),
    "parquet: no footer": ("a.parquet", parquet_bytes(TABLE)[:-20], 0, (1, None, "cannot be read from here on")),
    "parquet: no such column": ("a.parquet", parquet_bytes(TABLE.slice(0, 1)), 0, (1, None, "has no field text; it has title, body")),
    "parquet: null": ("a.parquet", parquet_bytes(pa.table({"text": [None, "x"]})), 1, (1, None, "holds null in the field text")),
    "parquet: number": ("a.parquet", parquet_bytes(pa.table({"text": [3]})), 0, (1, None, "holds a number in the field text")),
    "parquet: too long": ("a.parquet", parquet_bytes(pa.table({"text": ["é" * LONG, "x"]})), 1, (1, None, "holds 2,000 bytes, longer than")),
    "parquet: not UTF-8": (
        "a.parquet", parquet_bytes(pa.table({"text": pa.array([b"x", b"\xff"]).view(pa.string())})), 1, (2, None, "is not UTF-8: byte 0 is 0xff")
    ),
    "arrow: truncated file": ("a.arrow", arrow_bytes(RENAMED, pa.ipc.new_file)[:-3_000], 14, (15, None, "cannot be")),
    "arrow: truncated stream": ("a.arrow", arrow_bytes(RENAMED, pa.ipc.new_stream)[:-100], 35, (36, None, "cannot be")),
    "arrow: something else": ("a.arrow", b"nothing of the kind", 0, (1, None, "cannot be read from here on")),
    "arrow: empty": ("a.arrow", b"", 0, (1, None, "cannot be read from here on")),
}  # fmt: skip


@pytest.mark.parametrize("case", QUARANTINE)
def test_bad_records_are_put_aside_with_their_place(tmp_path: Path, case: str) -> None:
    name, content, stay, (record, offset_bytes, reason) = QUARANTINE[case]
    (tmp_path / name).write_bytes(content)
    records = read(tmp_path / name, reading(max_record_bytes=LONG if "long" in case else 1 << 20))
    (one,) = bad(records)
    assert (one.file, one.record, one.offset_bytes) == (name, record, offset_bytes)
    assert reason in one.reason, one.reason
    assert len(good(records)) == stay
    assert len(one.head) <= 80 and one.head.isprintable() and one.reason.encode()
    assert pickle.loads(pickle.dumps(one)) == one


def test_a_truncated_zst_keeps_what_came_before(tmp_path: Path) -> None:
    lines = [json.dumps({"text": random.Random(number).randbytes(100).hex()}) + "\n" for number in range(5_000)]
    packed = zstd("".join(lines).encode())
    (tmp_path / "a.jsonl.zst").write_bytes(packed[: len(packed) * 9 // 10])
    records = read(tmp_path / "a.jsonl.zst")
    (one,) = bad(records)
    assert records[-1] is one and one.record == len(records) and "Truncated" in one.reason
    assert [text for _, text in good(records)] == [json.loads(line)["text"] for line in lines[: len(records) - 1]]
    assert one.offset_bytes == sum(map(len, lines[: len(records) - 1])) > 0.9 * sum(map(len, lines)) - (2 << 17)


def test_a_damaged_row_group_costs_no_other(tmp_path: Path) -> None:
    table = pa.table({"text": [f"document {number} " + random.Random(number).randbytes(40).hex() for number in range(40)]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=10, compression="zstd", use_dictionary=False, write_page_checksum=True)
    content = bytearray(sink.getvalue().to_pybytes())
    start = pq.ParquetFile(pa.BufferReader(bytes(content))).metadata.row_group(1).column(0).data_page_offset
    content[start : start + 80] = b"\xff" * 80
    (tmp_path / "a.parquet").write_bytes(content)
    records = read(tmp_path / "a.parquet")
    (one,) = bad(records)
    assert one.record == 11 and "row group 1" in one.reason
    assert [id for id, _ in good(records)] == [f"a.parquet:{number}" for number in [*range(1, 11), *range(21, 41)]]
    assert read(tmp_path / "a.parquet", part_bytes=500) == records
    (part,) = plan_slices([text_file(tmp_path / "a.parquet", "a.parquet")], 1 << 40)
    assert all(list(read_slice(part[0], reading(), skip)) == records[skip:] for skip in range(32))


def test_a_line_of_60_megabytes_is_never_held(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as stream:
        stream.write(WELL + b'{"text": "')
        for _ in range(60):
            stream.write(b"x" * (1 << 20))
        stream.write(b'"}\n' + WELL)
    (tmp_path / "a.csv").write_bytes(b'n,text\n1,"' + path.read_bytes().replace(b'"', b"'") + b'"\n2,fine\n')
    (tmp_path / "a.txt").write_bytes(path.read_bytes())
    packed = tmp_path / "b.jsonl.zst"
    packed.write_bytes(zstd(path.read_bytes()))
    read(tmp_path / "a.jsonl", reading(max_record_bytes=1_000))  # imports
    for one, stay in ((path, 2), (packed, 2), (tmp_path / "a.csv", 1), (tmp_path / "a.txt", 2)):
        tracemalloc.start()
        records = read(one, reading(max_record_bytes=1 << 20))
        peak_bytes = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert len(good(records)) == stay and len(bad(records)) == 1
        assert peak_bytes < 12 << 20, (one.name, peak_bytes)


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(alphabet="ab \n\t\u3000é", max_size=400), st.integers(1, 40), st.sampled_from([2_100, 9_000, 1 << 20]))
def test_a_text_is_cut_at_blank_lines_and_nothing_is_lost(tmp_path: Path, text: str, repeat: int, limit_bytes: int) -> None:
    whole = (text + "\n\n") * repeat
    (tmp_path / "book.txt").write_text(whole, newline="")
    records = read(tmp_path / "book.txt", reading(paragraphs=True, max_record_bytes=limit_bytes))
    pieces = [text for _, text in good(records)]
    assert all(one.reason == "is empty" for one in bad(records)) and (len(records) == 1 or len(whole) > 2_000)
    if not bad(records):
        assert "".join(pieces) == whole
    assert "".join(pieces).split() == whole.split()
    if limit_bytes > 9_000:
        assert all(len(piece) >= PIECE_CHARACTERS and not piece.split("\n")[-2].strip() for piece in pieces[:-1])
        assert [id for id, _ in good(records)] == [f"book.txt#{number}" for number in range(1, len(pieces) + 1)]


def test_only_a_single_or_a_large_text_is_cut(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_text("\n\n".join(f"{number} " + "word " * 100 for number in range(100)))
    assert len(read(tmp_path / "book.txt")) == 1
    cut = read(tmp_path / "book.txt", reading(paragraphs=True))
    assert 20 < len(cut) < 30 and all(2_000 <= len(text) < 2_600 for _, text in good(cut)[:-1])
    assert read(tmp_path / "book.txt", reading(max_record_bytes=10_000)) == cut
    packed = tmp_path / "book.txt.gz"
    packed.write_bytes(gzip.compress((tmp_path / "book.txt").read_bytes()))
    assert [text for _, text in good(read(packed, reading(max_record_bytes=10_000)))] == [text for _, text in good(cut)]
    packed.write_bytes(packed.read_bytes()[:-8])
    damaged = read(packed, reading(paragraphs=True))
    assert [text for _, text in good(damaged)] == [text for _, text in good(cut)][:-1] and "cannot be read" in bad(damaged)[0].reason


TEMPLATES = {
    "{title}: {body}": "T: B",
    "{title}\\n\\n{body}": "T\n\nB",
    "{{{title}}} {n} {f} {yes}": "{T} 3 0.5 true",
    "{meta.author.name}/{a.b}": "Ann/dotted",
    "{title}{void}": "T",
}


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates(tmp_path: Path, template: str) -> None:
    row = {"title": "T", "body": "B", "n": 3, "f": 0.5, "yes": True, "void": "", "meta": {"author": {"name": "Ann"}}, "a.b": "dotted"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert template_problem("data.sources.law.template", template) is None
    for name in ("a.jsonl", "a.parquet"):
        assert [text for _, text in good(read(tmp_path / name, reading(template=template)))] == [TEMPLATES[template]]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{title} {no}", "has no field no; it has title"),
        ("{meta.x}", "has no field meta.x"),
        ("{nil}", "null"),
        ("{list}", "a list"),
        ("x{void}", "is empty"),
    ],
)
def test_a_record_that_does_not_fill_a_template(tmp_path: Path, template: str, reason: str) -> None:
    (tmp_path / "a.jsonl").write_text('{"title": "T", "nil": null, "list": [], "meta": {}, "void": " "}')
    (one,) = bad(read(tmp_path / "a.jsonl", reading(template=template)))
    assert reason in one.reason


@pytest.mark.parametrize("template", ["text", "{}", "{ }", "{a", "a}", "{a!r}", "{a:>3}", "", "{{a}}"])
def test_a_malformed_template_is_a_problem(template: str) -> None:
    problem = template_problem("data.sources.law.template", template)
    assert problem is not None and problem.key == "data.sources.law.template" and "{title}" in problem.fix


def test_trouble_of_the_machine_is_no_bad_record(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text("{}")
    file = text_file(tmp_path / "a.jsonl", "a.jsonl")
    (tmp_path / "a.jsonl").unlink()
    with pytest.raises(DataError, match="No such file"):
        list(read_slice(Slice(file=file), reading()))
