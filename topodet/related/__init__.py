"""The related papers, each in its own folder; the core of topodet does not need them."""
