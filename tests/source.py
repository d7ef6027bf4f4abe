"""The source of ticketapi.py as the tests read it: its syntax tree, and the room in which a line lies."""

import ast
import re

from conftest import ROOT

SOURCE = (ROOT / "ticketapi.py").read_text()
TREE = ast.parse(SOURCE)
BANNER = re.compile(r"^# ={100,}\n# Room (\d+)\. (.+)\n# ={100,}\n", re.MULTILINE)
FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


def room_starts():
    """Return the line on which each room begins, in the order of the file."""
    return [SOURCE.count("\n", 0, found.start()) + 1 for found in BANNER.finditer(SOURCE)]


def room_of(line):
    """Return the room in which a line lies; 0 is what stands above the first."""
    return sum(start <= line for start in room_starts())
