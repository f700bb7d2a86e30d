#!/usr/bin/env python3
"""Builds the scanner's wheel for one architecture, into a cache, without a system compiler; prints its path.

    python scanner/build.py [x86_64|aarch64] [--cache FOLDER] [--identity] [--sources FOLDER]

`ziglang` from PyPI brings clang and libc++, for both architectures and the oldest glibc wanted; ada, which reads URLs,
comes out of the source package of ada-url that requirements-hosts.txt pins by its hash, so both spell addresses alike.
The same sources give the same bytes. Exit status 3: nothing can be built here, and the crawler does without.
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import hashlib
import html.entities
import os
import platform
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
LOCK = HERE.parent / "requirements-hosts.txt"
VERSION = "1"
GLIBC = "2.28"
ARCHITECTURES = ("x86_64", "aarch64")
CANNOT = 3
SOURCES = ("build.py", "scanner.cpp", "crawler_scanner/__init__.py")
FLAGS = (
    *("-std=c++20", "-O2", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-ffunction-sections"),
    # Zig says "none" and "ignore" for both: what is out of bounds is to end the process.
    "-U_LIBCPP_HARDENING_MODE",
    "-D_LIBCPP_HARDENING_MODE=_LIBCPP_HARDENING_MODE_EXTENSIVE",
    "-U_LIBCPP_ASSERTION_SEMANTIC_DEFAULT",
    "-D_LIBCPP_ASSERTION_SEMANTIC_DEFAULT=_LIBCPP_ASSERTION_SEMANTIC_QUICK_ENFORCE",
)


class CannotBuildError(Exception):
    """Why there can be no wheel here."""


def wheel(architecture: str, cache: Path) -> Path:
    """The wheel for hosts of that architecture; built unless `cache` has it. Raises CannotBuildError."""
    if architecture not in ARCHITECTURES:
        raise CannotBuildError(f"no scanner for {architecture}")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two fleets may be deployed to at the same time
        folder = cache / f"{identity()}-{architecture}"
        for built in folder.glob("*.whl"):
            return built
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            work = Path(scratch)
            packed = pack(architecture, compiled(architecture, ada(cache), cache), work)
            folder.mkdir(exist_ok=True)
            return Path(shutil.move(packed, folder))


def identity() -> str:
    """Of the sources and of the compiler."""
    hashed = hashlib.sha256(pinned_ada().encode() + zig_version().encode())
    for name in SOURCES:
        hashed.update((HERE / name).read_bytes())
    return hashed.hexdigest()[:12]


def zig_version() -> str:
    """Raises CannotBuildError where there is no ziglang."""
    ran = subprocess.run([sys.executable, "-m", "ziglang", "version"], capture_output=True, text=True)
    if ran.returncode:
        raise CannotBuildError(f"{sys.executable} has no ziglang: pip install -r requirements.txt brings it")
    return ran.stdout.strip()


def pinned_ada() -> str:
    """The line of the lock that pins ada-url."""
    found = re.search(r"^ada-url==\S+(?: \\\n +--hash=\S+)+", LOCK.read_text(), re.MULTILINE)
    assert found
    return found[0]


def ada(cache: Path) -> Path:
    """The folder with ada.h and ada.cpp. Raises CannotBuildError where the package index cannot be asked."""
    folder = cache / f"ada-{hashlib.sha256(pinned_ada().encode()).hexdigest()[:12]}"
    if not folder.exists():
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            wanted = Path(scratch, "requirements.txt")
            wanted.write_text(pinned_ada() + "\n")
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
            command += ["--require-hashes", "--dest", scratch, "--requirement", str(wanted)]
            ran = subprocess.run(command, capture_output=True, text=True)  # noqa: S603
            if ran.returncode:
                raise CannotBuildError(f"ada-url's source package cannot be fetched: {ran.stderr.strip()[-300:]}")
            made = Path(scratch, "ada")
            made.mkdir()
            with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as package:
                for member in package.getmembers():
                    name = Path(member.name).name
                    content = package.extractfile(member) if name in ("ada.h", "ada.cpp") else None
                    if content:
                        (made / name).write_bytes(content.read())
            made.rename(folder)
    return folder


def entities() -> str:
    """entities.h: the standard's named character references."""
    rows = sorted((name.encode(), text.encode()) for name, text in html.entities.html5.items())
    lines = [f"{{{_literal(name)}, {_literal(text)}}}," for name, text in rows]
    longest = max(len(name) for name, _ in rows)
    return "\n".join(
        (
            "#include <string_view>",
            "struct Entity { std::string_view name, text; };",
            f"inline constexpr size_t MAX_ENTITY = {longest};",
            "inline constexpr Entity ENTITIES[] = {",
            *lines,
            "};\n",
        )
    )


def gather(folder: Path, ada_folder: Path) -> None:
    """Put all that a compiler needs into one folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "entities.h").write_text(entities())
    for source in (HERE / "scanner.cpp", ada_folder / "ada.h", ada_folder / "ada.cpp"):
        shutil.copy(source, folder)


def _literal(text: bytes) -> str:
    return '"' + "".join(f"\\{byte:03o}" for byte in text) + '"'


def compiled(architecture: str, ada_folder: Path, cache: Path) -> Path:
    """The shared library."""
    work = cache / "work"  # always the same, by which zig knows what it has compiled before
    gather(work, ada_folder)
    command = [sys.executable, "-m", "ziglang", "c++", "-target", f"{architecture}-linux-gnu.{GLIBC}", *FLAGS]
    command += ["-Wl,--gc-sections", "-s", "-shared", "-o", "scanner.so", "scanner.cpp", "ada.cpp"]
    zig = str(cache.resolve() / "zig")
    environment = {**os.environ, "ZIG_GLOBAL_CACHE_DIR": zig, "ZIG_LOCAL_CACHE_DIR": zig}
    ran = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True)  # noqa: S603
    if ran.returncode:
        raise CannotBuildError(f"the scanner does not compile: {ran.stderr.strip()[-2000:]}")
    return work / "scanner.so"


def pack(architecture: str, library: Path, work: Path) -> Path:
    """The wheel: no Python of a certain version is needed, since ctypes calls the library."""
    tag = f"py3-none-manylinux_{GLIBC.replace('.', '_')}_{architecture}"
    info = f"crawler_scanner-{VERSION}.dist-info"
    files = {
        "crawler_scanner/__init__.py": (HERE / "crawler_scanner" / "__init__.py").read_bytes(),
        "crawler_scanner/scanner.so": library.read_bytes(),
        f"{info}/METADATA": (
            f"Metadata-Version: 2.1\nName: crawler-scanner\nVersion: {VERSION}\n"
            "Summary: The scanner of crawler-fleet.\nLicense: Apache-2.0\nRequires-Python: >=3.11\n"
        ).encode(),
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nGenerator: build.py\nRoot-Is-Purelib: false\nTag: {tag}\n".encode(),
    }
    record = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{info}/RECORD"] = "\n".join((*record, f"{info}/RECORD,,\n")).encode()
    path = work / f"crawler_scanner-{VERSION}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name)  # of 1980, for everybody
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(entry, content)
    return path


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architecture", nargs="?", default=platform.machine())
    parser.add_argument("--cache", type=Path, default=HERE.parent / ".cache" / "scanner")
    parser.add_argument("--identity", action="store_true", help="print only what names the sources and the compiler")
    parser.add_argument("--sources", type=Path, help="only put all that a compiler needs into this folder")
    chosen = parser.parse_args()
    try:
        if chosen.sources:
            chosen.cache.mkdir(parents=True, exist_ok=True)
            gather(chosen.sources, ada(chosen.cache))
            return 0
        print(identity() if chosen.identity else wheel(chosen.architecture, chosen.cache))
    except CannotBuildError as error:
        print(f"no scanner, so pages are read by lexbor, at an eighth of the speed: {error}", file=sys.stderr)
        return CANNOT
    return 0


if __name__ == "__main__":
    sys.exit(main())
