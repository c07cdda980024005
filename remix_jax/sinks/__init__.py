"""Where the figures of a run go: `sink.Sink`, and one file for each place (docs/trackers.md)."""
