"""Level-triggered reconcilers, one a kind, and admission: observe -> decide (domain) -> act -> report."""
