"""Parts of configure.py: one module for each thing that it configures."""
