"""The long-running process: command line, supervisor, watcher, ingest, gate, serving, control API, metrics."""
