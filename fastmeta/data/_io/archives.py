"""Archives that are read where they are: nothing is unpacked to disk."""

from __future__ import annotations

import gzip
import io
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from fastmeta.data._io.errors import DataError, data_error

# More than any file here holds. A few kilobytes of an archive can unpack to any amount.
MOST_BYTES = 2**28
MOST_OF_AN_IMAGE = 2**25

_GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def open_zip(path: Path, fix: str) -> Iterator[zipfile.ZipFile]:
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
                        fix=fix,
                    )
            yield archive
    except DataError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, OSError),
        *(ValueError, RuntimeError),  # of names and dates; of encrypted and unknown forms
    ) as error:
        size = f" of {path.stat().st_size} bytes" if path.exists() else ""
        raise data_error(
            path,
            expected="a whole zip archive",
            found=f"a broken or truncated one{size} ({error})",
            fix=fix,
        ) from error


def read_image(archive: zipfile.ZipFile, name: str) -> bytes:
    """The file ``name`` of an archive from :func:`open_zip`, which explains what is wrong."""
    # Other ways of compressing unpack all that they have at once.
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{name} is not compressed by deflate")
    with archive.open(name) as file:
        content = file.read(MOST_OF_AN_IMAGE + 1)
    if len(content) > MOST_OF_AN_IMAGE:
        raise zipfile.BadZipFile(f"{name} unpacks to more than {MOST_OF_AN_IMAGE} bytes")
    return content


def read_unpacked(path: Path, fix: str) -> bytes:
    """A file's content, unpacked if it is compressed with gzip (told by its content).

    Raises:
        DataError: if it is missing, broken, or holds more than ``MOST_BYTES``.
    """
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == _GZIP_MAGIC
        with gzip.open(path) if zipped else path.open("rb") as unpacked:
            content: bytes = unpacked.read(MOST_BYTES + 1)
    except FileNotFoundError:
        raise data_error(path, expected="a file", found="no such file", fix=fix) from None
    except (OSError, EOFError, zlib.error) as error:
        raise data_error(
            path, expected="a whole file", found=f"a broken one ({error})", fix=fix
        ) from error
    if len(content) > MOST_BYTES:
        raise data_error(path, expected=f"at most {MOST_BYTES} bytes", found="more", fix=fix)
    return content


def read_tar(path: Path, names: Sequence[str], fix: str) -> dict[str, bytes]:
    """The contents of the files ``names`` in a tar archive, compressed with gzip or not.

    Raises:
        DataError: if it is broken or truncated, lacks one of the files, or holds more than
            ``MOST_BYTES``.
    """
    whole = io.BytesIO(read_unpacked(path, fix))
    contents = {}
    try:
        with tarfile.open(fileobj=whole, mode="r:") as archive:
            for member in archive:
                # A sparse file's size is whatever it says.
                if member.name in names and member.isfile() and not member.issparse():
                    file = archive.extractfile(member)
                    assert file is not None, "of a regular file"
                    contents[member.name] = file.read()
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise data_error(
            path,
            expected="a whole tar archive",
            found=f"a broken or truncated one ({error})",
            fix=fix,
        ) from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise data_error(path, expected=", ".join(names), found=f"no {', '.join(missing)}", fix=fix)
    return contents
