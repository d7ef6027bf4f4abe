#!/usr/bin/env python3
"""Build ticketapi and its two packages, with their licences, into one file that python3 alone can run.

    python3 packaging/build_zipapp.py dist/ticketapi.pyz

The same Python gives the same bytes, wherever and whenever it builds: pinned wheels, sorted names, fixed dates and modes, no
compression (which differs between zlib versions). The bytecode is for the Python that builds; any other runs the sources, which
are inside, too. Needs pip, or python3-venv to get one.
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
    "profiles.json",
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


def compile_files(files: dict[str, bytes], folder: Path) -> dict[str, bytes]:
    """Return the bytecode of all modules, bound to their sources by hash and without a trace of this machine."""
    for name in files:
        if name.endswith(".py"):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(files[name])
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    environment |= {"PYTHONHASHSEED": "0", "LC_ALL": "C"}  # Python 3.10 writes sets in the order of their hashes
    options = ["-q", "-b", "--invalidation-mode", "checked-hash", "-d", "ticketapi.pyz"]  # what tracebacks name
    subprocess.run([sys.executable, "-S", "-m", "compileall", *options, str(folder)], check=True, env=environment, cwd=folder)
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.pyc")}


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
        files = bundled_files(wheels)
        write_zipapp(target, files | compile_files(files, Path(folder, "modules")))
    print(target)


if __name__ == "__main__":
    main()
