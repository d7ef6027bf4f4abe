"""The source of ticketapi.py as the tests read it: its syntax tree, and the room in which a line lies."""

import ast
import re
from bisect import bisect_right

from conftest import ROOT

SOURCE = (ROOT / "ticketapi.py").read_text()
TREE = ast.parse(SOURCE)
BANNER = re.compile(r"^# ={100,}\n# Room (\d+)\. (.+)\n# ={100,}\n", re.MULTILINE)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
ROOM_STARTS = [SOURCE.count("\n", 0, found.start()) + 1 for found in BANNER.finditer(SOURCE)]  # in the order of the file


def room_of(line):
    """Return the room in which a line lies; 0 is what stands above the first."""
    return bisect_right(ROOM_STARTS, line)


# By which queries reach the engine.
HELPERS = {"execute", "fetch_one", "fetch_value", "fetch_all", "execute_many", "stream", "write_rows"}
