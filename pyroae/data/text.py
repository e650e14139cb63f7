"""Tables as text, such as CSV: separator, decimal sign, header and encoding are inferred, then pandas reads the file."""

import codecs
import collections
import csv
import io
import itertools
import re
import warnings
from pathlib import Path
from typing import Any

import pandas as pd

from . import number_text
from .limits import check_columns, opened

_HEAD = 2**16  # bytes from which the format is inferred
_LINES = 10
_LONGEST = 2**26
_ROWS = 50
_CHUNK = 100_000  # rows
_NA = ["?", ".", "-", "--", "*", "n.a.", "#DIV/0!", "#VALUE!", "#REF!", "#NUM!"]  # besides those of pandas: NA, NaN, N/A, null, ...
_PANDAS_NA = "#N/A,#N/A N/A,#NA,-1.#IND,-1.#QNAN,-NaN,-nan,1.#IND,1.#QNAN,<NA>,N/A,NA,NULL,NaN,None,n/a,nan,null"  # of read_csv
_MISSING = {*_NA, "", *_PANDAS_NA.split(",")}
_PLAIN = re.compile(r"-?(\d{1,18}|\d*\.\d+)([eE][-+]?\d+)?")
_MARKS = (
    *((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32")),
    *((codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16")),
)
OPTIONS = {"sep", "decimal", "thousands", "header", "encoding", "comment", "skiprows", "quotechar"}  # of pandas.read_csv


def read(path: Path, csv_options: dict[str, Any], na: list, limit: float) -> tuple[pd.DataFrame, list[str], str | None]:
    """Read a table; returns it with remarks on how it was read, and the column of labels if the file names it.

    Raises:
        ValueError: rows of unequal length, no rows, or more than ``limit`` bytes unpacked.
    """
    if unknown := csv_options.keys() - OPTIONS:
        raise ValueError(f"csv: there is no option {sorted(unknown)[0]!r}; known: {', '.join(sorted(OPTIONS))}")
    head = _head(path, limit)
    if not head.strip():
        raise ValueError("expected at least one row, got an empty file")
    if head.startswith((b"PK\x03\x04", b"\xd0\xcf\x11\xe0", b"PAR1", b"\x89HDF")):
        raise ValueError("expected text, got another format, such as Excel; rename the file to the suffix of its format")
    encoding = csv_options.get("encoding") or _encoding(path, head, limit)
    lines = codecs.decode(head, encoding, "replace").lstrip("\ufeff").splitlines()
    last, lines = lines[-1], lines[:-1] if len(head) >= _HEAD and len(lines) > 1 else lines
    places = [i for i, line in enumerate(lines) if line.strip() and not _is_skipped(i, line, csv_options)][: _ROWS + 1]
    if not places:
        raise ValueError("expected at least one row, got none")
    lines = [lines[i] for i in places]
    sep = csv_options.get("sep") or _separator(lines)
    start, names = (0, None) if csv_options.keys() & {"comment", "skiprows", "header"} else _preamble(lines, sep)
    lines = lines[start:]
    quote = csv_options.get("quotechar") or _quote(lines[0], sep)
    rows = _split(lines, sep, quote)
    check_columns(max(_width(last, sep, quote), *map(len, rows)), limit, path.name)
    header = csv_options["header"] if "header" in csv_options else None if names else _header(rows)
    cells = [cell for row in rows[1:] or rows for cell in row]
    options: dict[str, Any] = {"sep": sep, "header": header, "encoding": encoding, "quotechar": quote, "skipinitialspace": True}
    options["decimal"] = csv_options.get("decimal") or _decimal(cells, sep)
    options["thousands"] = csv_options.get("thousands") or _thousands(cells, options["decimal"])
    options |= {name: csv_options[name] for name in ("comment", "skiprows") if name in csv_options}
    remarks = [] if encoding.startswith("utf") else [f"read as {encoding}: it is not UTF-8"]
    if start:
        options["skiprows"] = places[start]
        remarks.append(f"lines skipped before the table: {start}" + ", except for the names in the last" * bool(names))
    if header == 0 and not start and (special := _classes_in_header(rows)):
        return _with_classes(path, special, options, na, limit)
    if header == 0 and (with_row_names := _row_names(rows)):
        options["names"] = with_row_names
    codes = _codes(rows[header is not None :])
    options["dtype"] = {rows[0][i] if header is not None else i: str for i in codes if "names" not in options}
    frame = None if csv_options or start or places[0] else _long(path, rows, header, options, na, limit)
    frame = _pandas(path, options, na, limit) if frame is None else frame
    if names:
        frame.columns = names
    elif header is None:
        frame.columns = [f"x{i}" for i in range(frame.shape[1])]
        remarks.append("no header: the columns are called x0, x1, ...")
    return frame, remarks, None


def _is_skipped(i: int, line: str, given: dict[str, Any]) -> bool:
    """Whether the options skip a line."""
    skipped, comment = given.get("skiprows", 0), given.get("comment")
    return (i < skipped if isinstance(skipped, int) else i in skipped) or bool(comment and line.startswith(comment))


def _preamble(lines: list[str], sep: str) -> tuple[int, list[str] | None]:
    """The number of lines before the table (comments, titles), and the column names if the last of them is a comment with names."""
    start = next((i for i, line in enumerate(lines) if not line.startswith("#")), 0)
    if start:
        names = _split([lines[start - 1].lstrip("# ")], sep)[0]
        rest = _split(lines[start:], sep)
        unnamed = len(names) == len(rest[0]) and _header(rest) is None and not any(map(_is_number, names))
        return start, names if unnamed else None
    rows = _split(lines, sep)
    width = collections.Counter(map(len, rows)).most_common(1)[0][0]
    start = next(i for i, row in enumerate(rows) if len(row) == width)
    named = max(map(len, rows[:start]), default=width) < width and not any(map(_is_number, rows[start]))
    return start if named and any(_is_number(cell) for row in rows[start + 1 :] for cell in row) else 0, None


def _codes(rows: list[list[str]]) -> list[int]:
    """Indices of columns of digits of equal length with leading zeros, such as postal codes, unless most columns are like that."""
    columns = list(zip(*(row for row in rows if len(row) == len(rows[0])))) if rows else []
    codes = []
    for i, cells in enumerate(columns):
        present = [cell for cell in cells if cell not in _MISSING]
        if (
            present
            and all(map(str.isdigit, present))
            and len({*map(len, present)}) == 1 < len(present[0])
            and any(c[0] == "0" for c in present)
        ):
            codes.append(i)
    return codes if 2 * len(codes) <= len(columns) else []


def _head(path: Path, limit: float) -> bytes:
    """The beginning of a file, with at least some complete lines."""
    parts, lines, size = [], 0, 0
    with opened(path, limit) as file:
        while (more := file.read(_HEAD)) and (not parts or lines < _LINES and size < _LONGEST):
            parts.append(more)
            lines, size = lines + more.count(b"\n"), size + len(more)
    return b"".join(parts)


def _long(path: Path, rows: list[list[str]], header: int | None, options: dict, na: list, limit: float) -> pd.DataFrame | None:
    """Read a long table of numbers fast; ``None`` if the result might differ from that of pandas."""
    usual = options["decimal"] == "." and options["thousands"] is None and options["encoding"].startswith("utf-8")
    if path.stat().st_size < number_text.LONG or not usual or options["sep"] == " " or options.keys() & {"names", "comment", "skiprows"}:
        return None
    missing = {*_MISSING, *map(str, na)}
    first = rows[header is not None :]
    names = [cell or f"Unnamed: {i}" for i, cell in enumerate(rows[0])] if header is not None else [f"x{i}" for i in range(len(rows[0]))]
    plain = all(cell in missing or _PLAIN.fullmatch(cell) for row in first for cell in row) and not options["dtype"]
    if not first or not plain or len(set(names)) < len(names):
        return None
    return number_text.read(path, names, int(header is not None), options, missing, limit)


def _pandas(path: Path, options: dict[str, Any], na: list, limit: float) -> pd.DataFrame:
    """Read a table with pandas, in chunks, since the parser needs several times the memory of the text."""
    original = options
    options = {**_engine(options), "na_values": [*_NA, *map(str, na)], "low_memory": False, "skip_blank_lines": True, "index_col": False}
    try:
        with warnings.catch_warnings(), opened(path, limit) as file, pd.read_csv(file, chunksize=_CHUNK, **options) as reader:
            warnings.simplefilter("error", pd.errors.ParserWarning)  # cells are dropped
            chunks = list(reader)
        frame = pd.concat(chunks, ignore_index=True) if len(chunks) > 1 else chunks[0]
        if _differ(chunks):
            with opened(path, limit) as file:
                frame = pd.read_csv(file, **options)
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise ValueError(_longer_row(path, original, limit) or str(error).strip()) from None
    except (pd.errors.EmptyDataError, IndexError):
        raise ValueError("expected at least one row, got none") from None
    if longer := _dropped_cells(path, original, frame.shape[1], limit):
        raise ValueError(longer)
    frame.columns = [str(name).strip().strip("'\"") if isinstance(name, str) else str(name) for name in frame.columns]
    return frame


def _differ(chunks: list[pd.DataFrame]) -> bool:
    """Whether a column is text in some chunks and numbers in others."""
    numbers = pd.DataFrame([[pd.api.types.is_numeric_dtype(kind) for kind in chunk.dtypes] for chunk in chunks])
    mixed = numbers.columns[numbers.any() & ~numbers.all()]
    return any(bool(chunk.iloc[:, i].notna().any()) for k, chunk in enumerate(chunks) for i in mixed if numbers.loc[k, i])


def _engine(options: dict[str, Any]) -> dict[str, Any]:
    return {**options, "sep": r"\s+"} if options["sep"] == " " else options


def _dropped_cells(path: Path, options: dict[str, Any], width: int, limit: float) -> str | None:
    """An error message if a row has more cells than there are columns, since pandas drops them at the beginning of a chunk."""
    sep = options["sep"].encode()
    with opened(path, limit) as file:
        wide = options["sep"] == " " or any(line.count(sep) >= width for line in file)
    return _longer_row(path, options, limit) if wide else None


def _longer_row(path: Path, options: dict[str, Any], limit: float) -> str | None:
    """An error message about the first row with more cells than the header or the first row, or ``None``."""
    sep, skipped = options["sep"], options.get("skiprows", 0)
    if options.get("comment") or not isinstance(skipped, int):
        return None
    with opened(path, limit) as file, io.TextIOWrapper(file, options["encoding"], "replace", newline="") as lines:
        reader = csv.reader(itertools.islice(lines, skipped, None), delimiter=sep, quotechar=options["quotechar"], skipinitialspace=True)
        width = len(options.get("names") or ())
        try:
            for row in reader:
                row = list(filter(None, row)) if sep == " " else row
                width = width or len(row)
                if any(row[width:]):
                    return f"expected {width} cells in line {skipped + reader.line_num}, got {len(row)}"
        except csv.Error:  # such as a cell that is too long for it
            pass
    return None


def _encoding(path: Path, head: bytes, limit: float) -> str:
    for mark, name in _MARKS:
        if head.startswith(mark):
            return name
    if head.count(0) > len(head) / 4:  # two bytes per character, without a byte order mark
        return "utf-16-be" if head[::2].count(0) > head[1::2].count(0) else "utf-16-le"
    decoder = codecs.getincrementaldecoder("utf-8")()
    with opened(path, limit) as file:
        while chunk := file.read(2**22):
            try:
                decoder.decode(chunk)
            except UnicodeDecodeError:
                return "cp1252" if not re.search(rb"[\x81\x8d\x8f\x90\x9d]", chunk) else "latin-1"
    return "utf-8"


def _split(lines: list[str], sep: str, quote: str = '"') -> list[list[str]]:
    if sep == " ":
        return [[cell.strip(quote) for cell in re.findall(rf"{quote}[^{quote}]*{quote}|\S+", line)] for line in lines]
    if not any(sep in line for line in lines):  # csv limits the length of a cell
        return [[line.strip()] for line in lines]
    return [[cell.strip() for cell in row] for row in csv.reader(lines, delimiter=sep, quotechar=quote, skipinitialspace=True)]


def _width(line: str, sep: str, quote: str) -> int:
    """The number of cells in a line, which may be incomplete."""
    try:
        return len(_split([line], sep, quote)[0])
    except (csv.Error, IndexError):  # a cell that is too long for csv, or no line
        return 0


def _separator(lines: list[str]) -> str:
    """The separator that splits most lines into the same number of cells, more than one."""
    best, score = ",", 0.0
    for sep in ("\t", ";", ",", "|", " "):
        widths = collections.Counter(len(row) for row in _split(lines, sep))
        width, count = max(widths.items(), key=lambda item: (item[0] > 1, item[1], item[0]))
        fraction = count / len(lines)
        if width > 1 and fraction > max(score, 0.5) + 1e-9:
            best, score = sep, fraction
    return best


def _quote(line: str, sep: str) -> str:
    cells = line.split(sep if sep != " " else None)
    return "'" if all(len(cell) > 1 and cell[0] == cell[-1] == "'" for cell in map(str.strip, cells)) else '"'


def _is_number(cell: str) -> bool:
    return bool(re.fullmatch(r"[-+]?(\d[\d,.]*|\.\d+)([eE][-+]?\d+)?%?|[-+]?(inf|nan)", cell.strip(), re.I))


def _header(rows: list[list[str]]) -> int | None:
    """0 if the first row has the column names, ``None`` if it is a row like the others."""
    first, rest = rows[0], rows[1:]
    if not rest:
        return None if all(_is_number(cell) or cell in _MISSING for cell in first) else 0
    names = [cell for cell in first if not _is_number(cell) and cell not in _MISSING]
    if names:
        return 0
    numbers = [cell for cell in (first[1:] if first[0] == "" else first) if cell]
    if len(numbers) > 1 and all(cell.isdigit() for cell in numbers):
        steps = {int(b) - int(a) for a, b in zip(numbers, numbers[1:])}
        like_it = sum(
            len(row) > 1 and all(c.isdigit() for c in row[-len(numbers) :]) and {int(b) - int(a) for a, b in zip(row, row[1:])} == {1}
            for row in rest
            if all(c.isdigit() for c in row)
        )
        if steps == {1} and not like_it and (int(numbers[0]) in (0, 1) or 1500 <= int(numbers[0]) <= 2200):
            return 0  # default names of pandas, or years
    return None


def _classes_in_header(rows: list[list[str]]) -> list[str] | None:
    """The names of the classes in a file in scikit-learn's format, whose first line has the sizes and the classes."""
    first = rows[0]
    valid = len(first) > 3 and first[0].isdigit() and first[1].isdigit() and not any(_is_number(cell) for cell in first[2:])
    return first[2:] if valid and len(rows) > 1 and len(rows[1]) == int(first[1]) + 1 else None


def _with_classes(path: Path, classes: list[str], options: dict, na: list, limit: float) -> tuple[pd.DataFrame, list[str], str]:
    frame = _pandas(path, options | {"header": None, "skiprows": 1}, na, limit)
    frame.columns = [*(f"x{i}" for i in range(frame.shape[1] - 1)), "target"]
    frame["target"] = frame["target"].map(lambda code: classes[int(code)])
    return frame, ["the first line has sizes and classes, as in files of scikit-learn: columns x0, x1, ..., labels 'target'"], "target"


def _row_names(rows: list[list[str]]) -> list[str] | None:
    """The names of all columns if R has written row names without a name; ``ValueError`` for other headers that are too short."""
    names, cells = len(rows[0]), collections.Counter(len(row) for row in rows[1:]).most_common(1)
    if not cells or cells[0][0] <= names:
        return None
    first = [row[0] for row in rows[1:]]
    counted = any(first == [str(i + start) for i in range(len(first))] for start in (0, 1))
    if cells[0][0] == names + 1 and len(set(first)) == len(first) and (counted or not any(map(_is_number, first))):
        return ["rownames", *rows[0]]
    raise ValueError(
        f"expected {names} cells in a row, as many as there are names in the header, got {cells[0][0]}: {','.join(rows[1])[:60]!r}; "
        "for decimal commas, use csv={'sep': ';'} or give a DataFrame"
    )


def _decimal(cells: list[str], sep: str) -> str:
    """The decimal sign: a comma if numbers have it, unless it may separate thousands in quoted cells."""
    digits = r"(\d{1,2}|\d{4,})" if sep == "," else r"\d+"
    comma = sum(bool(re.fullmatch(rf"[-+]?\d+,{digits}([eE][-+]?\d+)?|[-+]?\d{{1,3}}(\.\d{{3}})+,\d+", cell)) for cell in cells)
    point = sum(bool(re.fullmatch(r"[-+]?\d*\.\d+([eE][-+]?\d+)?", cell)) for cell in cells)
    return "," if comma > point else "."


def _thousands(cells: list[str], decimal: str) -> str | None:
    mark = "," if decimal == "." else "."
    grouped = re.compile(rf"[-+]?\d{{1,3}}(\{mark}\d{{3}})+(\{decimal}\d+)?")
    return (
        mark
        if mark == "." and any(grouped.fullmatch(cell) for cell in cells)
        else ("," if decimal == "." and any(grouped.fullmatch(c) for c in cells) else None)
    )
