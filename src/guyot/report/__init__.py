"""What a run tells: measured latency, what was found, and the table before => after."""

from guyot.report.describe import Width, widths
from guyot.report.inspection import GroupEntry, Inspection, LayerEntry, Price, inspection_of
from guyot.report.latency import Latency, measure
from guyot.report.outcome import Network, Outcome, to_dict
from guyot.report.table import count_text, lines

__all__ = [
    "GroupEntry",
    "Inspection",
    "Latency",
    "LayerEntry",
    "Network",
    "Outcome",
    "Price",
    "Width",
    "count_text",
    "inspection_of",
    "lines",
    "measure",
    "to_dict",
    "widths",
]
