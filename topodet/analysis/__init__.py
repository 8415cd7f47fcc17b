"""Analysis of networks: wiring reports, and accuracy as edges are removed."""
