"""What a run tells: measured latency, what was found, and the table before => after."""

from guyot.report.describe import Width, widths
from guyot.report.latency import Latency, measure
from guyot.report.outcome import Network, Outcome, to_dict
from guyot.report.table import lines

__all__ = ["Latency", "Network", "Outcome", "Width", "lines", "measure", "to_dict", "widths"]
