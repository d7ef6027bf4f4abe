"""The source of ticketapi.py as the tests read it: its syntax tree, and the room in which a line lies, by its name."""

import ast
import re
from bisect import bisect_right

from conftest import ROOT

SOURCE = (ROOT / "ticketapi.py").read_text()
TREE = ast.parse(SOURCE)
BANNER = re.compile(r"^# ={100,}\n# Room (\d+)\. (.+)\n# ={100,}\n", re.MULTILINE)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
ROOMS = ["", *(found[2].partition(":")[0] for found in BANNER.finditer(SOURCE))]  # in order; "" stands above the first
ROOM_STARTS = [SOURCE.count("\n", 0, found.start()) + 1 for found in BANNER.finditer(SOURCE)]  # in the order of the file


def room_of(line):
    """Return the name of the room in which a line lies, "" above the first."""
    return ROOMS[bisect_right(ROOM_STARTS, line)]


def is_above(room, other):
    """Tell whether a room stands above another one."""
    return ROOMS.index(room) < ROOMS.index(other)


QUERIES = {room for room in ROOMS if room.lower().endswith("queries")}
# By which queries reach the engine.
HELPERS = {"execute", "fetch_one", "fetch_value", "fetch_all", "fetch_tuples", "execute_many", "stream", "write_rows"}
