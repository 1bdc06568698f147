"""Tables as they are printed where lines are short."""

import re


def unfolded(printed: str) -> str:
    """The text of every column, its cells' lines put together again, whatever lines of the table they stood on."""
    rows = [re.split("[│┃]", line)[1:-1] for line in printed.splitlines() if re.match("[│┃]", line)]
    width = max(map(len, rows), default=0)
    columns = ["".join(row[i].strip(" ") for row in rows if len(row) > i) for i in range(width)]
    return "\n".join(columns)
