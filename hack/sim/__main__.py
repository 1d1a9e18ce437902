"""See `cli`."""

from sim.cli import main

main()
