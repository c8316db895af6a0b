"""Reading of compressed files and archives, without extracting to disk."""

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

# Above the size of any file here. A few kilobytes of an archive can decompress to any size.
MAX_BYTES = 2**28
MAX_IMAGE_BYTES = 2**25

_GZIP_MAGIC = b"\x1f\x8b"


@contextmanager
def open_zip(path: Path, fix: str) -> Iterator[zipfile.ZipFile]:
    """Opens the zip archive at `path`; errors while reading it become a `DataError`.

    Raises:
        DataError: if it is missing, corrupt or truncated, or has a member that would be extracted
            outside of the target folder.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                if name.startswith("/") or ".." in PurePosixPath(name).parts:
                    raise data_error(
                        path,
                        expected="members within the archive's own folder",
                        found=f"{name!r}, a path traversal",
                        fix=fix,
                    )
            yield archive
    except DataError:
        raise
    except (
        *(zipfile.BadZipFile, zlib.error, EOFError, OSError),
        *(ValueError, RuntimeError),  # invalid names and dates; encryption and unknown methods
    ) as error:
        size = f" of {path.stat().st_size} bytes" if path.exists() else ""
        raise data_error(
            path,
            expected="a complete zip archive",
            found=f"a corrupt or truncated one{size} ({error})",
            fix=fix,
        ) from error


def read_image(archive: zipfile.ZipFile, name: str) -> bytes:
    """The content of the member `name` of an archive from `open_zip`."""
    # Other compression methods decompress all at once.
    if archive.getinfo(name).compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        raise zipfile.BadZipFile(f"{name} is not compressed with deflate")
    with archive.open(name) as file:
        content = file.read(MAX_IMAGE_BYTES + 1)
    if len(content) > MAX_IMAGE_BYTES:
        raise zipfile.BadZipFile(f"{name} decompresses to more than {MAX_IMAGE_BYTES} bytes")
    return content


def read_decompressed(path: Path, fix: str) -> bytes:
    """A file's content, decompressed if it is a gzip file (detected by its content).

    Raises:
        DataError: if it is missing, corrupt, or larger than `MAX_BYTES`.
    """
    try:
        with path.open("rb") as file:
            compressed = file.read(2) == _GZIP_MAGIC
        with gzip.open(path) if compressed else path.open("rb") as file:
            content: bytes = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise data_error(path, expected="a file", found="no such file", fix=fix) from None
    except (OSError, EOFError, zlib.error) as error:
        raise data_error(
            path, expected="a complete file", found=f"a corrupt one ({error})", fix=fix
        ) from error
    if len(content) > MAX_BYTES:
        raise data_error(path, expected=f"at most {MAX_BYTES} bytes", found="more", fix=fix)
    return content


def read_tar(path: Path, names: Sequence[str], fix: str) -> dict[str, bytes]:
    """The contents of the files `names` in a tar archive, compressed with gzip or not.

    Raises:
        DataError: if it is corrupt or truncated, lacks one of the files, or is larger than
            `MAX_BYTES`.
    """
    stream = io.BytesIO(read_decompressed(path, fix))
    contents = {}
    try:
        with tarfile.open(fileobj=stream, mode="r:") as archive:
            for member in archive:
                # The size of a sparse file is whatever its header claims.
                if member.name in names and member.isfile() and not member.issparse():
                    file = archive.extractfile(member)
                    assert file is not None, "a regular file has content"
                    contents[member.name] = file.read()
    except (tarfile.TarError, EOFError, OSError, ValueError) as error:
        raise data_error(
            path,
            expected="a complete tar archive",
            found=f"a corrupt or truncated one ({error})",
            fix=fix,
        ) from error
    missing = [name for name in names if name not in contents]
    if missing:
        raise data_error(path, expected=", ".join(names), found=f"no {', '.join(missing)}", fix=fix)
    return contents
