"""The process: kopf as informer, leadership, probes, the metrics server, telemetry wired in. Thin, no decisions."""
