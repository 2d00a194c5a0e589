"""What a run tells: measured latency, what was found, the table before => after, the page."""

from guyot.costs.timing import REPORTED_BATCHES, Latency, measure, measure_batches
from guyot.report.comparison import compare, compare_lines
from guyot.report.describe import Width, widths
from guyot.report.history import TRIALS, History, read_runs
from guyot.report.inspection import GroupEntry, Inspection, LayerEntry, Price, inspection_of
from guyot.report.outcome import Network, Outcome, to_dict
from guyot.report.page.build import render
from guyot.report.page.summary import summary
from guyot.report.plots import write_plots
from guyot.report.table import (
    count_text,
    latency_notes,
    latency_text,
    lines,
    machine_text,
    member_lines,
    sample_word,
)

__all__ = [
    "REPORTED_BATCHES",
    "TRIALS",
    "GroupEntry",
    "History",
    "Inspection",
    "Latency",
    "LayerEntry",
    "Network",
    "Outcome",
    "Price",
    "Width",
    "compare",
    "compare_lines",
    "count_text",
    "inspection_of",
    "latency_notes",
    "latency_text",
    "lines",
    "machine_text",
    "measure",
    "measure_batches",
    "member_lines",
    "read_runs",
    "render",
    "sample_word",
    "summary",
    "to_dict",
    "widths",
    "write_plots",
]
