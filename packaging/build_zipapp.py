#!/usr/bin/env python3
"""Build ticketapi and its two packages, with their licences, into one file that python3 alone can run.

    python3 packaging/build_zipapp.py dist/ticketapi.pyz

It holds bytecode for the Python that builds it, which then need not compile 8,000 lines at each start; any other Python finds
that the bytecode is not its own and runs the source beside it. For one version of Python the result is the same, byte for byte,
wherever and whenever it is built: pinned wheels, sorted names, fixed dates and modes, no compression (which differs between
zlib versions), bytecode without a date. Needs pip, or python3-venv to get one.
"""

import importlib.util
import io
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
OWN_FILES = (
    "ticketapi.py",
    "schema.sql",
    "openapi.json",
    "vocabulary.json",
    "dashboard.html",
    "docs.html",
    "page.js",
    "LICENSE",
)
MAIN = b"import sys\n\nfrom ticketapi import main\n\nsys.exit(main())\n"
SHEBANG = b"#!/usr/bin/env python3\n"


def pip_command(folder: Path) -> list[str]:
    """Return how to call pip; where Python has none, as on a bare Debian, make an environment that has."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    try:
        venv.create(folder / "venv", with_pip=True)
    except (subprocess.CalledProcessError, ImportError):
        sys.exit("build_zipapp: pip is missing; install python3-venv (Debian) or python3-pip and try again")
    return [str(folder / "venv/bin/python"), "-m", "pip"]


def download_wheels(folder: Path) -> list[Path]:
    """Fetch the pinned wheels and check their hashes."""
    wheels = folder / "wheels"
    options = ["--no-deps", "--only-binary=:all:", "--require-hashes", "-r", str(ROOT / "packaging/requirements.txt")]
    subprocess.run([*pip_command(folder), "download", "--quiet", "-d", str(wheels), *options], check=True)
    return sorted(wheels.glob("*.whl"))


def bundled_files(wheels: list[Path]) -> dict[str, bytes]:
    """Return everything that goes into the zipapp: our files, the packages, their licences and metadata."""
    files = {"__main__.py": MAIN, **{name: (ROOT / name).read_bytes() for name in OWN_FILES}}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as package:
            names = [name for name in package.namelist() if ".data/" not in name and not name.endswith("/RECORD")]
            files.update({name: package.read(name) for name in names})
    return files


def add_bytecode(files: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    """Return the files with the bytecode of each module beside it, as zipimport looks for it.

    It is not checked against its source (PEP 552), which the archive's fixed dates could not tell from another one. Tracebacks
    name the archive. The hash seed decides the order of constants that are sets in Python 3.10.
    """
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    options = ["-q", "-b", "-d", "ticketapi.pyz", "--invalidation-mode", "unchecked-hash"]
    environment = {**os.environ, "PYTHONHASHSEED": "0"}
    subprocess.run([sys.executable, "-m", "compileall", *options, "."], cwd=folder, env=environment, check=True)
    return files | {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.pyc")}


def write_zipapp(target: Path, files: dict[str, bytes]) -> None:
    """Write the files behind a `#!` line and make the result executable."""
    buffer = io.BytesIO()
    buffer.write(SHEBANG)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            entry.create_system, entry.external_attr = 3, 0o100644 << 16
            archive.writestr(entry, files[name])
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(buffer.getvalue())
    target.chmod(0o755)


def main() -> None:
    """Build the file named on the command line."""
    if len(sys.argv) != 2 or not sys.argv[1].endswith(".pyz"):
        sys.exit("usage: python3 packaging/build_zipapp.py dist/ticketapi.pyz")
    target = Path(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        try:
            wheels = download_wheels(Path(folder))
        except subprocess.CalledProcessError:
            sys.exit("build_zipapp: pip could not fetch the packages named in packaging/requirements.txt (see above)")
        write_zipapp(target, add_bytecode(bundled_files(wheels), Path(folder) / "files"))
    print(target)


if __name__ == "__main__":
    main()
