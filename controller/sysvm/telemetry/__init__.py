"""Metrics and structured logs. Nobody below `operator` imports this; it looks in through observer protocols."""
