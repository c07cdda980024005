"""Where the figures of a run go: `sink.Sink`, and what takes them (docs/trackers.md)."""
