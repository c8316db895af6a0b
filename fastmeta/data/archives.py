"""Archives that are read where they are: nothing is unpacked to disk."""

from __future__ import annotations

import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fastmeta.data.errors import data_error


@contextmanager
def open_zip(path: Path, mend: str) -> Iterator[zipfile.ZipFile]:
    """The zip archive at ``path``, open; what turns out to be broken while it is read is explained.

    Raises:
        DataError: if it is missing, broken or truncated, or has a member that would be unpacked
            outside its folder.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.startswith("/") or ".." in PurePosixPath(name).parts:
                    raise data_error(
                        path,
                        expected="members within the archive's own folder",
                        found=f"{name!r}, as in an archive made to overwrite files",
                        mend=mend,
                    )
            yield archive
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError) as error:
        size = f" of {path.stat().st_size} bytes" if path.exists() else ""
        raise data_error(
            path,
            expected="a whole zip archive",
            found=f"a broken or truncated one{size} ({error})",
            mend=mend,
        ) from error


def read_tar(path: Path, names: Sequence[str], mend: str) -> dict[str, bytes]:
    """The contents of the files ``names`` in a tar archive, compressed or not.

    Raises:
        DataError: if it is broken or truncated, or lacks one of the files.
    """
    contents = {}
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.name in names and member.isfile():
                    file = archive.extractfile(member)
                    assert file is not None, "of a regular file"
                    contents[member.name] = file.read()
    except (tarfile.TarError, zlib.error, EOFError, OSError) as error:
        raise data_error(
            path,
            expected="a whole tar archive",
            found=f"a broken or truncated one ({error})",
            mend=mend,
        ) from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise data_error(
            path, expected=", ".join(names), found=f"no {', '.join(missing)}", mend=mend
        )
    return contents
