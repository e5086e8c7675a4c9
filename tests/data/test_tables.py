"""The one reader of tables: what it gives, and what it refuses rather than shorten."""

import gzip
import os
from pathlib import Path

import pandas as pd
import pytest

from roentgen.data.tables import LONGEST_LINE, column_names, read_table
from roentgen.errors import UserError


def table(folder: Path, content: str | bytes, name: str = "t.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def rows(path: Path, **settings: object) -> list[list[str]]:
    frame = read_table(path, **{"optional": None, **settings})  # type: ignore[arg-type]
    return [frame.columns.tolist(), *frame.to_numpy().tolist()]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("a,b\n1, x \n", [["a", "b"], ["1", "x"]]),
        ("a,b\n1,NA\n2,nan\n", [["a", "b"], ["1", "NA"], ["2", "nan"]]),
        ('a,b\n1,"x, y"\n\n2,"two\nlines"\n', [["a", "b"], ["1", "x, y"], ["2", "two\nlines"]]),
        ('a,b\n1,"he said ""no"""\n', [["a", "b"], ["1", 'he said "no"']]),
        ("a,b\n1,x,\n2,y, ,\n", [["a", "b"], ["1", "x"], ["2", "y"]]),  # a trailing comma on each row
        ("a,b,\n1,x,\n2,y\n", [["a", "b"], ["1", "x"], ["2", "y"]]),  # and in the header
        ("a,b,c\n1\n2,y\n", [["a", "b", "c"], ["1", "", ""], ["2", "y", ""]]),
        (",a,b\n0,1,x\n", [["a", "b"], ["1", "x"]]),  # pandas' index, which has no name
        ("\ufeffa,b\r\n1,x\r\n", [["a", "b"], ["1", "x"]]),
        ("a,b\r1,x\r2,y\r", [["a", "b"], ["1", "x"], ["2", "y"]]),
        ("a,b\n1,Ödem ≥ 2\u2028cm\n", [["a", "b"], ["1", "Ödem ≥ 2\u2028cm"]]),
    ],
)
def test_a_table_is_read_whole(tmp_path: Path, content: str, expected: list[list[str]]) -> None:
    assert rows(table(tmp_path, content)) == expected
    assert rows(table(tmp_path, gzip.compress(content.encode()), "t.csv.gz")) == expected


def test_columns_are_chosen_and_semicolons_and_tabs_are_seen(tmp_path: Path) -> None:
    assert rows(table(tmp_path, "c,b,a\n1,2,3\n"), required=("a",), optional=("c", "d")) == [["c", "a"], ["1", "3"]]
    assert rows(table(tmp_path, "a;b\n1;x, y\n"), required=("b",)) == [["a", "b"], ["1", "x, y"]]
    assert rows(table(tmp_path, 'a\t"b"\n1\tx;y\n'), required=("a", "b")) == [["a", "b"], ["1", "x;y"]]
    assert column_names(table(tmp_path, '"a", b\n')) == ["a", "b"]
    assert column_names(tmp_path / "none.csv") == []


def test_rows_can_be_named_by_their_lines(tmp_path: Path) -> None:
    frame = read_table(table(tmp_path, 'a\n\n"x\ny"\nz\n'), optional=None, lines=True)
    assert frame.index.tolist() == [3, 5]


BAD = [
    (
        "a,b\n1,Heart size normal, small effusion.\n",
        "line 2: more fields than columns (3 for 2); put texts with commas",
    ),
    ("a,b,\n1,Heart size normal, small effusion,\n", "line 2: more fields than columns"),
    ('a,b\n1,"x\ny"\n2,x, y\n', "line 4: more fields than columns"),
    ('a,b\n1,x\n2,"y\n3,z\n', "line 3: not valid CSV"),
    ('a,b\n1,"x"y\n', "line 2: not valid CSV"),
    ("a,b\n1,x\n2,\udce9\n".encode("utf-8", "surrogateescape"), "line 3: not UTF-8 text (byte 0xe9"),
    ("a,b\n1,x\n".encode("utf-16"), "UTF-16 text; save it as UTF-8"),
    (b"a,b\n1,x\x00y\n", "line 2: it has a NUL byte"),
    ("a,b\n1," + "x" * 200_000 + "\n", "line 2: not valid CSV (field larger than field limit"),
    (b"a,b\n" + b"x" * (LONGEST_LINE + 1), "line 2: longer than"),
    (",".join(map(str, range(10_001))) + "\n1\n", "10,001 columns"),
    ("a,b,a\n1,2,3\n", "two columns 'a'"),
    ("a,b\n", "has no rows; mend it"),
    ("", "it is empty; mend it"),
    ("\n,,\n", "it is empty"),
]


@pytest.mark.parametrize(("content", "message"), BAD)
def test_what_is_not_a_table_is_one_sentence_with_its_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(UserError) as caught:
        read_table(table(tmp_path, content), optional=None, name="--csv t.csv", fix="mend it")
    assert message in str(caught.value) and "--csv t.csv" in str(caught.value) and "\n" not in str(caught.value)


def test_what_is_no_file_is_one_sentence(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    (tmp_path / "folder.csv").mkdir()
    names = {
        "pipe.csv": "no regular file",
        "folder.csv": "no regular file",
        "x.csv": "does not exist",
        "\ud800": "encode",
    }
    for name, message in names.items():
        with pytest.raises(UserError, match=f"{name} .*{message}"):
            read_table(tmp_path / name, optional=None)
    with pytest.raises(UserError, match=r"cannot be read as CSV \(File name too long\)"):
        read_table(tmp_path / ("x" * 256), optional=None)
    cut = table(tmp_path, gzip.compress(b"a,b\n1,x\n" * 1000)[:-20], "t.csv.gz")
    with pytest.raises(UserError, match="cannot be read as CSV"):
        read_table(cut, optional=None)


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"lacks the column 'c' \(it has a, b\); mend it"):
        read_table(table(tmp_path, "a,b\n1,2\n"), required=("a", "c"), fix="mend it")


def test_cells_are_as_pandas_reads_them(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a": ['x "y", z', "", "é\nü", "'"], "b": ["1", "-1.0", "nan", ";"]})
    path = tmp_path / "t.csv"
    frame.to_csv(path, index=False)
    pd.testing.assert_frame_equal(read_table(path, optional=None), pd.read_csv(path, dtype=str, keep_default_na=False))
