"""What is written down while a network trains, for the command line and for loops of users."""

from guyot.app.recording.environment import cpu, environment
from guyot.app.recording.lines import Extent, Lines, describe_structures
from guyot.app.recording.recorder import Recorder

__all__ = ["Extent", "Lines", "Recorder", "cpu", "describe_structures", "environment"]
